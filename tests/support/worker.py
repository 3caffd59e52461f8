"""What the tests run on every rank: gradients of one batch, whole runs, and a run that kills one of its ranks."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule

from tests.support.helpers import mixed_responses, tiny_lm
from tppo.algorithms.auxiliaries.critic import Critic, CriticOptions
from tppo.algorithms.parts.terms import clipped, entropy_bonus, imitate_positives, kl_to_reference
from tppo.cli import main
from tppo.engines.embedded import EmbeddedEngine
from tppo.errors import EngineError
from tppo.fit import update as fit_update
from tppo.fit.optim import ModelOptimizer
from tppo.fit.options import Optimizer
from tppo.fit.update import critic_now, policy_now, update
from tppo.loop.trainer import Trainer
from tppo.models import call as model_call
from tppo.models.call import Call
from tppo.models.transformer import TransformerCritic, TransformerPolicy
from tppo.ranks.ranks import current, end
from tppo.ranks.shard import full, shard
from tppo.runs.folder import RunFolder, read_metrics
from tppo.types import Batch

FIXED = Optimizer(lr=1e-3, weight_decay=0.0, grad_clip=None, mini_batch=1000)
Mean = Literal["token-mean", "seq-mean-token-mean"]


class GradientKeeper(ModelOptimizer):
    """Keeps the whole gradient of the one mini-batch instead of stepping."""

    def step(self, *, name: str) -> float:
        self.gradient = {n: full(p.grad).clone() for n, p in self.named if p.grad is not None}
        return 0.0


def gradients(call: Call, aggregation: Mean, *, tied: bool, recompute: bool = False) -> dict[str, torch.Tensor]:
    """Of policy and critic on a ragged batch in float64, whole on every rank, with the statistics of the updates."""
    policy = TransformerPolicy(tiny_lm(dtype=torch.float64, tied=tied))
    critic = TransformerCritic(tiny_lm("qwen3", dtype=torch.float64).base_model)
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(3))
    if recompute:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        policy.train()
    for model in (policy, critic):
        shard(model, torch.device("cpu"), call.ranks)
    batch = Batch.of(mixed_responses(0, count=9))
    g = torch.Generator().manual_seed(0)
    keep = batch.window_N & (torch.rand(len(batch.tokens_N), generator=g) < 0.8)
    draw: Callable[[], torch.Tensor] = lambda: torch.randn(len(keep), generator=g, dtype=torch.float64)  # noqa: E731
    advantages = draw() * keep
    old, entropy = call.logprobs(policy, batch, keep)
    values, cut = call.values(critic, batch, torch.ones_like(keep), ~batch.finished_S)
    keepers = GradientKeeper(policy, FIXED), GradientKeeper(critic, FIXED)
    terms = (
        clipped(clip_low=0.2, clip_high=0.28, dual_clip=10.0, aggregation=aggregation),
        imitate_positives(0.3),
        entropy_bonus(0.1, aggregation=aggregation),
        kl_to_reference(0.2, aggregation=aggregation),
    )
    columns = {"train": keep, "advantages": advantages, "old": old + 0.3 * draw() * keep, "reference": old + 0.2}
    stats = update(policy, keepers[0], batch, terms, columns, call=call, now=policy_now, name="policy", key=(0, 0))
    columns |= {"returns": draw(), "values": values + 0.3 * draw()}
    terms = Critic(CriticOptions(aggregation=aggregation)).terms()
    stats |= update(critic, keepers[1], batch, terms, columns, call=call, now=critic_now, name="critic", key=(0, 0))
    return (
        {"values": values, "cut": cut, "logprobs": old, "entropy": entropy}
        | {f"stat.{name}": torch.tensor(value, dtype=torch.float64) for name, value in stats.items()}
        | {f"policy.{name}": x for name, x in keepers[0].gradient.items()}
        | {f"critic.{name}": x for name, x in keepers[1].gradient.items()}
    )


def faults() -> dict[str, Callable[[], AbstractContextManager[object]]]:
    """Averages over one rank where the whole batch is meant: each must be seen by the comparison of gradients."""
    count, plain_shard, plain_share = fit_update.aggregate_count, shard, model_call.share

    def local_count(keep_N, offsets, **options):  # type: ignore[no-untyped-def]
        mine = torch.arange(len(keep_N)) % current().size == current().rank
        return count(keep_N & mine, offsets, **options)

    def averaging(model, device, ranks):  # type: ignore[no-untyped-def]
        plain_shard(model, device, ranks)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(float(ranks.size))

    def last_run_lost(runs, ranks):  # type: ignore[no-untyped-def]
        return plain_share(runs[:-1] or runs, ranks)

    return {
        "counts": lambda: mock.patch.object(fit_update, "aggregate_count", local_count),
        "reduction": lambda: mock.patch.dict(globals(), {"shard": averaging}),
        "lost rows": lambda: mock.patch.object(model_call, "share", last_run_lost),
    }


def write_gradients(out: Path) -> None:
    """Every case to a file; with several ranks the faulty ones too."""
    small = Call(current(), temperature=0.8, micro_batch_tokens=40, logit_chunk_tokens=7)
    large = replace(small, micro_batch_tokens=1000, logit_chunk_tokens=1024)
    plain = functools.partial(gradients, small, "token-mean", tied=True)
    cases = {
        "token-mean": plain,
        "seq-mean": functools.partial(gradients, small, "seq-mean-token-mean", tied=False),
        "packed": functools.partial(gradients, replace(small, packed=True), "token-mean", tied=True),
        "recompute": functools.partial(gradients, large, "token-mean", tied=False, recompute=True),
    }
    for name, case in cases.items():
        save(case(), out / f"{name}.safetensors")
    if current().size > 1:
        for name, fault in faults().items():
            with fault():
                save(plain(), out / f"fault {name}.safetensors")


def messages() -> dict[str, Any]:
    """What each message between ranks brings, and what each failure becomes on the other ranks."""
    ranks = current()

    def raised(work: Callable[[], object]) -> list[str]:
        try:
            work()
        except Exception as error:
            return [type(error).__name__, str(error)]
        return []

    last = ranks.size - 1
    here = lambda error: error if ranks.rank == last else None  # noqa: E731
    found: dict[str, Any] = {
        "broadcast": ranks.broadcast({"rank": ranks.rank}),
        "gather": ranks.gather(ranks.rank),
        "sum": ranks.sum(torch.tensor([1.0, ranks.rank])).tolist(),
        "any": [ranks.any(ranks.rank == last), ranks.any(False)],
        "lead": ranks.lead(lambda: ranks.rank + 40),
        "lead fails": raised(lambda: ranks.lead(lambda: Path("/nowhere/x").write_text(""))),
        "engine": raised(lambda: ranks.together(1, here(EngineError("the engine broke")))),
        "disk": raised(lambda: ranks.together(1, here(OSError(28, "No space left on device")))),
        "same": raised(lambda: ranks.check_same("the batch", torch.arange(9))),
        "differ": raised(lambda: ranks.check_same("the batch", torch.arange(9) + (ranks.rank == last))),
    }
    return found


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """By rank 0, once every rank is known to hold the same."""
    current().check_same(path.name, *(x for name, x in tensors.items() if not name.startswith("stat.")))
    if current().main:
        save_file({name: x.contiguous() for name, x in tensors.items()}, path)


def signalling(which: signal.Signals, step: int, rank: int, recipe: str = "") -> AbstractContextManager[object]:
    """A signal to one rank in the middle of a step (of one recipe), the first time this program runs."""
    if os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
        return nullcontext()
    plain = Trainer.load_policy

    def load_policy(trainer: Trainer) -> None:
        plain(trainer)
        if trainer.steps_done == step and current().rank == rank and recipe in ("", trainer.config.recipe):
            os.kill(os.getpid(), which)

    return mock.patch.object(Trainer, "load_policy", load_policy)


def breaking(method: str, step: int) -> AbstractContextManager[object]:
    """The engine of the last rank fails in a step: while it generates, or when it is asked for log-probabilities."""
    loaded: list[int] = []
    load, plain = EmbeddedEngine.load_policy, getattr(EmbeddedEngine, method)

    def load_policy(engine: EmbeddedEngine, named: Any, version: int) -> None:
        load(engine, named, version)
        loaded.append(version)

    def broken(engine: EmbeddedEngine, *args: Any) -> Any:
        answers = plain(engine, *args)
        if loaded[-1] == step and current().rank == current().size - 1:
            raise EngineError("the engine broke")
        return answers

    return mock.patch.multiple(EmbeddedEngine, **{"load_policy": load_policy, method: broken})


def full_disk(step: int) -> AbstractContextManager[object]:
    """The disk refuses metrics.jsonl, which rank 0 alone writes, when the checkpoint of a step is due."""
    plain = RunFolder.flush

    def flush(folder: RunFolder) -> int:
        if len(read_metrics(folder.path / "metrics.jsonl")) == step:
            raise OSError(28, "No space left on device")
        return plain(folder)

    return mock.patch.object(RunFolder, "flush", flush)


def work(argv: list[str]) -> int:
    """What one rank does; the status it is to exit with."""
    match argv:
        case ["gradients and runs", out, runs]:
            write_gradients(Path(out))
            (Path(out) / f"messages-{current().rank}.json").write_text(json.dumps(messages()))
            with mock.patch("tppo.ranks.ranks.end"):  # a run is usually the last that its process does
                status = max(main(argv) for argv in json.loads(runs))
            end(status)
            return status
        case ["tppo", *argv]:
            return main(argv)
        case ["broken engine", method, step, *argv]:
            with breaking(method, int(step)):
                return main(argv)
        case ["full disk", step, *argv]:
            with full_disk(int(step)):
                return main(argv)
        case ["killed", step, rank, *argv]:
            with signalling(signal.SIGKILL, int(step), int(rank)):
                return main(argv)
        case ["stopped", recipe, step, *argv]:
            from paper_repro.reproduction import command as reproduce

            with signalling(signal.SIGTERM, int(step), current().size - 1, recipe):
                return reproduce.main(argv)
        case other:
            raise SystemExit(f"unknown: {other}")


if __name__ == "__main__":
    sys.exit(work(sys.argv[1:]))
