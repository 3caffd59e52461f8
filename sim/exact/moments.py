"""Exact mean and variance of advantage estimators at every (time, state, token).

The estimators. With any critic table v_t(s), c = gamma lambda and one-step errors d,

    X_t = sum_{j=0}^{l-1-t} c^j d_{t+j},   that is   X_t = d_t + c X_{t+1},  X_l = 0,

where l is where the sum stops: the end of the response for "gae", the end of the current window for "egae". Windows
tile [0, H): a token t of window k = t // W has l = min((k+1) W, H). The error of an outcome (s', r) is

    d = r + gamma v_{t+1}(s') - v_t(s)      inside the window, the response goes on
    d = r - v_t(s)                          the response ends (EOS), or t = H-1 (LENGTH): nothing follows
    d = r + (gamma - 1) v_t(s)              t = l-1 < H-1, the response goes on, boundary "repeat": v_l := v_{l-1}
    d = r + gamma v_l(s') - v_t(s)          same, boundary "critic": v_l is the critic's own
    d = r - v_t(s)                          same, boundary "terminal": v_l := 0

A response that ends in the window's last slot is finished, not cut. "monte-carlo" is the discounted return less v_t(s).

The recursion. Condition on (t, s, a). Let M(s'), V(s') be the mean and variance of X_{t+1} when the next token is
drawn from the policy in s' (both 0 where nothing follows), and x_o = d_o + c M(s'_o). Then

    mean(t, s, a) = E_o[x_o]
    var (t, s, a) = Var_o[x_o] + c^2 E_o[V(s'_o)]                         law of total variance
    M(s) = E_a[mean(t, s, a)],   V(s) = E_a[var(t, s, a)] + Var_a[mean(t, s, a)]

This is the recursion on first and second moments, rearranged. Every term of the variance is a sum of squares times
probabilities. It cannot come out negative, nothing cancels, and nothing has to be clipped.

What is unbiased. Let the critic be exact (v = V of this policy at this gamma) and A the exact advantage. Then the
critic's error has mean A at t and mean 0 at every later token. Hence, for every (t, s, a) and every lambda:

    "gae", and "egae" with boundary "critic":   mean(t, s, a) = A_t(s, a)
    "egae" with boundary "repeat":              mean(t, s, a) = A_t(s, a) + gamma c^{l-1-t} b(t, s, a)
                                                b = E[ 1{alive at l} (V_{l-1}(s_{l-1}) - V_l(s_l)) | s_t = s, a_t = a ]

for l < H, and b = 0 in the last window. For t < l-1 and gamma = 1, averaging over the last token gives

    b = E[ 1{alive at l-1} ( E[r_{l-1} | s_{l-1}] - P(end at l-1 | s_{l-1}) V_{l-1}(s_{l-1}) ) | s_t = s, a_t = a ].

So "repeat" is unbiased before the last token of a window when its last slot can bring neither a reward nor the end, or
when ending there pays V on average. Otherwise it is not: that a response goes on says something about its value. The
bias shrinks as lambda^{l-1-t}, hence not at all at lambda = 1. At the last token, t = l-1, the estimate is r_{l-1} if
the response goes on (0 without a reward), and r_{l-1} - V if it ends.

Shape suffixes: _H time, _S states, _A tokens, _K outcomes. H1 is H + 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from sim.exact.values import check_policy, gather_next, policy_at, state_blocks
from sim.mdp.table import TERMINAL, Floats, TokenMDP

Estimator = Literal["gae", "egae", "monte-carlo"]
Boundary = Literal["repeat", "critic", "terminal"]


@dataclass(frozen=True)
class EstimatorMoments:
    """Moments of an advantage estimate, given that token a is sampled in state s at time t."""

    mean_HSA: Floats  # [H, S, A]
    variance_HSA: Floats  # [H, S, A]


class MomentsAt(NamedTuple):
    """Moments of an advantage estimate at one time step."""

    t: int
    mean_SA: Floats  # [S, A]
    variance_SA: Floats  # [S, A]


def estimator_moments(
    mdp: TokenMDP,
    policy: Floats,
    critic: Floats,
    *,
    estimator: Estimator,
    boundary: Boundary | None = None,
    window: int | None = None,
    gamma: float = 1.0,
    lam: float = 1.0,
    dtype: DTypeLike = np.float64,
) -> EstimatorMoments:
    """Compute the moments of an estimator; the module docstring has the derivation.

    Args:
        policy: [S, A] or [H, S, A] probabilities that sample the tokens.
        critic: [S] or [H1, S] value table, right or wrong. Row H is never read: the cap ends the response.
        estimator: "gae" runs to the end of the response, "egae" to the end of the window.
        boundary: for "egae" only, what stands for the value after an unfinished window.
        window: for "egae" only, W in tokens. W >= H makes it "gae".
        lam: decay of "gae" and "egae". "monte-carlo" has none: leave it at 1.
        dtype: storage type; the recursion itself is float64. `iter_estimator_moments` stores nothing.

    >>> from sim.mdp.families import combination_lock
    >>> lock, uniform = combination_lock(length=1, num_tokens=2, horizon=4, seed=0), np.full((2, 2), 0.5)
    >>> cut = estimator_moments(lock, uniform, np.array([0.0, 0.5]), estimator="egae", boundary="repeat", window=1)
    >>> cut.mean_HSA[0].tolist()  # the last token of an unfinished window has advantage 0
    [[0.0, 0.0], [0.5, 0.0]]
    """
    shape = (mdp.horizon, mdp.num_states, mdp.num_tokens)
    mean_HSA, variance_HSA = np.empty(shape, dtype), np.empty(shape, dtype)
    for t, mean_SA, variance_SA in iter_estimator_moments(
        mdp, policy, critic, estimator=estimator, boundary=boundary, window=window, gamma=gamma, lam=lam
    ):
        mean_HSA[t], variance_HSA[t] = mean_SA, variance_SA
    return EstimatorMoments(mean_HSA, variance_HSA)


def iter_estimator_moments(
    mdp: TokenMDP,
    policy: Floats,
    critic: Floats,
    *,
    estimator: Estimator,
    boundary: Boundary | None = None,
    window: int | None = None,
    gamma: float = 1.0,
    lam: float = 1.0,
) -> Iterator[MomentsAt]:
    """The backward pass of `estimator_moments`, t = H-1 first, holding one time step."""
    check_choice(estimator, boundary, window, lam)
    policy, critic_HS = check_policy(mdp, policy), check_critic(mdp, critic)
    horizon, width = mdp.horizon, window or mdp.horizon
    monte_carlo = estimator == "monte-carlo"
    # The return is a sum of rewards: the critic enters only at the end, as a baseline.
    decay = gamma if monte_carlo else gamma * lam
    M_S = V_S = zero_S = np.zeros(mdp.num_states)
    for t in reversed(range(horizon)):
        window_ends = t + 1 == horizon or (t + 1) % width == 0
        cut = window_ends and t + 1 < horizon
        tail_S = zero_S if window_ends else decay * M_S
        tail_V_S = zero_S if window_ends else decay**2 * V_S
        # bootstrap_S is read at the next state; stay_S, the repeated value, at the present one.
        bootstrapped = not monte_carlo and (not window_ends or (cut and boundary == "critic"))
        bootstrap_S = gamma * critic_HS[t + 1] if bootstrapped else zero_S
        stay_S = gamma * critic_HS[t] if cut and boundary == "repeat" else None
        mean_SA, variance_SA = _propagate(mdp, tail_S + bootstrap_S, tail_V_S, stay_S)
        if not monte_carlo:
            mean_SA -= critic_HS[t][:, None]
        policy_SA = policy_at(policy, t)
        M_S = np.einsum("sa,sa->s", policy_SA, mean_SA)
        V_S = np.einsum("sa,sa->s", policy_SA, variance_SA + (mean_SA - M_S[:, None]) ** 2)
        yield MomentsAt(t, mean_SA - critic_HS[t][:, None] if monte_carlo else mean_SA, variance_SA)


def _propagate(mdp: TokenMDP, next_S: Floats, next_V_S: Floats, stay_S: Floats | None) -> tuple[Floats, Floats]:
    """Mean and variance [S, A] of r + next(s') + stay(s) 1{goes on} + noise, the noise having variance next_V(s')."""
    mean_SA = np.empty((mdp.num_states, mdp.num_tokens))
    variance_SA = np.zeros_like(mean_SA)
    for block in state_blocks(mdp):
        prob_SAK = mdp.prob_SAK[block]
        x_SAK = gather_next(mdp, next_S, block)
        x_SAK += mdp.reward_SAK[block]
        if stay_S is not None:
            x_SAK += stay_S[block, None, None] * (mdp.next_SAK[block] != TERMINAL)
        mean_SA[block] = np.einsum("sak,sak->sa", prob_SAK, x_SAK)
        if mdp.num_outcomes > 1:
            x_SAK -= mean_SA[block][..., None]
            variance_SA[block] = np.einsum("sak,sak,sak->sa", prob_SAK, x_SAK, x_SAK)
        if next_V_S.any():
            variance_SA[block] += np.einsum("sak,sak->sa", prob_SAK, gather_next(mdp, next_V_S, block))
    return mean_SA, variance_SA


def check_choice(estimator: str, boundary: str | None, window: int | None, lam: float) -> None:
    """Raise ValueError for a combination that means nothing."""
    if estimator not in ("gae", "egae", "monte-carlo"):
        raise ValueError(f'estimator: found {estimator!r}; expected "gae", "egae" or "monte-carlo"; choose one.')
    if estimator == "egae":
        if boundary not in ("repeat", "critic", "terminal"):
            raise ValueError(
                f'boundary: found {boundary!r}; expected "repeat", "critic" or "terminal" for "egae"; '
                'the paper\'s choice is "repeat".'
            )
        if window is None or window < 1:
            raise ValueError(f'window: found {window}; expected at least 1 for "egae"; pass the window in tokens.')
    elif boundary is not None or window is not None:
        raise ValueError(
            f'boundary, window: found {boundary!r}, {window}; expected neither for "{estimator}", which has no window; '
            'leave them out or choose "egae".'
        )
    if estimator == "monte-carlo" and lam != 1.0:
        raise ValueError(f'lam: found {lam}; expected 1 for "monte-carlo", which has no lambda; choose "gae".')


def check_critic(mdp: TokenMDP, critic: Floats) -> Floats:
    """The critic as a table [H1, S], or an error that says what is wrong with it."""
    critic = np.asarray(critic, dtype=np.float64)
    full = (mdp.horizon + 1, mdp.num_states)
    if critic.shape not in (full[1:], full):
        raise ValueError(
            f"critic: found shape {critic.shape}; expected {full[1:]} or {full}; "
            "give one value per state, or per time 0..H and state."
        )
    if not np.isfinite(critic).all():
        raise ValueError("critic: found NaN or infinity; expected finite values; check what trained the critic.")
    return np.broadcast_to(critic, full)
