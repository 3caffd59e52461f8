"""Losses of one token, or of one response, other than the clipped one, written as on paper."""

from __future__ import annotations

import math

from reference.objectives import clip


def weighted_loss(logprob: float, advantage: float, weight: float = 1.0) -> float:
    """-w A log pi.

    >>> weighted_loss(-2.0, -1.0, 0.5)
    -1.0
    """
    return -weight * advantage * logprob


def gate_loss(log_ratio: float, advantage: float, *, tau_positive: float, tau_negative: float) -> float:
    """-A (4 / tau) sigmoid(tau (rho - 1)), tau = tau_positive where A > 0, else tau_negative.

    >>> round(gate_loss(math.log(1.5), 1.0, tau_positive=1.0, tau_negative=1.05), 4)
    -2.4898
    """
    tau = tau_positive if advantage > 0 else tau_negative
    rho = math.exp(clip(log_ratio, -20.0, 20.0))
    x = tau * (rho - 1)
    sigmoid = 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))
    return -advantage * 4 / tau * sigmoid


def square_loss(log_ratio: float, advantage: float, *, tau: float) -> float:
    """(A - tau log rho)^2, with log rho of the whole response.

    >>> round(square_loss(0.24, 0.5, tau=0.1), 6)
    0.226576
    """
    return (advantage - tau * log_ratio) ** 2
