"""From values to the advantages and the token mask of the policy update, as the algorithm chooses."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tppo.advantages import discounted_returns, egae, gae, lambda_returns, length_adaptive_lambda
from tppo.algorithms.base import Algorithm
from tppo.filters import shape_advantages, window_mask
from tppo.types import TokenBatch


@dataclass(frozen=True, slots=True)
class Estimate:
    """advantages_N: of this window's tokens, zero elsewhere. raw_N: the same before whitening and clamping.
    keep_N: bool, tokens that train the policy. lam_S: lambda of each response.
    """

    advantages_N: torch.Tensor
    raw_N: torch.Tensor
    keep_N: torch.Tensor
    lam_S: torch.Tensor


def estimate_advantages(
    algorithm: Algorithm,
    batch: TokenBatch,
    values_N: torch.Tensor,
    cut_values_S: torch.Tensor,
    *,
    window: int,
    max_length: int,
) -> Estimate:
    """Advantages of the newest window of every response.

    Only this window's values enter: the recursion runs backwards and stops at the window's first token.
    """
    a, w = algorithm.advantage, batch.window_N
    counts = torch.bincount(batch.row_N[w], minlength=batch.num_responses)
    offsets = torch.zeros(batch.num_responses + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=offsets[1:])
    rewards, values = batch.rewards_N[w].to(values_N.dtype), values_N[w]
    if a.lam is not None:
        lam = torch.full((batch.num_responses,), a.lam, dtype=torch.float64)
    else:
        lam = length_adaptive_lambda(
            batch.lengths_S,
            batch.finished_S,
            alpha=a.lam_alpha,
            lam_min=a.lam_min,
            window=window,
            max_length=max_length,
        )
    if a.estimator == "gae":
        advantages = gae(rewards, values, offsets, gamma=a.gamma, lam=lam)
    else:
        advantages = egae(
            rewards,
            values,
            offsets,
            batch.finished_S,
            gamma=a.gamma,
            lam=lam,
            boundary=a.boundary,
            cut_values_S=cut_values_S if a.boundary == "critic" else None,
        )
    keep = window_mask(offsets, batch.finished_S, ignore_last=algorithm.filter.ignore_last)
    shaped = shape_advantages(advantages, keep, whiten=a.whiten, clamp=a.clamp, bias=a.bias)
    keep_N = torch.zeros_like(w)
    keep_N[w] = keep
    everywhere = torch.zeros_like(values_N)
    return Estimate(everywhere.masked_scatter(w, shaped), everywhere.masked_scatter(w, advantages), keep_N, lam)


def value_targets(algorithm: Algorithm, batch: TokenBatch, values_N: torch.Tensor) -> torch.Tensor:
    """Targets of the critic [N]; meaningful for finished responses only. Lambda 1 is Monte-Carlo."""
    gamma, lam = algorithm.advantage.gamma, algorithm.value_target.lam
    rewards_N = batch.rewards_N.to(values_N.dtype)
    if lam == 1.0:  # the same equation without the critic's values, hence without their round-off
        return discounted_returns(rewards_N, batch.offsets, gamma=gamma)
    return lambda_returns(rewards_N, values_N, batch.offsets, gamma=gamma, lam=lam)
