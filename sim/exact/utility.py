"""What a policy-gradient method with one advantage a response ascends, computed and not sampled.

A group is G independent responses y_1..y_G to one prompt, with outcomes R_i (the reward that comes with the last token)
and lengths L_i. Many methods update along (1/G) sum_i n_i A_i s_i, where s_i = sum_t grad log pi is the score of
response i and both the advantage A_i and the normaliser n_i of its aggregation depend on the group's outcomes and
lengths alone. The G summands have equal expectations, and given y_1 the others are still independent, so

    E[update] = E[ f(R, L) s ] = grad E[ f(R, L) ],    f frozen,    f(R, L) = E over the G-1 others of [ n A ]

    n = 1           the sum over tokens, a mean over responses (divided by a constant length: 1 / that length)
    n = 1/L         the mean over each response's tokens
    n = G / sum L   the mean over the tokens of the group

So the method ascends the expected utility f, whose coefficients are frozen at the present policy. For outcomes 0 and 1
and n = 1 it is a number h(p) = f(1) - f(0) times the gradient of the solve rate p.

Three steps, each exact: `outcome_law` (forward pass), `frozen_utility` (convolution over the group),
`utility_gradient` (backward pass with f as the terminal reward).

Shape suffixes: _H time, _S states, _A tokens, _K outcomes of a token, _R rewards of a response, _M sums over a group.
H1 is H + 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sim.exact.values import check_policy, gather_next, policy_at, softmax, softmax_policy_gradient
from sim.mdp.table import TERMINAL, Floats, TokenMDP

Statistic = Callable[[float, int], ArrayLike]
"""(outcome, length) of a response -> the numbers whose sum over the others the advantage depends on."""
Credit = Callable[[float, int, Floats], ArrayLike]
"""(outcome, length, sums over the others [M, D]) -> n A of the response for each of the sums [M]."""


@dataclass(frozen=True)
class OutcomeLaw:
    """Joint law of the outcome and the length of a response."""

    rewards_R: Floats  # [R] every outcome of the table, rising
    prob_RH1: Floats  # [R, H1] P(outcome, length); column 0 is 0

    @property
    def mean_reward(self) -> float:
        """Expected outcome."""
        return float(self.rewards_R @ self.prob_RH1.sum(axis=1))


def outcome_law(mdp: TokenMDP, policy: Floats) -> OutcomeLaw:
    """The law of (outcome, length), by a forward pass. A response that the horizon cuts has outcome 0.

    Args:
        policy: [S, A] or [H, S, A] probabilities.

    Raises:
        ValueError: for a table that rewards a token after which the response goes on: then the outcome is a sum.

    >>> from sim.mdp.families import combination_lock
    >>> lock = combination_lock(length=1, num_tokens=2, horizon=3, seed=0)  # open by token 1, then stop
    >>> law = outcome_law(lock, np.full((2, 2), 0.5))
    >>> law.rewards_R.tolist(), law.prob_RH1.tolist()
    ([0.0, 1.0], [[0.0, 0.5, 0.0, 0.25], [0.0, 0.0, 0.25, 0.0]])
    """
    policy = check_policy(mdp, policy)
    ends_SAK, rewards_R, index_SAK = _outcomes(mdp)
    prob_RH1 = np.zeros((len(rewards_R), mdp.horizon + 1))
    alive_S: Floats = mdp.initial_S
    for t in range(mdp.horizon):
        flow_SAK = (alive_S[:, None] * policy_at(policy, t))[..., None] * mdp.prob_SAK
        done_SAK = ends_SAK | (t + 1 == mdp.horizon)
        prob_RH1[:, t + 1] = np.bincount(index_SAK[done_SAK], flow_SAK[done_SAK], minlength=len(rewards_R))
        goes_on = np.bincount(mdp.next_SAK[~ends_SAK], flow_SAK[~ends_SAK], minlength=mdp.num_states)
        alive_S = goes_on.astype(np.float64)  # Without an entry they are integers.
    return OutcomeLaw(rewards_R, prob_RH1)


def sums_law(law: OutcomeLaw, count: int, statistic: Statistic) -> tuple[Floats, Floats]:
    """The law of the sum of a statistic over `count` independent responses: sums [M, D] and probabilities [M].

    Sums that are equal to 12 digits are one. With the statistic a unit vector for each (outcome, length) the sums are
    all groups up to order; fewer numbers, as (outcome, length) itself, keep M small.

    >>> law = OutcomeLaw(np.array([0.0, 1.0]), np.array([[0.0, 0.75], [0.0, 0.25]]))
    >>> sums, prob = sums_law(law, 2, lambda reward, length: [reward])  # number right of two
    >>> sums.ravel().tolist(), prob.tolist()
    ([0.0, 1.0, 2.0], [0.5625, 0.375, 0.0625])
    """
    possible = np.argwhere(law.prob_RH1 > 0)
    one_KD = np.array([np.atleast_1d(statistic(float(law.rewards_R[i]), int(n))) for i, n in possible], np.float64)
    prob_K = law.prob_RH1[law.prob_RH1 > 0]
    sums_MD: Floats = np.zeros((1, one_KD.shape[1]))
    prob_M: Floats = np.ones(1)
    for _ in range(count):
        all_XD = (sums_MD[:, None] + one_KD).reshape(-1, one_KD.shape[1])
        sums_MD, same_X = np.unique(all_XD.round(12), axis=0, return_inverse=True)
        prob_M = np.bincount(same_X.ravel(), np.outer(prob_M, prob_K).ravel()).astype(np.float64)
    return sums_MD, prob_M


def frozen_utility(law: OutcomeLaw, group_size: int, credit: Credit, *, statistic: Statistic) -> Floats:
    """f(R, L), the expectation of `credit` over the other members of a group; 0 where (R, L) is impossible.

    Args:
        law: of each member.
        group_size: G.
        credit: n A of a response beside the others.
        statistic: what `credit` has to know of the others, as a sum over them.

    Returns:
        f [R, H1], beside `law.prob_RH1`.

    RLOO has the solve rate itself for a utility, up to a constant:

    >>> law = OutcomeLaw(np.array([0.0, 1.0]), np.array([[0.0, 0.75], [0.0, 0.25]]))
    >>> f = frozen_utility(law, 3, lambda r, n, others: r - others[:, 0] / 2, statistic=lambda r, n: [r])
    >>> f[:, 1].tolist()
    [-0.25, 0.75]
    """
    sums_MD, prob_M = sums_law(law, group_size - 1, statistic)
    f_RH1 = np.zeros_like(law.prob_RH1)
    for i, length in np.argwhere(law.prob_RH1 > 0):
        f_RH1[i, length] = prob_M @ np.asarray(credit(float(law.rewards_R[i]), int(length), sums_MD))
    return f_RH1


def utility_gradient(mdp: TokenMDP, logits: Floats, law: OutcomeLaw, f_RH1: Floats) -> Floats:
    """The gradient of E[f(R, L)], f held fixed, with respect to the logits of a softmax policy.

    A backward pass with f as the reward that comes with the last token, then `softmax_policy_gradient`. It is the
    expected update of the method whose frozen utility f is; with f = R it is the gradient of the expected outcome.

    Args:
        logits: [S, A] or [H, S, A].
        law: of this table; says which outcomes the rows of f belong to.
        f_RH1: [R, H1], any function of outcome and length.

    Returns:
        The gradient, in the shape of `logits`.

    >>> from sim.mdp.families import combination_lock
    >>> lock, logits = combination_lock(length=2, num_tokens=3, horizon=4, seed=0), np.zeros((3, 3))
    >>> law = outcome_law(lock, softmax(logits))
    >>> f = np.tile(law.rewards_R[:, None], (1, lock.horizon + 1))
    >>> np.allclose(utility_gradient(lock, logits, law, f), softmax_policy_gradient(lock, logits), atol=1e-15)
    True
    """
    logits = np.asarray(logits, dtype=np.float64)
    policy = check_policy(mdp, softmax(logits))
    ends_SAK, _, index_SAK = _outcomes(mdp)
    Q_HSA = np.empty((mdp.horizon, mdp.num_states, mdp.num_tokens))
    V_S = np.zeros(mdp.num_states)
    for t in reversed(range(mdp.horizon)):
        done_SAK = ends_SAK | (t + 1 == mdp.horizon)
        ahead_SAK = np.where(done_SAK, f_RH1[index_SAK, t + 1], gather_next(mdp, V_S, slice(0, mdp.num_states)))
        Q_HSA[t] = np.einsum("sak,sak->sa", mdp.prob_SAK, ahead_SAK)
        V_S = np.einsum("sa,sa->s", policy_at(policy, t), Q_HSA[t])
    return softmax_policy_gradient(mdp, logits, advantage_HSA=Q_HSA)


def _outcomes(mdp: TokenMDP) -> tuple[np.ndarray, Floats, np.ndarray]:
    """Which outcomes of tokens end the response [S, A, K], all rewards [R], and the index of each one's reward."""
    ends_SAK = mdp.next_SAK == TERMINAL
    early_SAK = ~ends_SAK & (mdp.prob_SAK > 0) & (mdp.reward_SAK != 0)
    if early_SAK.any():
        raise ValueError(
            f"reward_SAK: found a reward of {mdp.reward_SAK[early_SAK][0]:g} for a token after which the response goes "
            "on; expected rewards with the last token alone; an outcome that is a sum of rewards is not covered."
        )
    rewards_R, index = np.unique(np.where(ends_SAK, mdp.reward_SAK, 0.0), return_inverse=True)
    return ends_SAK, rewards_R, index.reshape(ends_SAK.shape)
