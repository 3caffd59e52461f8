"""Value targets of one response and the loss of one token, written as on paper."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from reference.advantages import Floats, discounted_sums
from reference.objectives import clip


def discounted_returns(rewards: Floats, *, gamma: float) -> NDArray[np.float64]:
    """G_t = sum_{j>=t} gamma^(j-t) r_j, the Monte-Carlo target.

    >>> discounted_returns([0, 0, 1], gamma=0.5).tolist()
    [0.25, 0.5, 1.0]
    """
    return discounted_sums(rewards, gamma)


def n_step_return(rewards: Floats, values: Floats, t: int, n: int, *, gamma: float) -> float:
    """G_t^(n) = sum_{j=0}^{n-1} gamma^j r_{t+j} + gamma^n V(s_{t+n}), with V = 0 at the end of the response.

    >>> n_step_return([0, 1], [0.5, 0.25], 0, 1, gamma=1)
    0.25
    """
    total = 0.0
    for j in range(n):
        total += gamma**j * rewards[t + j]
    if t + n < len(rewards):
        total += gamma**n * values[t + n]
    return float(total)


def lambda_returns(rewards: Floats, values: Floats, *, gamma: float, lam: float) -> NDArray[np.float64]:
    """G_t = (1 - lam) sum_{n=1}^{l-t-1} lam^(n-1) G_t^(n) + lam^(l-t-1) G_t^(l-t), the average of n-step returns.

    >>> lambda_returns([0, 1], [0.5, 0.25], gamma=1, lam=0.5).tolist()
    [0.625, 1.0]
    """
    length = len(rewards)
    targets = np.zeros(length)
    for t in range(length):
        for n in range(1, length - t):
            targets[t] += (1 - lam) * lam ** (n - 1) * n_step_return(rewards, values, t, n, gamma=gamma)
        targets[t] += lam ** (length - t - 1) * n_step_return(rewards, values, t, length - t, gamma=gamma)
    return targets


def bootstrapped_returns(
    rewards: Floats, values: Floats, behind: float, *, gamma: float, lam: float
) -> NDArray[np.float64]:
    """Value targets of a cut window, the average of n-step returns. The longest bootstraps with V(s_l) = behind:

        G_t = (1 - lam) sum_{n=1}^{l-t-1} lam^(n-1) G_t^(n) + lam^(l-t-1) (G_t^(l-t) + gamma^(l-t) behind)

    >>> bootstrapped_returns([0, 0], [0.5, 0.25], 0.75, gamma=1, lam=0.5).tolist()
    [0.5, 0.75]
    """
    targets = lambda_returns(rewards, values, gamma=gamma, lam=lam)
    length = len(rewards)
    for t in range(length):
        targets[t] += lam ** (length - t - 1) * gamma ** (length - t) * behind
    return targets


def value_loss(
    value: float, old_value: float, target: float, *, clip_low: float | None, clip_high: float | None
) -> float:
    """max((V - G)^2, (V_c - G)^2) / 2 with V_c = clip(V, V_old - eps_l, V_old + eps_h); None leaves a side open.

    >>> round(value_loss(0.9, 0.2, 1.0, clip_low=0.5, clip_high=0.6), 12)
    0.02
    """
    low = -math.inf if clip_low is None else old_value - clip_low
    high = math.inf if clip_high is None else old_value + clip_high
    return 0.5 * max((value - target) ** 2, (clip(value, low, high) - target) ** 2)


def explained_variance(values: Floats, targets: Floats) -> float | None:
    """1 - Var(G - V) / Var(G) over tokens; None for fewer than two tokens or targets that do not vary.

    >>> explained_variance([0.5, 0.5], [0.0, 1.0]), explained_variance([0.0, 0.9], [1.0, 1.0])
    (0.0, None)
    """
    count = len(targets)
    if count < 2:
        return None
    errors = [g - v for g, v in zip(targets, values, strict=True)]

    def variance(x: list[float]) -> float:
        mean = math.fsum(x) / count
        return math.fsum((entry - mean) ** 2 for entry in x) / (count - 1)

    spread = variance([float(g) for g in targets])
    return None if spread == 0 else 1 - variance([float(e) for e in errors]) / spread
