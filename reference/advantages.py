"""Advantages of one response, written as on paper. Lists or arrays in, float64 arrays out.

Nothing here is fast. Sums are sums over j, not recursions, so that recursions elsewhere can be held against them.
`rewards[t]`, `values[t]` belong to token t of the window, 0 <= t < l. Evidence for every equation: `equations.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = Sequence[float] | NDArray[np.float64]


def cut_value(values: Floats, finished: bool, *, boundary: str = "repeat", cut: float | None = None) -> float:
    """V(s_l), what is assumed to lie behind the last token of a window.

    >>> cut_value([0.2, 0.7], finished=False)
    0.7
    """
    if finished:
        return 0.0
    if boundary == "repeat":
        return float(values[-1])
    if boundary == "critic":
        if cut is None:
            raise ValueError("cut: found None, expected V(s_l)")
        return float(cut)
    if boundary == "terminal":
        return 0.0
    raise ValueError(f"boundary: found {boundary!r}, expected repeat, critic or terminal")


def td_errors(rewards: Floats, values: Floats, behind: float, *, gamma: float) -> NDArray[np.float64]:
    """delta_t = r_t + gamma V(s_{t+1}) - V(s_t), with V(s_l) = `behind`.

    >>> td_errors([0, 1], [0.5, 0.25], 0.0, gamma=1).tolist()
    [-0.25, 0.75]
    """
    length = len(rewards)
    delta = np.zeros(length)
    for t in range(length):
        following = behind if t == length - 1 else values[t + 1]
        delta[t] = rewards[t] + gamma * following - values[t]
    return delta


def discounted_sums(terms: Floats, decay: float) -> NDArray[np.float64]:
    """S_t = sum_{j=0}^{l-1-t} decay^j x_{t+j}.

    >>> discounted_sums([1, 1, 1], 0.5).tolist()
    [1.75, 1.5, 1.0]
    """
    length = len(terms)
    sums = np.zeros(length)
    for t in range(length):
        for j in range(length - t):
            sums[t] += decay**j * terms[t + j]
    return sums


def egae(
    rewards: Floats,
    values: Floats,
    finished: bool,
    *,
    gamma: float,
    lam: float,
    boundary: str = "repeat",
    cut: float | None = None,
) -> NDArray[np.float64]:
    """A_t = sum_{j=0}^{l-1-t} (gamma lam)^j delta_{t+j} over one window (T-PPO, Eq. 6).

    >>> egae([0, 0, 0, 0], [0.2, 0.4, 0.5, 0.7], False, gamma=1.0, lam=0.95).round(4).tolist()
    [0.4755, 0.29, 0.2, 0.0]
    """
    if len(rewards) == 0:
        return np.zeros(0)
    behind = cut_value(values, finished, boundary=boundary, cut=cut)
    return discounted_sums(td_errors(rewards, values, behind, gamma=gamma), gamma * lam)


def gae(rewards: Floats, values: Floats, *, gamma: float, lam: float) -> NDArray[np.float64]:
    """A_t = sum_j (gamma lam)^j delta_{t+j} of an ended response, V(s_l) = 0 (arXiv 1506.02438).

    >>> gae([0, 1], [0.5, 0.25], gamma=1, lam=1).tolist()
    [0.5, 0.75]
    """
    return discounted_sums(td_errors(rewards, values, 0.0, gamma=gamma), gamma * lam)


def cut_window_closed_form(values: Floats, *, lam: float) -> NDArray[np.float64]:
    """EGAE of an unfinished window without reward at gamma = 1, n = l-1-t:

        A_{l-1} = 0
        A_t = -V_t + (1 - lam) sum_{k=1}^{n-1} lam^{k-1} V_{t+k} + lam^{n-1} V_{l-1}

    >>> cut_window_closed_form([0.2, 0.4, 0.5, 0.7], lam=0.95).round(4).tolist()
    [0.4755, 0.29, 0.2, 0.0]
    """
    length = len(values)
    advantages = np.zeros(length)
    for t in range(length - 1):
        n = length - 1 - t
        advantages[t] = -values[t] + lam ** (n - 1) * values[length - 1]
        for k in range(1, n):
            advantages[t] += (1 - lam) * lam ** (k - 1) * values[t + k]
    return advantages


def expected_length(length: float, finished: bool, *, window: float, max_length: float) -> float:
    """L = length of a finished response, else min(length + window / 2, max_length).

    >>> expected_length(8192, False, window=8192, max_length=24576)
    12288.0
    """
    return float(length) if finished else float(min(length + window / 2, max_length))


def length_adaptive_lambda(
    length: float, finished: bool, *, alpha: float, lam_min: float, window: float, max_length: float
) -> float:
    """lam = max(lam_min, 1 - 1 / (alpha L)).

    >>> length_adaptive_lambda(100, True, alpha=0.05, lam_min=0.0, window=8192, max_length=24576)
    0.8
    """
    expected = expected_length(length, finished, window=window, max_length=max_length)
    if expected == 0:
        return lam_min  # 1 - 1/0 lies below every floor.
    return max(lam_min, 1 - 1 / (alpha * expected))
