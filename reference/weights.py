"""Weights and trust regions from two policies, written as on paper, for a token or the tokens of one response."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reference.objectives import clip


def levelled(log_ratios: Sequence[float], keep: Sequence[bool], *, level: str) -> list[float]:
    """token: d_t. mean: (1/n) sum_t d_t, product: sum_t d_t over the n kept tokens, the same for every token.

    >>> [round(d, 12) for d in levelled([0.1, 0.3, 5.0], [True, True, False], level="mean")]
    [0.2, 0.2, 0.2]
    """
    if level == "token":
        return list(log_ratios)
    kept = [d for d, k in zip(log_ratios, keep, strict=True) if k]
    whole = math.fsum(kept) / (max(len(kept), 1) if level == "mean" else 1)
    return [whole] * len(log_ratios)


def weight(log_ratio: float, *, low: float, high: float, outside: str) -> float:
    """rho = exp(d), d within +-20; outside [low, high] the nearer end ("clamp") or 0 ("zero").

    >>> [weight(math.log(6.5), low=0.5, high=5.0, outside=outside) for outside in ("clamp", "zero")]
    [5.0, 0.0]
    """
    rho = math.exp(clip(log_ratio, -20.0, 20.0))
    if low <= rho <= high:
        return rho
    return clip(rho, low, high) if outside == "clamp" else 0.0


def bernoulli_kl(mu: float, pi: float) -> float:
    """KL(mu || pi) = mu log(mu / pi) + (1 - mu) log((1 - mu) / (1 - pi)); 0 log 0 = 0, infinite where pi rules out.

    >>> bernoulli_kl(0.5, 0.5), bernoulli_kl(1.0, 0.0)
    (0.0, inf)
    """
    total = 0.0
    for p, q in ((mu, pi), (1 - mu, 1 - pi)):
        if p > 0:
            total += p * math.log(p / q) if q > 0 else math.inf
    return total


def trusted(logprob: float, behaviour: float, advantage: float, *, low: float, high: float, kind: str) -> bool:
    """Whether a token may still be pushed: not where A > 0 and pi is above mu by more than `high`, nor where A < 0 and
    it is below by more than `low`; by |pi - mu| ("tv") or by KL(mu || pi) ("kl").

    >>> trusted(math.log(0.95), math.log(0.6), 1.0, low=0.15, high=0.15, kind="tv")
    False
    """
    pi, mu = math.exp(logprob), math.exp(behaviour)
    apart = abs(pi - mu) if kind == "tv" else bernoulli_kl(mu, pi)
    if advantage > 0 and pi > mu:
        return not apart > high
    if advantage < 0 and pi < mu:
        return not apart > low
    return True


def on_policy_enough(
    log_ratios: Sequence[float], keep: Sequence[bool], advantages: Sequence[float], *, bound: float
) -> list[bool]:
    """Drop the tokens with A < 0 of a response whose mean log(mu / pi) exceeds the bound.

    >>> on_policy_enough([-0.9, -0.3], [True, True], [-1.0, 1.0], bound=0.5)
    [False, True]
    """
    away = [-d for d in levelled(log_ratios, keep, level="mean")]
    return [not (a < 0 and x > bound) for a, x in zip(advantages, away, strict=True)]
