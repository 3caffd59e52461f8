"""Exact moments of windowed advantage estimators on the tokens that a filter keeps.

T-PPO drops the last m tokens of a window that the response outlives, and keeps every token of one in which it ends. So
whether token t trains is decided after t: with l the end of its window,

    K_t = 1    if t < l - m, or l = H (the cap ends the response)
    K_t = F    otherwise, F = 1{the response ends by itself at one of the tokens t..l-1}.

A filter that looks ahead is a selection. With X_t the estimate of `sim.exact.moments` ("egae", boundary and critic as
there), the expected update of a policy-gradient step is that of the advantage E[K_t X_t | s_t = s, a_t = a] = mean *
P(K_t = 1) plus their covariance. It can be biased where X_t is not.

The recursion. One step's outcome o gives the error d_o and the next state s'_o. Let f(s), M(s), Q(s) be E[F], E[F X]
and E[F X^2] from state s on, the token being drawn from the policy. With c = gamma lambda and inside a window

    E[F     | t, s, a] = E_o[ f_o ]                                     f_o = 1 where o ends the response, else f(s'_o)
    E[F X   | t, s, a] = E_o[ d_o f_o + c M(s'_o) ]                       M = Q = 0 where nothing follows
    E[F X^2 | t, s, a] = E_o[ d_o^2 f_o + 2 c d_o M(s'_o) + c^2 Q(s'_o) ]

At the window's last token f_o = 0 where the response goes on. With f = 1 everywhere the same lines give E[X], E[X^2].

Cost: two backward passes over the whole table at a time, S*A*K numbers; for small tables.

Shape suffixes: _H time, _S states, _A tokens, _K outcomes.
"""

from dataclasses import dataclass

import numpy as np

from sim.exact.moments import Boundary, check_choice, check_critic
from sim.exact.values import check_policy, gather_next, policy_at
from sim.mdp.table import TERMINAL, Floats, TokenMDP


@dataclass(frozen=True)
class KeptMoments:
    """Moments of an advantage estimate X on tokens that train, given that token a is sampled in state s at time t.

    K is 1 where the token trains, else 0.
    """

    kept_HSA: Floats  # [H, S, A] E[K], the chance that the token trains
    first_HSA: Floats  # [H, S, A] E[K X]
    second_HSA: Floats  # [H, S, A] E[K X^2]


def kept_moments(
    mdp: TokenMDP,
    policy: Floats,
    critic: Floats,
    *,
    boundary: Boundary,
    window: int,
    ignore_last: int,
    gamma: float = 1.0,
    lam: float = 1.0,
) -> KeptMoments:
    """Compute the moments of EGAE on the tokens that train; the module docstring has the derivation.

    Args:
        policy, critic, boundary, window, gamma, lam: as in `sim.exact.moments.estimator_moments` for "egae".
        ignore_last: m, tokens dropped before the cut of an unfinished window. 0 keeps all; m >= window keeps nothing
            of a window that the response outlives.

    >>> from sim.mdp.families import combination_lock
    >>> lock, uniform = combination_lock(length=1, num_tokens=2, horizon=4, seed=0), np.full((2, 2), 0.5)
    >>> kept_moments(lock, uniform, np.zeros(2), boundary="repeat", window=2, ignore_last=2).kept_HSA[:, 0].tolist()
    [[1.0, 0.5], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    """
    check_choice("egae", boundary, window, lam)
    if ignore_last < 0:
        raise ValueError(f"ignore_last: found {ignore_last}; expected at least 0; pass the number of tokens to drop.")
    policy, critic_HS = check_policy(mdp, policy), check_critic(mdp, critic)
    chosen = []
    for ends_only in (False, True):
        chosen.append(_pass(mdp, policy, critic_HS, boundary, window, gamma, lam, ends_only))
    t_H = np.arange(mdp.horizon)
    stop_H = np.minimum((t_H // window + 1) * window, mdp.horizon)
    always_H = (t_H < stop_H - ignore_last) | (stop_H == mdp.horizon)
    pairs = zip(*chosen, strict=True)
    return KeptMoments(*(np.where(always_H[:, None, None], all_HSA, ends_HSA) for all_HSA, ends_HSA in pairs))


def _pass(
    mdp: TokenMDP,
    policy: Floats,
    critic_HS: Floats,
    boundary: Boundary,
    window: int,
    gamma: float,
    lam: float,
    ends_only: bool,
) -> tuple[Floats, Floats, Floats]:
    """Backward pass for E[F], E[F X] and E[F X^2], all [H, S, A]; F = 1 everywhere unless `ends_only`."""
    horizon, c = mdp.horizon, gamma * lam
    everything = slice(0, mdp.num_states)
    goes_on_SAK = (mdp.next_SAK != TERMINAL).astype(np.float64)
    shape = (horizon, mdp.num_states, mdp.num_tokens)
    moments = (np.empty(shape), np.empty(shape), np.empty(shape))
    f_S = M_S = Q_S = np.zeros(mdp.num_states)
    for t in reversed(range(horizon)):
        last = t + 1 == horizon or (t + 1) % window == 0
        cut = last and t + 1 < horizon
        if last:
            f_S = np.full(mdp.num_states, 0.0 if cut and ends_only else 1.0)
            M_S = Q_S = np.zeros(mdp.num_states)
        d_SAK = mdp.reward_SAK - critic_HS[t][:, None, None]
        if cut and boundary == "repeat":
            d_SAK = d_SAK + gamma * critic_HS[t][:, None, None] * goes_on_SAK
        elif not last or (cut and boundary == "critic"):
            d_SAK = d_SAK + gamma * gather_next(mdp, critic_HS[t + 1], everything)
        f_SAK = 1.0 - goes_on_SAK + gather_next(mdp, f_S, everything)
        M_SAK, Q_SAK = gather_next(mdp, M_S, everything), gather_next(mdp, Q_S, everything)
        terms = (f_SAK, d_SAK * f_SAK + c * M_SAK, d_SAK**2 * f_SAK + 2 * c * d_SAK * M_SAK + c**2 * Q_SAK)
        for moment_HSA, term_SAK in zip(moments, terms, strict=True):
            moment_HSA[t] = np.einsum("sak,sak->sa", mdp.prob_SAK, term_SAK)
        policy_SA = policy_at(policy, t)
        f_S, M_S, Q_S = (np.einsum("sa,sa->s", policy_SA, moment_HSA[t]) for moment_HSA in moments)
    return moments
