"""Advantages from the outcomes of a group: all responses to one prompt.

Shapes: `_S` one entry per response. `R_S` holds outcomes, one number for a whole response; `group_S` int64, the group
of each response, numbered 0..G-1 without gaps, members in any order. Groups may have different sizes.

Sources: GRPO is arXiv 2402.03300, Dr.GRPO arXiv 2503.20783, RLOO arXiv 2402.14740. The formulas were read in the public
code of verl and TRL.

Deviations from the mean are exactly 0 where all members of a group have the same outcome, one member included. Nothing
can then be learned from the group, and round-off divided by a tiny standard deviation must not pretend otherwise. An
outcome that is not finite spoils its own group only.

Advantages are data for a loss, so none of them carries a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tppo.maths.ragged import check_flat_float, check_like


def _check_groups(R_S: Tensor, group_S: Tensor) -> None:
    check_flat_float("R_S", R_S)
    check_like("group_S", group_S, R_S, what="response")
    if group_S.dtype != torch.int64:
        raise ValueError(f"group_S: found {group_S.dtype}, expected int64")
    if group_S.numel():
        lowest, highest = torch.stack(torch.aminmax(group_S)).tolist()
        if lowest < 0 or highest >= group_S.numel():
            raise ValueError(
                f"group_S: found numbers from {lowest} to {highest}, expected groups numbered from 0 without gaps, "
                f"hence below {group_S.numel()}, the number of responses"
            )


def group_sums(x_S: Tensor, group_S: Tensor) -> Tensor:
    """Sum over the group of each response [S]. No more groups than responses, so S places are enough."""
    return torch.zeros_like(x_S).index_add_(0, group_S, x_S)[group_S]


def group_extremes(x_S: Tensor, group_S: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest of the group of each response, each [S].

    >>> [x.tolist() for x in group_extremes(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0, 0, 1]))]
    [[1.0, 1.0, 2.0], [3.0, 3.0, 2.0]]
    """
    _check_groups(x_S, group_S)
    empty_S = torch.zeros_like(x_S)
    low, high = (empty_S.scatter_reduce(0, group_S, x_S, how, include_self=False) for how in ("amin", "amax"))
    return low[group_S], high[group_S]


def _mean(R_S: Tensor, group_S: Tensor) -> Tensor:
    """`group_mean` without the checks. Summed from the lowest outcome up: of equal outcomes the mean is their value."""
    lowest_S = torch.zeros_like(R_S).scatter_reduce_(0, group_S, R_S, "amin", include_self=False)[group_S]
    return lowest_S + group_sums(R_S - lowest_S, group_S) / group_sums(torch.ones_like(R_S), group_S)


def _std(R_S: Tensor, group_S: Tensor) -> Tensor:
    """`group_std` without the checks."""
    size_S = group_sums(torch.ones_like(R_S), group_S)
    return (group_sums((R_S - _mean(R_S, group_S)).square(), group_S) / (size_S - 1).clamp(min=1)).sqrt()


@torch.no_grad()
def group_mean(R_S: Tensor, group_S: Tensor) -> Tensor:
    """Mean outcome of the group of each response, mean_i = (1/n) sum_j R_j over the n members j of the group of i.

    Args:
        R_S: float32 or float64.
        group_S: int64.

    Returns:
        Means [S], in the dtype of `R_S`; the same for all members.

    Raises:
        ValueError: on a wrong rank, shape or dtype, or a group number outside 0..S-1.

    >>> group_mean(torch.tensor([1.0, 0.0, 0.0, 4.0]), torch.tensor([0, 0, 1, 1]))
    tensor([0.5000, 0.5000, 2.0000, 2.0000])
    """
    _check_groups(R_S, group_S)
    return _mean(R_S, group_S)


@torch.no_grad()
def group_std(R_S: Tensor, group_S: Tensor) -> Tensor:
    """Standard deviation of the outcomes in the group of each response, from the unbiased variance.

        std_i = sqrt( sum_j (R_j - mean)^2 / (n - 1) )     over the n members j of the group of i

    and 0 for one member. The n - 1 is that of verl and TRL.

    Args, shapes and errors are those of `group_mean`.

    >>> group_std(torch.tensor([1.0, 0.0, 0.0, 1.0, 7.0]), torch.tensor([0, 0, 0, 0, 1]))
    tensor([0.5774, 0.5774, 0.5774, 0.5774, 0.0000])
    """
    _check_groups(R_S, group_S)
    return _std(R_S, group_S)


@torch.no_grad()
def grpo_advantage(R_S: Tensor, group_S: Tensor, *, scale: bool, eps: float = 1e-6) -> Tensor:
    """Outcome relative to the group, one advantage per response (GRPO, arXiv 2402.03300).

        A_i = (R_i - mean_i) / (std_i + eps)     scale
        A_i =  R_i - mean_i                      no scale: Dr.GRPO, arXiv 2503.20783

    with mean and std of `group_mean` and `group_std`. A_i = 0 for one member and for equal outcomes. verl takes eps =
    1e-6 and gives a response that is alone A = R; TRL takes 1e-4. For outcomes 0 and 1 eps hardly matters.

    The expectation without scale is that of RLOO times 1 - 1/n; scale gives prompts different weights.

    Args:
        R_S: float32 or float64.
        group_S: int64.
        scale: whether to divide by the standard deviation.
        eps: above 0; added to the standard deviation.

    Returns:
        Advantages [S], in the dtype of `R_S`.

    Raises:
        ValueError: on a wrong rank, shape or dtype, a group number outside 0..S-1 or an eps that is not above 0.

    >>> outcomes, group = torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.zeros(4, dtype=torch.int64)
    >>> grpo_advantage(outcomes, group, scale=True)
    tensor([ 0.8660, -0.8660, -0.8660,  0.8660])
    >>> grpo_advantage(outcomes, group, scale=False)
    tensor([ 0.5000, -0.5000, -0.5000,  0.5000])
    """
    _check_groups(R_S, group_S)
    if not eps > 0:
        raise ValueError(f"eps: found {eps}, expected a number above 0")
    deviation_S = R_S - _mean(R_S, group_S)
    if not scale:
        return deviation_S
    std_S = _std(R_S, group_S)
    return deviation_S / torch.where(std_S == 0, 1.0, std_S + eps)  # eps may be 0 in float32


@torch.no_grad()
def rloo_advantage(R_S: Tensor, group_S: Tensor) -> Tensor:
    """Outcome against the mean of the others in the group, one advantage per response (RLOO, arXiv 2402.14740).

        A_i = R_i - (1/(n-1)) sum_{j != i} R_j = n / (n - 1) (R_i - mean_i)

    The baseline does not depend on response i, so the policy gradient is unbiased for every n >= 2. A response that is
    alone has no baseline; it gets A = 0.

    Args, shapes, result and errors are those of `group_mean`.

    >>> rloo_advantage(torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.zeros(4, dtype=torch.int64))
    tensor([ 0.6667, -0.6667, -0.6667,  0.6667])
    """
    _check_groups(R_S, group_S)
    size_S = group_sums(torch.ones_like(R_S), group_S)
    return (R_S - _mean(R_S, group_S)) * (size_S / (size_S - 1).clamp(min=1))


@torch.no_grad()
def signed_weights(R_S: Tensor, group_S: Tensor) -> Tensor:
    """The two weights of right and wrong answers that make fine-tuning GRPO's first update (arXiv 2505.13697).

        right: c sqrt((1 - p) / p),    wrong: -c sqrt(p / (1 - p)),    c = sqrt((n - 1) / n)

    with p the share of right answers (outcomes above 0) in the group of n; 0 where all or none are right. Equal to
    `grpo_advantage` with scale for outcomes 0 and 1, but for its eps.

    Args, shapes and errors are those of `group_mean`.

    >>> signed_weights(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.int64))
    tensor([ 1.5000, -0.5000, -0.5000, -0.5000])
    """
    _check_groups(R_S, group_S)
    right_S = torch.where(R_S.isfinite(), (R_S > 0).to(R_S.dtype), torch.nan)
    size_S = group_sums(torch.ones_like(R_S), group_S)
    p_S = group_sums(right_S, group_S) / size_S
    spread_S = (p_S * (1 - p_S)).sqrt()  # (1 - p) / spread and -p / spread are the two roots above.
    return torch.where(spread_S == 0, 0.0, ((size_S - 1) / size_S).sqrt() * (right_S - p_S) / spread_S)
