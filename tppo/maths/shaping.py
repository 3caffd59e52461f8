"""Outcomes that depend on length. Shapes: `_S` one entry per response; lengths in tokens. No gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from tppo.maths.groups import group_extremes, group_mean
from tppo.maths.ragged import check_like


@torch.no_grad()
def overlong_penalty(L_S: Tensor, *, max_length: int, buffer: int, coef: float = 1.0) -> Tensor:
    """What a response loses for its length (soft overlong punishment, DAPO, arXiv 2503.14476).

        0 up to max_length - buffer, then falling to -coef at max_length, and -coef beyond

    Returns:
        float64 [S].

    Raises:
        ValueError: unless 0 < buffer <= max_length.

    >>> overlong_penalty(torch.tensor([700, 800, 900, 1000, 1100]), max_length=1000, buffer=200)
    tensor([ 0.0000,  0.0000, -0.5000, -1.0000, -1.0000], dtype=torch.float64)
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"buffer: found {buffer}, expected above 0 and at most max_length ({max_length})")
    return coef * (((max_length - buffer) - L_S.double()) / buffer).clamp(-1, 0)


@torch.no_grad()
def concise_outcomes(R_S: Tensor, L_S: Tensor, group_S: Tensor, *, max_length: int, coef: float) -> Tensor:
    """A bonus for short responses, only where every member of the group is right (ConciseR, arXiv 2505.21178).

        R_i = 1 + coef (1 - L_i / max_length)   in groups whose outcomes are all 1;    R_i elsewhere

    The gate is the paper's ("walk before you run"). Its formula of the length reward could not be read; this is ours.
    Dividing by the group's standard deviation takes ``coef`` out again, so use advantages without scale.

    Raises:
        ValueError: on a shape mismatch, a group number outside 0..S-1 or a max_length that is not above 0.

    >>> R, L = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([100, 200, 300, 400])
    >>> concise_outcomes(R, L, torch.zeros(4, dtype=torch.int64), max_length=1000, coef=1.0)
    tensor([1.9000, 1.8000, 1.7000, 1.6000])
    """
    check_like("L_S", L_S, R_S, what="response")
    if not max_length > 0:
        raise ValueError(f"max_length: found {max_length}, expected above 0")
    lowest_S, _ = group_extremes(R_S, group_S)
    bonus_S = coef * (1 - L_S.to(R_S.dtype) / max_length)
    return torch.where(lowest_S >= 1, R_S + bonus_S, R_S)


@torch.no_grad()
def linear_length_outcomes(R_S: Tensor, L_S: Tensor, group_S: Tensor, *, coef: float = 0.25) -> Tensor:
    """Less for long responses, more so where the group mostly succeeds (prime-rl).

        R_i - passrate coef L_i / max_j L_j        passrate: share of the group's outcomes above 0

    Raises:
        ValueError: on a shape mismatch or a group number outside 0..S-1.

    >>> R, L = torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([100, 200, 300, 400])
    >>> linear_length_outcomes(R, L, torch.zeros(4, dtype=torch.int64))
    tensor([ 0.9531,  0.9062, -0.1406,  0.8125])
    """
    check_like("L_S", L_S, R_S, what="response")
    length_S = L_S.to(R_S.dtype)
    _, longest_S = group_extremes(length_S, group_S)
    return R_S - group_mean((R_S > 0).to(R_S.dtype), group_S) * coef * length_S / longest_S.clamp(min=1)


@torch.no_grad()
def kimi_length_reward(R_S: Tensor, L_S: Tensor, group_S: Tensor) -> Tensor:
    """The length reward of Kimi k1.5 (arXiv 2501.12599), to be added to the outcome.

        lambda_i = 1/2 - (L_i - min L) / (max L - min L);   right: lambda_i;   wrong: min(0, lambda_i)

    and 0 for equal lengths.

    Raises:
        ValueError: on a shape mismatch or a group number outside 0..S-1.

    >>> R, L = torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([100, 200, 300, 400])
    >>> kimi_length_reward(R, L, torch.zeros(4, dtype=torch.int64))
    tensor([ 0.5000,  0.1667, -0.1667, -0.5000])
    """
    check_like("L_S", L_S, R_S, what="response")
    length_S = L_S.to(R_S.dtype)
    shortest_S, longest_S = group_extremes(length_S, group_S)
    span_S = longest_S - shortest_S
    lam_S = 0.5 - (length_S - shortest_S) / torch.where(span_S > 0, span_S, 1.0)
    lam_S = torch.where(R_S > 0, lam_S, lam_S.clamp(max=0))
    return torch.where(span_S > 0, lam_S, 0.0)
