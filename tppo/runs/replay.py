"""The tokens of every step on disk, and training from them alone: one step under a debugger, without an engine.

A dump holds, for each step, every response of its batch as it stood when the step ended. With the checkpoint before
that step, ``Trainer.step`` makes the same weights again, bit for bit on the same kind of machine: the recorded tokens
take the place of the engine's, and the recorded rewards that of the grader's. There is no second training loop.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tppo.config.run import RunConfig
from tppo.data.workload import Workload
from tppo.errors import ConfigError, DataError, EngineError
from tppo.loop.slots import SlotWindow
from tppo.loop.trainer import Trainer
from tppo.models.base import Model, PolicyModel
from tppo.ranks.shard import device_of, full
from tppo.runs.build import build_trainer
from tppo.runs.checkpoint.contents import restore, stored_config
from tppo.runs.checkpoint.files import verify
from tppo.runs.checkpoint.responses import pack_responses, read_responses
from tppo.runs.folder import warn
from tppo.types import Continuation, GenerationRequest, Response, Sampling, Status


class DumpFolder:
    """Where a run writes its steps. Raises ConfigError for a folder that holds anything, unless a run goes on."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        try:
            if path.exists() and any(path.iterdir()) and not resume:
                raise ConfigError("dump-rollouts", str(path), "a folder that is empty or does not exist")
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError("dump-rollouts", str(path), "a folder that can be written", str(error)) from None

    def write(self, trainer: Trainer, responses: Sequence[Response]) -> None:
        """The step that has just ended, and the hashes of the weights it made. A full disk is a warning."""
        assert isinstance(trainer.critic, torch.nn.Module)
        step = trainer.steps_done - 1
        about = {"step": step, "policy": digest(trainer.policy_module), "critic": digest(trainer.critic)}
        if not trainer.ranks.main:
            return
        path = dump_file(self.path, step)
        partial = path.with_suffix(".partial")
        try:
            partial.write_bytes(pack_responses(responses, about))
            os.replace(partial, path)
        except OSError as error:
            warn(f"the tokens of step {step} were not dumped ({error.strerror}); free disk space. Training goes on")


def dump_file(folder: Path, step: int) -> Path:
    """The dump of one step, counted from 0."""
    return folder / f"step-{step:08d}.safetensors"


def digest(module: torch.nn.Module) -> str:
    """sha256 over names and bytes of all weights."""
    out = hashlib.sha256()
    for name, p in module.named_parameters():
        out.update(name.encode())
        out.update(full(p.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return out.hexdigest()


class RecordedEngine:
    """Answers with what was recorded, and scores by the trainer's own policy: there are no other weights here."""

    def __init__(self, policy: PolicyModel) -> None:
        self.policy = policy
        self.recorded: dict[int, Response] = {}

    def load_policy(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Nothing to load."""

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        done: Callable[[Continuation], None] | None = None,
    ) -> list[Continuation]:
        """The newest window of each recorded response; nobody is told, for rewards are recorded too.

        Raises EngineError when it does not continue the request.
        """
        return [self._answer(request) for request in requests]

    @torch.no_grad()
    def score(self, tokens: Sequence[int], first: int) -> list[float]:
        """Log-probability of ``tokens[first:]``, at temperature 1."""
        ids = torch.tensor([tokens], device=device_of(next(iter(self.policy.weights()))[1]))
        assert isinstance(self.policy, Model)
        logprobs = self.policy(lambda p: p.logits(p.hidden(ids)[0, first - 1 : -1]).float().log_softmax(-1))
        return logprobs.gather(-1, ids[0, first:, None]).squeeze(-1).tolist()

    def close(self) -> None:
        """Nothing to free."""

    def _answer(self, request: GenerationRequest) -> Continuation:
        r = self.recorded.get(request.uid)
        if r is None or request.tokens != (*r.prompt.tokens, *r.tokens[: r.start]):
            raise EngineError(f"response {request.uid} does not stand where its record says")
        stopped = r.status in (Status.EOS, Status.EMPTY)
        return Continuation(r.uid, tuple(r.tokens[r.start :]), tuple(r.logprobs[r.start :]), stopped)


class _RecordedWindow(SlotWindow):
    """Full of the responses of one recorded step, as they stood when it began; rewards come with the tokens."""

    def put(self, responses: Sequence[Response]) -> None:
        self.recorded = {r.uid: r for r in responses}
        self.in_flight = [_before(r) for r in responses]
        self.slots = len(responses)

    def extend(self, continuations: Sequence[Continuation], version: int) -> None:
        super().extend(continuations, version)
        for response in self.in_flight:
            response.reward = self.recorded[response.uid].reward  # nobody grades what has a reward


def replay(checkpoint: Path, dump: Path, *, steps: int = 1, config: RunConfig | None = None) -> Iterator[Replayed]:
    """Train ``steps`` steps from the dump, beginning where the checkpoint stands; yields after each.

    config: with other values, to see what a step would have done; None is the checkpoint's own. Raises CheckpointError,
    DataError when the dump lacks a step.
    """
    verify(checkpoint)
    trainer = build_trainer(config or stored_config(checkpoint), _no_engine)
    restore(trainer, checkpoint)
    engine, old = trainer.engine, trainer.window
    assert isinstance(engine, RecordedEngine)
    window = _RecordedWindow(
        old.prompts,
        slots=old.slots,
        group_size=old.group_size,
        window=old.window,
        max_response_tokens=old.max_response_tokens,
    )
    trainer.window = window
    for _ in range(steps):
        path = dump_file(dump, trainer.steps_done)
        responses, about = read_responses(path)
        if about.get("step") != trainer.steps_done:
            raise DataError(f"{path} is of step {about.get('step')}: expected step {trainer.steps_done}")
        window.put(responses)
        engine.recorded = window.recorded
        yield Replayed(trainer, trainer.step(), about)


class Replayed:
    """trainer: as it stands after the step. metrics: of the step. same: do the weights equal the recorded ones?"""

    def __init__(self, trainer: Trainer, metrics: dict[str, Any], about: dict[str, Any]) -> None:
        assert isinstance(trainer.critic, torch.nn.Module)
        self.trainer, self.metrics = trainer, metrics
        made = {"policy": digest(trainer.policy_module), "critic": digest(trainer.critic)}
        self.same = {name: made[name] == about.get(name) for name in made}


def _no_engine(config: RunConfig, workload: Workload) -> RecordedEngine:
    return RecordedEngine(workload.policy)


def _before(r: Response) -> Response:
    """A recorded response as it stood when the step began."""
    cut = lambda values, kind: array(kind, values[: r.start])  # noqa: E731
    return Response(
        uid=r.uid,
        group=r.group,
        prompt=r.prompt,
        tokens=cut(r.tokens, "q"),
        logprobs=cut(r.logprobs, "d"),
        values=cut(r.values, "d"),
        versions=cut(r.versions, "q"),
        window_starts=r.window_starts[:-1],
    )
