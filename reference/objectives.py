"""Losses of one token of the policy, written as on paper."""

from __future__ import annotations

import math


def clip(x: float, low: float, high: float) -> float:
    """min(max(x, low), high).

    >>> clip(1.5, 0.8, 1.28)
    1.28
    """
    return min(max(x, low), high)


def ratio(logprob: float, old_logprob: float) -> float:
    """rho = exp(log pi - log pi_old), the exponent limited to +-20.

    >>> ratio(-1.0, -1.0)
    1.0
    """
    return math.exp(clip(logprob - old_logprob, -20.0, 20.0))


def ppo_clip(rho: float, advantage: float, *, clip_low: float, clip_high: float) -> float:
    """max(-rho A, -clip(rho, 1 - eps_l, 1 + eps_h) A); clip-higher when eps_h > eps_l.

    >>> ppo_clip(1.5, 1.0, clip_low=0.2, clip_high=0.28)
    -1.28
    """
    return max(-rho * advantage, -clip(rho, 1 - clip_low, 1 + clip_high) * advantage)


def dual_clip(loss: float, advantage: float, *, bound: float) -> float:
    """min(loss, -c A) where A < 0.

    >>> dual_clip(5.0, -1.0, bound=3.0)
    3.0
    """
    return min(loss, -bound * advantage) if advantage < 0 else loss


def decoupled_ppo(
    logprob: float,
    proximal_logprob: float,
    behaviour_logprob: float,
    advantage: float,
    *,
    clip_low: float,
    clip_high: float,
) -> float:
    """-(pi_prox / pi_beh) min(u A, clip(u, 1 - eps_l, 1 + eps_h) A), u = pi / pi_prox (AReaL, arXiv 2505.24298).

    The clip range is around pi_prox, the policy before the update; the factor corrects for the one that sampled.

    >>> round(decoupled_ppo(math.log(0.3), math.log(0.25), math.log(0.2), 1.0, clip_low=0.2, clip_high=0.2), 12)
    -1.5
    """
    u = ratio(logprob, proximal_logprob)
    return math.exp(proximal_logprob - behaviour_logprob) * ppo_clip(
        u, advantage, clip_low=clip_low, clip_high=clip_high
    )


def truncated_importance_weight(old_logprob: float, behaviour_logprob: float, *, cap: float) -> float:
    """w = min(pi_old / pi_behaviour, C), for an engine whose log-probs differ from the trainer's."""
    return min(math.exp(old_logprob - behaviour_logprob), cap)


def lm_loss(logprob: float) -> float:
    """-log pi(y_t), for tokens of positive examples.

    >>> lm_loss(-0.5)
    0.5
    """
    return -logprob


def kl_k1(d: float) -> float:
    """k1 = d, d = log pi - log other.

    >>> kl_k1(0.1)
    0.1
    """
    return d


def kl_k2(d: float) -> float:
    """k2 = d^2 / 2.

    >>> round(kl_k2(0.1), 12)
    0.005
    """
    return d**2 / 2


def kl_k3(d: float) -> float:
    """k3 = exp(-d) + d - 1.

    >>> round(kl_k3(0.1), 7)
    0.0048374
    """
    return math.exp(-d) + d - 1


def kl_abs(d: float) -> float:
    """|d|.

    >>> kl_abs(-0.1)
    0.1
    """
    return abs(d)
