"""What a step did, and its numbers. Names end in their unit where they have one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tppo.fit.terms import Columns
from tppo.loop.slots import Slots
from tppo.types import Batch, Response, Status


class PhaseClock:
    """Wall time of the phases of a step. ``watch`` is told each phase that begins, and None when it ends."""

    def __init__(self, watch: Callable[[str | None], None]) -> None:
        self.watch = watch
        self.seconds: dict[str, float] = {}
        self.tokens: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str, tokens: int | None = None) -> Iterator[None]:
        """Time a block, of so many tokens. On a GPU it must end with a result on the host, as all phases do."""
        self.watch(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.watch(None)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            if tokens is not None:
                self.count(name, tokens)

    def count(self, name: str, tokens: int) -> None:
        """Tokens that a phase handled."""
        self.tokens[name] = self.tokens.get(name, 0) + tokens

    def metrics(self) -> dict[str, float]:
        """``seconds_PHASE`` and, where tokens were counted, ``tokens_per_second_PHASE``."""
        out = {f"seconds_{name}": value for name, value in self.seconds.items()}
        for name, tokens in self.tokens.items():
            out[f"tokens_per_second_{name}"] = tokens / max(self.seconds[name], 1e-9)
        return out


@dataclass(frozen=True)
class Step:
    """What one step of training did."""

    number: int
    """Steps before it."""
    sampled_by: int
    """Version of the policy that generated in this step."""
    responses: list[Response]
    """That trained; unfinished ones go on in the next step."""
    batch: Batch
    """Made of them."""
    columns: Columns
    """Everything that was known of their tokens."""
    trains: bool
    """Whether the policy trained."""
    slots: Slots
    """The run's; they go on in the next step."""
    stats: dict[str, float | None]
    """Metrics of the updates."""
    clock: PhaseClock
    metrics: dict[str, Any] = field(init=False)
    """One line of metrics.jsonl, as things stood at the end of this step."""

    def __post_init__(self) -> None:
        metrics = {
            "step": self.number,
            "policy_version": self.sampled_by,
            "new_tokens": self.clock.tokens.get("generate", 0),
            "unfinished": len(self.slots.in_flight),
            "waiting": len(self.slots.waiting),
            **response_metrics(self.responses),
            **policy_metrics(self.batch, self.columns, trains=self.trains, version=self.sampled_by),
            **self.stats,
            **self.clock.metrics(),
        }
        object.__setattr__(self, "metrics", metrics)


def response_metrics(responses: Sequence[Response]) -> dict[str, float | None]:
    """How responses ended and were judged. Rewards and solve rate are of those that have finished."""
    done = [r for r in responses if r.status.finished]
    rewards = np.array([r.reward for r in done], dtype=float)
    lengths = np.array([len(r.tokens) for r in done])
    out: dict[str, float | None] = {
        "finished": len(done),
        "reward": float(rewards.mean()) if done else None,
        "solve_rate": float((rewards > 0).mean()) if done else None,
        "length_mean": float(lengths.mean()) if done else None,
        "length_median": float(np.median(lengths)) if done else None,
        "length_p99": float(np.percentile(lengths, 99)) if done else None,
        "length_max": float(lengths.max()) if done else None,
        "in_flight_length_max": max(len(r.tokens) for r in responses),
        "windows_max": max(len(r.window_starts) for r in responses),
    }
    for status in (Status.EOS, Status.LENGTH, Status.EMPTY):
        out[f"ended_by_{status.value}"] = sum(r.status is status for r in done)
    return out


def policy_metrics(batch: Batch, columns: Columns, *, trains: bool, version: int) -> dict[str, float | None]:
    """The batch that the policy trains on, and how engine and trainer agree on its tokens.

    Advantages are as the estimator gives them, before whitening; ``advantage_unfinished_mean`` is over tokens of
    unfinished responses, whose signal comes from the critic alone. ``target_version_span`` is the age, in policy
    versions, of the oldest token of a finished response. What the algorithm has no column for is left out.
    """
    keep_N, finished_N = columns["train"], batch.finished_N
    scored_N = keep_N & trains
    out: dict[str, float | None] = {
        "trained_tokens": int(scored_N.sum()),
        "dropped_tokens": int((batch.window_N & ~keep_N).sum()),
        "target_version_span": int(version - batch.versions_N[finished_N].min()) if finished_N.any() else None,
    }
    raw_N = columns.get("raw_advantages", columns.get("advantages"))
    if raw_N is not None:
        open_N = keep_N & ~finished_N
        out["advantage_mean"] = float(raw_N[keep_N].mean()) if keep_N.any() else None
        out["advantage_std"] = float(raw_N[keep_N].std()) if keep_N.sum() > 1 else None
        out["advantage_unfinished_mean"] = float(raw_N[open_N].mean()) if open_N.any() else None
    if "lambda" in columns:
        out["lambda_mean"] = float(columns["lambda"].mean())
    out |= {"entropy": None, "engine_gap_mean": None, "engine_gap_max": None, "engine_kl": None}
    if "old" in columns and scored_N.any():
        gap = (columns["old"][scored_N] - batch.behaviour_N[scored_N]).double()
        out["entropy"] = float(columns["entropy"][scored_N].mean())
        out |= {"engine_gap_mean": float(gap.abs().mean()), "engine_gap_max": float(gap.abs().max())}
        out["engine_kl"] = float((gap.exp() - 1 - gap).mean())
    return out
