"""What the tests run on every rank: gradients of one batch, whole runs, and a run that kills one of its ranks."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from tppo.algorithms.estimate import Estimate

from tests.support.helpers import mixed_responses, tiny_lm
from tppo.algorithms.base import PolicyLoss, ValueTarget
from tppo.cli import main
from tppo.config.run import Compute, Optimizer
from tppo.engines.embedded import TorchEngine
from tppo.errors import EngineError
from tppo.fit import update
from tppo.fit.optim import ModelOptimizer
from tppo.loop.trainer import Trainer
from tppo.maths.aggregate import Aggregation
from tppo.models import call as model_call
from tppo.models.transformer import TransformerCritic, TransformerPolicy
from tppo.ranks.ranks import current, end, full, shard
from tppo.runs.folder import RunFolder, read_metrics
from tppo.types import Batch

FIXED = Optimizer(lr=1e-3, weight_decay=0.0, grad_clip=None, mini_batch=1000)


class GradientKeeper(ModelOptimizer):
    """Keeps the whole gradient of the one mini-batch instead of stepping."""

    def step(self, *, name: str, step: int) -> float:
        self.gradient = {n: full(p.grad).clone() for n, p in self.named if p.grad is not None}
        return 0.0


def gradients(compute: Compute, aggregation: Aggregation, tied: bool) -> dict[str, torch.Tensor]:
    """Of policy and critic on a ragged batch in float64, whole on every rank, with the statistics of the updates."""
    policy = TransformerPolicy(tiny_lm(dtype=torch.float64, tied=tied))
    critic = TransformerCritic(tiny_lm("qwen3", dtype=torch.float64).base_model)
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(3))
    if compute.recompute:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        policy.train()
    for model in (policy, critic):
        shard(model, compute, torch.device("cpu"))
    batch = Batch.of(mixed_responses(0, count=9))
    g = torch.Generator().manual_seed(0)
    keep = batch.window_N & (torch.rand(len(batch.tokens_N), generator=g) < 0.8)
    draw: Callable[[], torch.Tensor] = lambda: torch.randn(len(keep), generator=g, dtype=torch.float64)  # noqa: E731
    advantages = draw() * keep
    old, entropy = model_call.logprobs_of(policy, batch, keep, temperature=0.8, max_tokens=60, chunk=5)
    all_N = torch.ones_like(keep)
    values, cut = model_call.values_of(critic, batch, all_N, ~batch.finished_S, max_tokens=60)
    keepers = GradientKeeper(policy, FIXED), GradientKeeper(critic, FIXED)
    stats = update.update_policy(
        policy, keepers[0], batch, Estimate(advantages, advantages, keep, torch.ones(batch.num_responses)),
        old_logprobs_N=old + 0.3 * draw() * keep, reference_N=old + 0.2,
        loss=PolicyLoss(lm_coef=0.3, entropy_coef=0.1, kl_coef=0.2, aggregation=aggregation),
        temperature=0.8, compute=compute, step=0, seed=0,
    )  # fmt: skip
    stats |= update.update_critic(
        critic, keepers[1], batch, returns_N=draw(), old_values_N=values + 0.3 * draw(),
        loss=ValueTarget(aggregation=aggregation), compute=compute, step=0, seed=0,
    )  # fmt: skip
    return (
        {"values": values, "cut": cut, "logprobs": old, "entropy": entropy}
        | {f"stat.{name}": torch.tensor(value, dtype=torch.float64) for name, value in stats.items()}
        | {f"policy.{name}": x for name, x in keepers[0].gradient.items()}
        | {f"critic.{name}": x for name, x in keepers[1].gradient.items()}
    )


def faults() -> dict[str, Callable[[], AbstractContextManager[object]]]:
    """Averages over one rank where the whole batch is meant: each must be seen by the comparison of gradients."""
    count, plain_shard, plain_share = update.aggregate_count, shard, model_call.share

    def local_count(keep_N, offsets, **options):  # type: ignore[no-untyped-def]
        mine = torch.arange(len(keep_N)) % current().size == current().rank
        return count(keep_N & mine, offsets, **options)

    def averaging(model, compute, device):  # type: ignore[no-untyped-def]
        plain_shard(model, compute, device)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(float(current().size))

    def last_run_lost(runs):  # type: ignore[no-untyped-def]
        return plain_share(runs[:-1] or runs)

    return {
        "counts": lambda: mock.patch.object(update, "aggregate_count", local_count),
        "reduction": lambda: mock.patch.dict(globals(), {"shard": averaging}),
        "lost rows": lambda: mock.patch.object(model_call, "share", last_run_lost),
    }


def write_gradients(out: Path) -> None:
    """Every case to a file; with several ranks the faulty ones too."""
    small = Compute(device="cpu", micro_batch_tokens=40, logit_chunk_tokens=7)
    cases = {
        "token-mean": (small, "token-mean", True),
        "seq-mean": (small, "seq-mean-token-mean", False),
        "packed": (Compute(micro_batch_tokens=40, logit_chunk_tokens=7, packed=True), "token-mean", True),
        "recompute": (Compute(micro_batch_tokens=1000, recompute=True), "token-mean", False),
    }
    for name, case in cases.items():
        save(gradients(*case), out / f"{name}.safetensors")
    if current().size > 1:
        for name, fault in faults().items():
            with fault():
                save(gradients(*cases["token-mean"]), out / f"fault {name}.safetensors")


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
    plain = getattr(TorchEngine, method)

    def broken(engine: TorchEngine, *args: Any) -> Any:
        answers = plain(engine, *args)
        if engine.version == step and current().rank == current().size - 1:
            raise EngineError("the engine broke")
        return answers

    return mock.patch.object(TorchEngine, method, broken)


def full_disk(step: int) -> AbstractContextManager[object]:
    """The disk refuses metrics.jsonl, which rank 0 alone writes, when the checkpoint of a step is due."""
    plain = RunFolder.flush

    def flush(folder: RunFolder) -> int:
        if len(read_metrics(folder.path / "metrics.jsonl")) == step:
            raise OSError(28, "No space left on device")
        return plain(folder)

    return mock.patch.object(RunFolder, "flush", flush)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["gradients", out]:
            write_gradients(Path(out))
            (Path(out) / f"messages-{current().rank}.json").write_text(json.dumps(messages()))
            end(0)
        case ["broken engine", method, step, *argv]:
            with breaking(method, int(step)):
                sys.exit(main(argv))
        case ["full disk", step, *argv]:
            with full_disk(int(step)):
                sys.exit(main(argv))
        case ["killed", step, rank, *argv]:
            with signalling(signal.SIGKILL, int(step), int(rank)):
                sys.exit(main(argv))
        case ["stopped", recipe, step, *argv]:
            from paper_repro.reproduction import command as reproduce

            with signalling(signal.SIGTERM, int(step), current().size - 1, recipe):
                sys.exit(reproduce.main(argv))
        case other:
            sys.exit(f"unknown: {other}")
