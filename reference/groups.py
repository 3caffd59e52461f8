"""Advantages of the responses to one prompt, written as on paper. The outcomes of one group in, lists out."""

from __future__ import annotations

import math
from collections.abc import Sequence


def group_mean(outcomes: Sequence[float]) -> float:
    """mean = (1/G) sum_j R_j.

    >>> group_mean([1.0, 0.0, 0.0, 1.0])
    0.5
    """
    return math.fsum(outcomes) / len(outcomes)


def group_std(outcomes: Sequence[float]) -> float:
    """std = sqrt( sum_j (R_j - mean)^2 / (G - 1) ); 0 for one member or equal outcomes.

    >>> round(group_std([1.0, 0.0, 0.0, 1.0]), 7)
    0.5773503
    """
    if min(outcomes) == max(outcomes):
        return 0.0
    mean = group_mean(outcomes)
    return math.sqrt(math.fsum((outcome - mean) ** 2 for outcome in outcomes) / (len(outcomes) - 1))


def grpo_advantage(outcomes: Sequence[float], *, scale: bool, eps: float = 1e-6) -> list[float]:
    """A_i = (R_i - mean) / (std + eps), or A_i = R_i - mean without `scale`; 0 where all outcomes are equal.

    >>> [round(a, 7) for a in grpo_advantage([1.0, 0.0, 0.0, 1.0], scale=True)]
    [0.8660239, -0.8660239, -0.8660239, 0.8660239]
    """
    if min(outcomes) == max(outcomes):
        return [0.0] * len(outcomes)
    mean, unit = group_mean(outcomes), group_std(outcomes) + eps if scale else 1.0
    return [(outcome - mean) / unit for outcome in outcomes]


def rloo_advantage(outcomes: Sequence[float]) -> list[float]:
    """A_i = R_i - (1/(G-1)) sum_{j != i} R_j; 0 for one member, which has no others.

    >>> [round(a, 7) for a in rloo_advantage([1.0, 0.0, 0.0, 1.0])]
    [0.6666667, -0.6666667, -0.6666667, 0.6666667]
    """
    if len(outcomes) == 1:
        return [0.0]
    advantages = []
    for i, outcome in enumerate(outcomes):
        others = [other for j, other in enumerate(outcomes) if j != i]
        advantages.append(outcome - math.fsum(others) / len(others))
    return advantages
