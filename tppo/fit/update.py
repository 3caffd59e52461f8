"""The two updates. Losses are sums over tokens divided once by a count that is fixed before the first micro-batch, so
cutting a mini-batch differently never changes the gradient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from tppo.algorithms.base import PolicyLoss, ValueTarget
from tppo.algorithms.estimate import Estimate, critic_tokens
from tppo.config.run import Compute
from tppo.fit.optim import ModelOptimizer
from tppo.maths import objectives as losses
from tppo.maths.aggregate import Aggregation, aggregate_count, aggregate_sum
from tppo.maths.finite import check_finite
from tppo.maths.values import value_loss
from tppo.models.base import CriticModel, PolicyModel
from tppo.models.call import MicroBatch, micro_batches, micro_scores, micro_values, placement
from tppo.ranks.ranks import current
from tppo.types import TokenBatch


def update_critic(
    critic: CriticModel,
    optimizer: ModelOptimizer,
    batch: TokenBatch,
    *,
    returns_N: torch.Tensor,
    old_values_N: torch.Tensor,
    loss: ValueTarget,
    compute: Compute,
    step: int,
    seed: int,
) -> dict[str, float]:
    """Fit the critic to the tokens that ``loss.responses`` names. With none of them, nothing moves."""
    device, _ = placement(critic)
    cut: dict[str, Any] = {"max_tokens": compute.micro_batch_tokens, "packed": compute.packed}
    train_N = critic_tokens(loss, batch)
    trains_S = torch.bincount(batch.row_N[train_N], minlength=batch.num_responses) > 0
    stats = Stats()
    for rows in _mini_batches(optimizer, trains_S, seed, step, "critic"):
        member_N = train_N & _member(batch, rows)
        count = aggregate_count(member_N, batch.offsets, mode=loss.aggregation).clamp(min=1).item()
        members = member_N.sum().clamp(min=1)
        optimizer.zero_grad()
        for micro in micro_batches(batch, member_N, rows, **cut):
            values = micro_values(critic, micro)
            at = micro.index_X
            terms = value_loss(
                values,
                old_values_N[at].to(device),
                returns_N[at].to(device),
                clip_low=loss.clip_low,
                clip_high=loss.clip_high,
            )
            check_finite("value loss", terms.loss_N, uids=batch.uids_S, row_N=batch.row_N[at])
            total = _aggregate(terms.loss_N, batch, micro, None, loss.aggregation) / count
            total.backward()
            stats.add("critic_loss", total.detach())
            stats.add("value_clip_fraction", terms.clipped_N.sum().cpu() / members)
        stats.whole("critic_grad_norm", optimizer.step(name="critic", step=step))
        optimizer.zero_grad()  # nobody reads them: their memory is the engine's until the next update
        stats.updates += 1
    return {"critic_updates": stats.updates, **stats.per_update()}


def update_policy(
    policy: PolicyModel,
    optimizer: ModelOptimizer,
    batch: TokenBatch,
    estimate: Estimate,
    *,
    old_logprobs_N: torch.Tensor,
    reference_N: torch.Tensor | None,
    loss: PolicyLoss,
    temperature: float,
    compute: Compute,
    step: int,
    seed: int,
) -> dict[str, float]:
    """Train the policy on the kept tokens, and on all tokens of good responses by likelihood.

    old_logprobs_N: of the trainer's policy at the start of the step, on the kept tokens.
    reference_N: log-probs of the initial policy on the kept tokens, needed when the KL coefficient is above zero.
    """
    device, dtype = placement(policy)
    cut: dict[str, Any] = {"max_tokens": compute.micro_batch_tokens, "packed": compute.packed}
    if loss.old_logprobs == "behaviour":
        old_logprobs_N = batch.behaviour_N.to(old_logprobs_N.dtype)
    imitate_N = batch.positive_S[batch.row_N] if loss.lm_coef > 0 else torch.zeros_like(estimate.keep_N)
    need_N = estimate.keep_N | imitate_N
    trains_S = torch.bincount(batch.row_N[need_N], minlength=batch.num_responses) > 0
    stats = Stats()
    for rows in _mini_batches(optimizer, trains_S, seed, step, "policy"):
        member_N = _member(batch, rows)
        keep_N, positive_N = estimate.keep_N & member_N, imitate_N & member_N
        count = aggregate_count(
            keep_N, batch.offsets, mode=loss.aggregation, constant_length=loss.constant_length
        ).clamp(min=1)
        kept, positives = keep_N.sum().clamp(min=1), positive_N.sum().clamp(min=1)
        optimizer.zero_grad()
        for micro in micro_batches(batch, keep_N | positive_N, rows, **cut):
            at, row_X = micro.index_X, batch.row_N[micro.index_X]
            logprobs, entropy = micro_scores(
                policy,
                micro,
                batch.tokens_N[at],
                temperature=temperature,
                chunk=compute.logit_chunk_tokens,
                with_entropy=loss.entropy_coef > 0,
            )
            keep_X, positive_X = keep_N[at].to(device), positive_N[at].to(device)
            terms = losses.ppo_loss(
                logprobs,
                # Tokens that only imitate have no old log-prob: their ratio is one and is masked anyway.
                torch.where(keep_X, old_logprobs_N[at].to(device), logprobs.detach()),
                estimate.advantages_N[at].to(device, dtype),
                clip_low=loss.clip_low,
                clip_high=loss.clip_high,
                dual_clip=loss.dual_clip,
            )
            loss_X = terms.loss_N
            if loss.importance_cap is not None:
                loss_X = loss_X * losses.truncated_importance_weights(
                    old_logprobs_N[at], batch.behaviour_N[at], cap=loss.importance_cap
                ).to(device)
            check_finite("policy loss", loss_X, uids=batch.uids_S, row_N=row_X)
            surrogate = _aggregate(loss_X, batch, micro, keep_X, loss.aggregation) / count.to(device)
            total = surrogate
            stats.add("policy_loss", surrogate.detach())
            if loss.lm_coef > 0:
                nll_X = torch.where(positive_X, losses.lm_loss(logprobs), 0)
                check_finite("positive-example loss", nll_X, uids=batch.uids_S, row_N=row_X)
                nll = nll_X.sum() / positives.to(device)
                total = total + loss.lm_coef * nll
                stats.add("lm_loss", nll.detach())
            if loss.entropy_coef > 0:
                check_finite("entropy bonus", entropy, uids=batch.uids_S, row_N=row_X)
                bonus = _aggregate(entropy, batch, micro, keep_X, loss.aggregation) / count.to(device)
                total = total - loss.entropy_coef * bonus
            if loss.kl_coef > 0:
                assert reference_N is not None
                anchor = torch.where(keep_X, reference_N[at].to(device), logprobs.detach())
                kl = losses.kl_estimate(logprobs, anchor, kind=loss.kl_kind)
                check_finite("KL penalty", kl, uids=batch.uids_S, row_N=row_X)
                penalty = _aggregate(kl, batch, micro, keep_X, loss.aggregation) / count.to(device)
                total = total + loss.kl_coef * penalty
                stats.add("reference_kl", penalty.detach())
            total.backward()
            _ratio_stats(stats, terms, logprobs.detach(), old_logprobs_N[at].to(device), keep_X, kept)
        stats.whole("policy_grad_norm", optimizer.step(name="policy", step=step))
        optimizer.zero_grad()  # nobody reads them: their memory is the engine's until the next update
        stats.updates += 1
    return {"policy_updates": stats.updates, **stats.per_update()}


class Stats:
    """Running sums over the micro-batches of one update, averaged over mini-batches; some keep their maximum.

    Each rank adds what its own micro-batches give, already divided by counts over the whole batch; ``wholes`` are what
    every rank knows in full.
    """

    def __init__(self) -> None:
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.wholes: defaultdict[str, float] = defaultdict(float)
        self.maxima: dict[str, float] = {}
        self.updates = 0

    def add(self, name: str, value: torch.Tensor | float) -> None:
        """Add to a sum."""
        self.sums[name] += float(value)

    def whole(self, name: str, value: float) -> None:
        """Add to a sum of what is the same on every rank."""
        self.wholes[name] += value

    def peak(self, name: str, value: torch.Tensor) -> None:
        """Keep the largest."""
        self.maxima[name] = max(self.maxima.get(name, -np.inf), float(value))

    def per_update(self) -> dict[str, float]:
        """Sums over all ranks divided by the number of optimiser steps, and the maxima."""
        sums, maxima = self.wholes.copy(), dict[str, float]()
        for of_rank, peaks in current().gather((dict(self.sums), self.maxima)):
            for name, value in of_rank.items():
                sums[name] += value
            for name, value in peaks.items():
                maxima[name] = max(maxima.get(name, -np.inf), value)
        return {k: v / max(self.updates, 1) for k, v in sums.items()} | maxima


def _ratio_stats(
    stats: Stats,
    terms: losses.PPOTerms,
    logprobs: torch.Tensor,
    old: torch.Tensor,
    keep: torch.Tensor,
    kept: torch.Tensor,
) -> None:
    if not bool(keep.any()):
        return
    ratio, log_ratio = terms.ratio_N.detach()[keep], (logprobs - old)[keep]
    clipped = terms.clipped_N[keep]
    stats.add("clip_fraction_high", (clipped & (ratio > 1)).sum() / kept)
    stats.add("clip_fraction_low", (clipped & (ratio < 1)).sum() / kept)
    stats.add("dual_clip_fraction", terms.dual_clipped_N[keep].sum() / kept)
    stats.add("ratio_mean", ratio.sum() / kept)
    stats.peak("ratio_max", ratio.max())
    # KL(old || new) from samples of the old policy: k3 with the log-ratio of new to old.
    stats.add("policy_kl", (log_ratio.exp() - 1 - log_ratio).sum() / kept)


def _aggregate(
    loss_X: torch.Tensor, batch: TokenBatch, micro: MicroBatch, keep_X: torch.Tensor | None, mode: Aggregation
) -> torch.Tensor:
    """Sum of one micro-batch; its rows are whole, so per-response means are the responses' own."""
    row_X = batch.row_N[micro.index_X]
    counts = torch.bincount(row_X, minlength=batch.num_responses)[micro.rows]
    offsets = torch.zeros(len(counts) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=offsets[1:])
    keep = torch.ones_like(loss_X, dtype=torch.bool) if keep_X is None else keep_X
    return aggregate_sum(loss_X, keep, offsets.to(loss_X.device), mode=mode)


def _member(batch: TokenBatch, rows: list[int]) -> torch.Tensor:
    member_S = torch.zeros(batch.num_responses, dtype=torch.bool)
    member_S[rows] = True
    return member_S[batch.row_N]


def _mini_batches(
    optimizer: ModelOptimizer, trains_S: torch.Tensor, seed: int, step: int, name: str
) -> Iterator[list[int]]:
    """Random parts of nearly equal size: a remainder of two responses must not weigh as much as a full mini-batch."""
    rows = trains_S.nonzero().squeeze(-1).numpy()
    if not len(rows):
        return
    stream: Callable[[int], np.random.Generator] = lambda epoch: np.random.default_rng(  # noqa: E731
        [seed, step, epoch, int.from_bytes(name.encode(), "little")]
    )
    for epoch in range(optimizer.config.epochs):
        parts = -(-len(rows) // optimizer.config.mini_batch)
        for part in np.array_split(stream(epoch).permutation(rows), parts):
            yield part.tolist()
