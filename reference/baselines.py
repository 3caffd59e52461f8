"""Baselines and scales beyond the mean of the group, written as on paper. The outcomes of one group in, lists out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reference.groups import group_mean
from reference.masks import moments


def length_baseline_advantage(outcomes: Sequence[float], lengths: Sequence[int], *, own: bool) -> list[float]:
    """A_i = R_i - sum_j L_j R_j / sum_j L_j over the group, or without `own` over the others. Lengths that are all 0
    weigh the same; 0 for one member and for equal outcomes.

    >>> length_baseline_advantage([1.0, 0.0, 0.0, 0.0], [10, 20, 30, 40], own=True)
    [0.9, -0.1, -0.1, -0.1]
    """
    if min(outcomes) == max(outcomes):
        return [0.0] * len(outcomes)
    advantages = []
    for i, outcome in enumerate(outcomes):
        others = [j for j in range(len(outcomes)) if own or j != i]
        weights = [lengths[j] for j in others] if any(lengths[j] for j in others) else [1] * len(others)
        total = math.fsum(w * outcomes[j] for w, j in zip(weights, others, strict=True))
        advantages.append(outcome - total / sum(weights))
    return advantages


def batch_scaled(advantages: Sequence[float], *, of: Sequence[float] | None = None, eps: float = 1e-6) -> list[float]:
    """A_i / (std + eps), std with n - 1 of the whole batch's outcomes, or of the advantages themselves; A_i at std 0.

    >>> [round(a, 4) for a in batch_scaled([0.5, -0.5, 0.0, 0.0], of=[1.0, 0.0, 0.0, 0.0], eps=1e-12)]
    [1.0, -1.0, 0.0, 0.0]
    """
    _, variance = moments(advantages if of is None else of)
    return [a / (math.sqrt(variance) + eps) if variance else a for a in advantages]


def success_scaled_advantage(outcomes: Sequence[float], *, all_wrong: float = 0.0) -> list[float]:
    """A_i = (R_i - mean) / mean; `all_wrong` where the mean is 0.

    >>> success_scaled_advantage([1.0, 0.0, 0.0, 0.0])
    [3.0, -1.0, -1.0, -1.0]
    """
    mean = group_mean(outcomes)
    if mean == 0:
        return [all_wrong] * len(outcomes)
    if min(outcomes) == max(outcomes):
        return [0.0] * len(outcomes)
    return [(outcome - mean) / mean for outcome in outcomes]


def posterior_weights(outcomes: Sequence[float]) -> list[float]:
    """w_i = G R_i / sum_j R_j; 0 where the sum is 0.

    >>> posterior_weights([1.0, 0.0, 3.0, 0.0])
    [1.0, 0.0, 3.0, 0.0]
    """
    total = math.fsum(outcomes)
    return [len(outcomes) * outcome / total if total else 0.0 for outcome in outcomes]


def reference_margin(outcome: float, reference: float, *, low: float, high: float) -> float:
    """min(max(R - R_ref, -low), high).

    >>> reference_margin(1.0, 0.0, low=0.2, high=0.28)
    0.28
    """
    return min(max(outcome - reference, -low), high)


def energy_advantage(returns: Sequence[Sequence[float]], energies: Sequence[Sequence[float]]) -> list[list[float]]:
    """A_i,t = G_i,t - B_t with B_t = sum_i G_i,t W_i,t / sum_i W_i,t over the members of the group that have a token t;
    B_t = 0 where one is left or all W are 0.

    >>> energy_advantage([[1.0, 1.0, 1.0], [0.0, 0.0]], [[0.5, 1.0, 1.2], [0.5, 0.8]])[0]
    [0.5, 0.4444444444444444, 1.0]
    """
    advantages = []
    for row in returns:
        found = []
        for t, value in enumerate(row):
            alive = [j for j, other in enumerate(returns) if len(other) > t]
            weight = math.fsum(energies[j][t] for j in alive)
            if len(alive) > 1 and weight > 0:
                value = value - math.fsum(returns[j][t] * energies[j][t] for j in alive) / weight
            found.append(value)
        advantages.append(found)
    return advantages


def signed_weights(outcomes: Sequence[float]) -> list[float]:
    """c sqrt((1-p)/p) for right answers (R > 0), -c sqrt(p/(1-p)) for wrong ones, c = sqrt((G-1)/G); 0 if all agree.

    >>> [round(w, 12) for w in signed_weights([1.0, 0.0, 0.0, 0.0])]
    [1.5, -0.5, -0.5, -0.5]
    """
    size = len(outcomes)
    right = sum(outcome > 0 for outcome in outcomes)
    if right in (0, size):
        return [0.0] * size
    p, c = right / size, math.sqrt((size - 1) / size)
    return [c * math.sqrt((1 - p) / p) if outcome > 0 else -c * math.sqrt(p / (1 - p)) for outcome in outcomes]


def prompt_mean_scale(lengths: Sequence[int], groups: Sequence[int]) -> list[float]:
    """f_i = S / (P n_g): S responses that have a token, P groups, n_g tokens in the group of i; 0 without tokens.

    >>> prompt_mean_scale([1, 3, 2, 2], [0, 0, 1, 1])
    [0.5, 0.5, 0.5, 0.5]
    """
    tokens = {g: sum(n for n, other in zip(lengths, groups, strict=True) if other == g) for g in groups}
    responses, prompts = sum(n > 0 for n in lengths), sum(n > 0 for n in tokens.values())
    return [responses / (prompts * tokens[g]) if tokens[g] else 0.0 for g in groups]
