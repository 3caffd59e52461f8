"""The tokens of every step on disk, and training from them alone: one step under a debugger, without an engine.

A dump holds, for each step, every response that trained as it stood when the step ended. With the checkpoint before
that step, ``Trainer.train`` makes the same weights again, bit for bit on the same kind of machine: recorded tokens and
rewards take the place of generation and grading. There is no second training loop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tppo.config.run import RunConfig
from tppo.data.workload import Workload
from tppo.engines.base import EngineBase
from tppo.environment import warn
from tppo.errors import ConfigError, DataError, EngineError
from tppo.files import check_writable, is_free, write_whole
from tppo.loop.metrics import PhaseClock, Step
from tppo.loop.trainer import Trainer
from tppo.ranks.ranks import Ranks
from tppo.ranks.shard import full
from tppo.runs.build import build_trainer
from tppo.runs.checkpoint.contents import restore
from tppo.runs.checkpoint.files import verify
from tppo.runs.checkpoint.responses import pack_responses, read_responses
from tppo.runs.checkpoint.stored import read_checkpoint
from tppo.types import Continuation, Response


class DumpFolder:
    """Where a run writes its steps. Raises ConfigError for a folder that holds anything, unless a run goes on."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        if not is_free(path, "dump-rollouts") and not (resume and path.is_dir()):
            raise ConfigError("dump-rollouts", str(path), "a folder that is empty or does not exist")
        check_writable(path, "dump-rollouts")

    def write(self, trainer: Trainer, responses: Sequence[Response]) -> None:
        """The step that has just ended, and the hashes of the weights it made. A full disk is a warning."""
        step = trainer.steps_done - 1
        about = {"step": step, **digests(trainer)}
        if not trainer.ranks.main:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(dump_file(self.path, step), pack_responses(responses, about))
        except OSError as error:
            warn(f"the tokens of step {step} were not dumped ({error.strerror}); free disk space. Training goes on")


def dump_file(folder: Path, step: int) -> Path:
    """The dump of one step, counted from 0."""
    return folder / f"step-{step:08d}.safetensors"


def digests(trainer: Trainer) -> dict[str, str]:
    """A digest of every network, by name."""
    return {name: digest(model) for name, model in trainer.networks.models.items()}


def digest(module: torch.nn.Module) -> str:
    """sha256 over names and bytes of all weights."""
    out = hashlib.sha256()
    for name, p in module.named_parameters():
        out.update(name.encode())
        out.update(full(p.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return out.hexdigest()


def replay(
    checkpoint: Path, dump: Path, *, steps: int = 1, config: RunConfig | None = None, ranks: Ranks | None = None
) -> Iterator[Replayed]:
    """Train ``steps`` steps from the dump, beginning where the checkpoint stands; yields after each.

    config: with other values, to see what a step would have done; None is the checkpoint's own. Raises CheckpointError,
    DataError when the dump lacks a step, or holds one that does not follow.
    """
    verify(checkpoint)
    trainer = build_trainer(config or read_checkpoint(checkpoint).config, _no_engine, ranks=ranks)
    restore(trainer, checkpoint)
    slots = trainer.slots
    pools = (slots.in_flight, slots.queue, slots.waiting, slots.ready, *slots.shelf)
    before = {r.uid: r for pool in pools for r in pool}
    for _ in range(steps):
        path = dump_file(dump, trainer.steps_done)
        responses, about = read_responses(path)
        if about.get("step") != trainer.steps_done:
            raise DataError(f"{path} is of step {about.get('step')}: expected step {trainer.steps_done}")
        for response in responses:
            if not _goes_on(response, before.get(response.uid), slots.next_uid):
                raise DataError(f"{path}: response {response.uid} does not go on where it stood: is it another run's?")
        before |= {r.uid: r for r in responses}
        for response in responses:
            del response.values[response.start :]  # the critic's values of the newest window come with the step
        yield Replayed(trainer, trainer.train(responses, PhaseClock(trainer.watch)), about)


def _goes_on(now: Response, before: Response | None, next_uid: int) -> bool:
    """Whether a recorded response is what stood there and later windows. before: None for one that is not known."""
    if before is None:
        return now.uid >= next_uid
    length, windows = len(before.tokens), len(before.window_starts)
    return (
        (now.group, now.prompt, now.tokens[:length]) == (before.group, before.prompt, before.tokens)
        and now.window_starts[:windows] == before.window_starts
        and now.window_starts[windows : windows + 1] in ([], [length])
    )


GENERATION = ("new_tokens", "unfinished", "waiting")
"""Metrics of what is recorded, not made again: the slots stay as the checkpoint has them."""


class Replayed:
    """A step that was made again."""

    def __init__(self, trainer: Trainer, step: Step, about: dict[str, Any]) -> None:
        """about: what the dump says of the step."""
        self.trainer, self.step = trainer, step
        self.same = {name: made == about.get(name) for name, made in digests(trainer).items()}
        """Name of a network to whether its weights equal the recorded ones."""
        self.metrics = {name: value for name, value in step.metrics.items() if name not in GENERATION}
        """Of the step, without those of generation."""


class NoEngine(EngineBase):
    """Stands where a trainer wants an engine and generates nothing."""

    def load_policy(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Take no weights."""

    def generate(self, requests: Any, sampling: Any, done: Any = None) -> list[Continuation]:
        """Raise EngineError."""
        raise EngineError("a replay has no engine: its tokens are recorded")

    def score(self, tokens: Sequence[int], first: int) -> list[float]:
        """Raise EngineError."""
        raise EngineError("a replay has no engine: its tokens are recorded")

    def close(self) -> None:
        """Free nothing."""


def _no_engine(config: RunConfig, workload: Workload) -> NoEngine:
    return NoEngine()
