"""From values to the advantages and the token mask of the policy update, as the algorithm chooses."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tppo.algorithms.base import Algorithm, ValueTarget
from tppo.maths.advantages import egae, gae, length_adaptive_lambda
from tppo.maths.masks import shape_advantages, window_mask
from tppo.maths.values import discounted_returns, lambda_returns
from tppo.types import TokenBatch


@dataclass(frozen=True, slots=True)
class Estimate:
    """advantages_N: of the tokens considered, zero elsewhere. raw_N: the same before whitening and clamping.
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
    """Advantages of the newest window of every response, or of all tokens of the finished ones ("train_on").

    In the first case only this window's values enter: the recursion runs backwards and stops at the window's first
    token. In the second nothing is cut, so EGAE is GAE and no token is dropped.
    """
    a = algorithm.advantage
    w = batch.window_N if algorithm.filter.train_on == "window" else batch.finished_S[batch.row_N]
    offsets = _offsets(batch, w)
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


def critic_tokens(choice: ValueTarget, batch: TokenBatch) -> torch.Tensor:
    """Tokens that train the critic, bool [N]."""
    finished_N = batch.finished_S[batch.row_N]
    return finished_N if choice.responses == "finished" else finished_N | batch.window_N


def value_targets(
    algorithm: Algorithm, batch: TokenBatch, values_N: torch.Tensor, cut_values_S: torch.Tensor | None = None
) -> torch.Tensor:
    """Targets of the critic [N], meaningful for ``critic_tokens``. Lambda 1 is Monte-Carlo for finished responses.

    Targets of unfinished windows are G_t = A_t + V_t with A of `egae`: the lambda-average of n-step returns, of which
    the longest bootstraps with V(s_l), chosen by ``advantage.boundary``. cut_values_S: V(s_l) for boundary "critic".
    """
    a, choice = algorithm.advantage, algorithm.value_target
    rewards_N = batch.rewards_N.to(values_N.dtype)
    if choice.lam == 1.0:  # the same equation without the critic's values, hence without their round-off
        targets_N = discounted_returns(rewards_N, batch.offsets, gamma=a.gamma)
    else:
        targets_N = lambda_returns(rewards_N, values_N, batch.offsets, gamma=a.gamma, lam=choice.lam)
    if choice.responses == "finished":
        return targets_N
    open_N = batch.window_N & ~batch.finished_S[batch.row_N]
    ahead = egae(
        rewards_N[open_N],
        values_N[open_N],
        _offsets(batch, open_N),
        batch.finished_S,
        gamma=a.gamma,
        lam=choice.lam,
        boundary=a.boundary,
        cut_values_S=cut_values_S,
    )
    return targets_N.masked_scatter(open_N, ahead + values_N[open_N])


def _offsets(batch: TokenBatch, chosen_N: torch.Tensor) -> torch.Tensor:
    """Where each response's chosen tokens lie among all chosen ones, int64 [S + 1]."""
    offsets = torch.zeros(batch.num_responses + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(batch.row_N[chosen_N], minlength=batch.num_responses), 0, out=offsets[1:])
    return offsets
