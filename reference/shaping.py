"""Outcomes that depend on length, written as on paper. One response, or the responses of one group."""

from __future__ import annotations

from collections.abc import Sequence

from reference.objectives import clip


def overlong_penalty(length: int, *, max_length: int, buffer: int, coef: float = 1.0) -> float:
    """coef ((L_max - buffer) - L) / buffer, between -coef and 0.

    >>> [overlong_penalty(n, max_length=1000, buffer=200) for n in (700, 900, 1100)]
    [0.0, -0.5, -1.0]
    """
    return coef * clip(((max_length - buffer) - length) / buffer, -1.0, 0.0)


def concise_outcomes(outcomes: Sequence[float], lengths: Sequence[int], *, max_length: int, coef: float) -> list[float]:
    """R_i + coef (1 - L_i / L_max) where every member of the group is right, R_i elsewhere.

    >>> concise_outcomes([1.0, 1.0], [100, 400], max_length=1000, coef=1.0)
    [1.9, 1.6]
    """
    if any(outcome < 1 for outcome in outcomes):
        return list(outcomes)
    return [outcome + coef * (1 - n / max_length) for outcome, n in zip(outcomes, lengths, strict=True)]


def linear_length_outcomes(outcomes: Sequence[float], lengths: Sequence[int], *, coef: float = 0.25) -> list[float]:
    """R_i - (share of outcomes above 0) coef L_i / max_j L_j.

    >>> linear_length_outcomes([1.0, 0.0], [100, 200], coef=0.5)
    [0.875, -0.25]
    """
    rate = sum(outcome > 0 for outcome in outcomes) / len(outcomes)
    longest = max(*lengths, 1)
    return [outcome - rate * coef * n / longest for outcome, n in zip(outcomes, lengths, strict=True)]


def kimi_length_reward(outcomes: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """lambda = 1/2 - (L - min) / (max - min) for right answers, min(0, lambda) for wrong ones; 0 for equal lengths.

    >>> kimi_length_reward([1.0, 1.0, 0.0], [100, 200, 300])
    [0.5, 0.0, -0.5]
    """
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    lam = [0.5 - (n - shortest) / (longest - shortest) for n in lengths]
    return [x if outcome > 0 else min(0.0, x) for outcome, x in zip(outcomes, lam, strict=True)]
