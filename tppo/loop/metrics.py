"""The numbers of one step. Names end in their unit where they have one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from tppo.algorithms.estimate import Estimate
from tppo.maths.values import discounted_returns
from tppo.types import Response, Status, TokenBatch


class PhaseClock:
    """Wall time of the phases of a step. ``watch`` is told each phase that begins, and None when it ends."""

    def __init__(self, watch: Callable[[str | None], None]) -> None:
        self.watch = watch
        self.seconds: dict[str, float] = {}
        self.tokens: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block. On a GPU the block must end with a result on the host, as all phases of the loop do."""
        self.watch(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.watch(None)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """``seconds_PHASE`` and, where tokens were counted, ``tokens_per_second_PHASE``."""
        out = {f"seconds_{name}": value for name, value in self.seconds.items()}
        for name, tokens in self.tokens.items():
            out[f"tokens_per_second_{name}"] = tokens / max(self.seconds[name], 1e-9)
        return out


def explained_variance(values: torch.Tensor, targets: torch.Tensor) -> float | None:
    """1 - Var(target - V) / Var(target); None for fewer than two tokens or targets that do not vary.

    >>> explained_variance(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    1.0
    """
    if len(targets) < 2:
        return None
    spread = targets.double().var()
    return None if spread == 0 else float(1 - (targets.double() - values.double()).var() / spread)


def rollout_metrics(responses: Sequence[Response], batch: TokenBatch) -> dict[str, float | None]:
    """What was generated and how it was judged. Rewards and solve rate are of responses that finished in this step."""
    done = [r for r in responses if r.status.finished]
    rewards = np.array([r.reward for r in done], dtype=float)
    lengths = np.array([len(r.tokens) for r in done])
    new_tokens = int(batch.window_N.sum())
    out: dict[str, float | None] = {
        "new_tokens": new_tokens,
        "finished": len(done),
        "unfinished": len(responses) - len(done),
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


def critic_metrics(
    batch: TokenBatch, stored_N: torch.Tensor, values_N: torch.Tensor, cut_S: torch.Tensor, *, gamma: float
) -> dict[str, float | None]:
    """How good the critic was when its values were used.

    Explained variance of the Monte-Carlo return, whatever the critic is trained on, over responses that finished in
    this step, by the values stored when each token was sampled:
    ``finished`` for tokens of the last window, ``unfinished`` for tokens sampled while the response was still open
    (their advantages rested on the critic alone). ``cut_gap`` is the mean |V(s_l) - V(s_{l-1})| at window cuts: the
    size of what EGAE assumes to be zero.
    """
    returns_N = discounted_returns(batch.rewards_N, batch.offsets, gamma=gamma)
    done_N = batch.finished_S[batch.row_N]
    last, earlier = done_N & batch.window_N, done_N & ~batch.window_N
    cut = ~batch.finished_S & (batch.lengths_S > 0)
    before_cut = values_N[batch.offsets[1:][cut] - 1]
    return {
        "explained_variance_finished": explained_variance(stored_N[last], returns_N[last]),
        "explained_variance_unfinished": explained_variance(stored_N[earlier], returns_N[earlier]),
        "value_mean": float(values_N[batch.window_N].mean()) if batch.window_N.any() else None,
        "cut_gap": float((cut_S[cut] - before_cut).abs().mean()) if cut.any() else None,
    }


def policy_metrics(
    batch: TokenBatch,
    estimate: Estimate,
    scored_N: torch.Tensor,
    old_logprobs_N: torch.Tensor,
    entropy_N: torch.Tensor,
    version: int,
) -> dict[str, float | None]:
    """The batch that the policy trains on, and how engine and trainer agree on its scored tokens.

    Advantages are as the estimator gives them, before whitening; ``advantage_unfinished_mean`` is over kept tokens of
    unfinished responses, whose signal comes from the critic alone. ``target_version_span`` is the age, in policy
    versions, of the oldest token among the critic's targets.
    """
    w, keep = batch.window_N, estimate.keep_N
    gap = (old_logprobs_N[scored_N] - batch.behaviour_N[scored_N]).double()
    raw, open_N = estimate.raw_N, keep & ~batch.finished_S[batch.row_N]
    done_N = batch.finished_S[batch.row_N]
    return {
        "trained_tokens": int(scored_N.sum()),
        "dropped_tokens": int((w & ~keep).sum()),
        "advantage_mean": float(raw[keep].mean()) if keep.any() else None,
        "advantage_std": float(raw[keep].std()) if keep.sum() > 1 else None,
        "advantage_unfinished_mean": float(raw[open_N].mean()) if open_N.any() else None,
        "lambda_mean": float(estimate.lam_S.mean()),
        "entropy": float(entropy_N[scored_N].mean()) if scored_N.any() else None,
        "engine_gap_mean": float(gap.abs().mean()) if len(gap) else None,
        "engine_gap_max": float(gap.abs().max()) if len(gap) else None,
        "engine_kl": float((gap.exp() - 1 - gap).mean()) if len(gap) else None,
        "target_version_span": int(version - batch.versions_N[done_N].min()) if done_N.any() else None,
    }
