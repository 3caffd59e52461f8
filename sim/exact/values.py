"""Exact answers on a `TokenMDP`: values, optimum, occupancy, response lengths, policy gradient.

Everything is dynamic programming over the table that the simulator samples. Nothing is estimated. The moments of
advantage estimators are in `sim.exact.moments`.

Conventions. Time t counts sampled tokens, 0 <= t < H = `mdp.horizon`. V_t(s) is the expected discounted sum of rewards
from token t on; V_H = 0 because the cap ends the response, and the value of an ended response is 0. A policy is an
array of probabilities [S, A] (the same at every t) or [H, S, A].

Cost. One backward step gathers S*A*K numbers. Measured on two cores (one thread used; the second figure with both
cores busy with other work), 10^4 states x 32 tokens x 256 steps, by `python tests/benchmarks/bench_exact.py`:

    seconds                                  1 outcome      4 outcomes
    iter_evaluate                            0.2 to 0.4     0.8 to 1.4
    iter_optimum                             0.3 to 0.7     1.1 to 1.7
    lengths                                  0.2 to 0.5     1.1 to 1.8
    iter_estimator_moments, gae or egae      0.6 to 1.2     2.7 to 4.5
    peak memory of the process, GiB          0.09           0.13

Keeping Q [H, S, A] as float32 (`evaluate`) adds 0.31 GiB.

Shape suffixes: _H time, _S states, _A tokens, _K outcomes. H1 is H + 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sim.mdp.table import PROBABILITY_TOLERANCE, TERMINAL, Floats, Ints, TokenMDP

BLOCK_NUMBERS = 1 << 18  # numbers gathered at a time; 2 MiB in float64 stays in cache


@dataclass(frozen=True)
class Evaluation:
    """Exact values of one policy."""

    V_HS: Floats  # [H1, S] V_t(s); row H is 0
    Q_HSA: Floats  # [H, S, A] Q_t(s, a)
    J: float  # expected return from the initial distribution

    @property
    def A_HSA(self) -> Floats:
        """[H, S, A] advantage Q_t(s, a) - V_t(s), computed on every access to spare memory."""
        return self.Q_HSA - self.V_HS[:-1, :, None]


@dataclass(frozen=True)
class Optimum:
    """Exact values of the best policy."""

    V_HS: Floats  # [H1, S] V*_t(s)
    Q_HSA: Floats  # [H, S, A] Q*_t(s, a)
    greedy_HS: Ints  # [H, S] a best token; the lowest index among equals
    J: float  # the largest expected return

    @property
    def policy_HSA(self) -> Floats:
        """[H, S, A] the greedy policy as probabilities."""
        return np.eye(self.Q_HSA.shape[-1])[self.greedy_HS]


@dataclass(frozen=True)
class LengthDistribution:
    """Distribution of the number of tokens of a response."""

    prob_H1: Floats  # [H1] probability of each length; entry 0 is 0
    cut_prob: float  # probability that the horizon cuts the response (LENGTH); part of prob_H1[H]

    @property
    def mean(self) -> float:
        """Expected length [token]."""
        return float(self.prob_H1 @ np.arange(len(self.prob_H1)))

    def quantile(self, level: float) -> int:
        """The smallest length n with P(length <= n) >= level."""
        if not 0.0 < level < 1.0:
            raise ValueError(f"level: found {level}; expected 0 < level < 1; pass 0.99 for the 99th percentile.")
        # Round-off may leave the total a little below the level.
        return min(int(np.searchsorted(np.cumsum(self.prob_H1), level)), len(self.prob_H1) - 1)


class Backup(NamedTuple):
    """Values of one time step, from a backward pass."""

    t: int
    V_S: Floats  # [S] V_t(s)
    Q_SA: Floats  # [S, A] Q_t(s, a)


def evaluate(mdp: TokenMDP, policy: Floats, gamma: float = 1.0, *, dtype: DTypeLike = np.float64) -> Evaluation:
    """Compute V, Q, A and J of a policy.

    Q_t(s, a) = E[r + gamma V_{t+1}(s')],  V_t(s) = sum_a pi_t(a|s) Q_t(s, a),  J = sum_s initial(s) V_0(s).

    Args:
        dtype: storage type of Q; the recursion itself is float64. `iter_evaluate` stores nothing.

    >>> from sim.mdp.families import combination_lock
    >>> lock = combination_lock(length=2, num_tokens=3, horizon=3, seed=0)
    >>> round(evaluate(lock, np.full((3, 3), 1 / 3)).J, 6)  # right, right, stop
    0.037037
    """
    V_HS = np.zeros((mdp.horizon + 1, mdp.num_states))
    Q_HSA = np.empty((mdp.horizon, mdp.num_states, mdp.num_tokens), dtype)
    for t, V_S, Q_SA in iter_evaluate(mdp, policy, gamma):
        V_HS[t], Q_HSA[t] = V_S, Q_SA
    return Evaluation(V_HS, Q_HSA, float(mdp.initial_S @ V_HS[0]))


def iter_evaluate(mdp: TokenMDP, policy: Floats, gamma: float = 1.0) -> Iterator[Backup]:
    """The backward pass of `evaluate`, t = H-1 first, holding one time step."""
    policy = check_policy(mdp, policy)
    V_S = np.zeros(mdp.num_states)
    for t in reversed(range(mdp.horizon)):
        Q_SA = _q_values(mdp, V_S, gamma)
        V_S = np.einsum("sa,sa->s", policy_at(policy, t), Q_SA)
        yield Backup(t, V_S, Q_SA)


def optimum(mdp: TokenMDP, gamma: float = 1.0, *, dtype: DTypeLike = np.float64) -> Optimum:
    """Compute V*, Q*, a greedy policy and J*: V*_t(s) = max_a Q*_t(s, a). Arguments are those of `evaluate`."""
    V_HS = np.zeros((mdp.horizon + 1, mdp.num_states))
    Q_HSA = np.empty((mdp.horizon, mdp.num_states, mdp.num_tokens), dtype)
    greedy_HS = np.empty((mdp.horizon, mdp.num_states), np.int64)
    for t, V_S, Q_SA in iter_optimum(mdp, gamma):
        V_HS[t], Q_HSA[t], greedy_HS[t] = V_S, Q_SA, Q_SA.argmax(axis=-1)
    return Optimum(V_HS, Q_HSA, greedy_HS, float(mdp.initial_S @ V_HS[0]))


def iter_optimum(mdp: TokenMDP, gamma: float = 1.0) -> Iterator[Backup]:
    """The backward pass of `optimum`, t = H-1 first, holding one time step."""
    V_S = np.zeros(mdp.num_states)
    for t in reversed(range(mdp.horizon)):
        Q_SA = _q_values(mdp, V_S, gamma)
        V_S = Q_SA.max(axis=-1)
        yield Backup(t, V_S, Q_SA)


def at_start(backups: Iterator[Backup]) -> Backup:
    """The backup of the first token, of `iter_optimum`, or of `iter_evaluate` with one policy for all times.

    A pass whose values did not change will never change them again, so a long horizon costs no more than the table
    needs. The field t is that of the pass where it ended.

    >>> from sim.mdp.families import combination_lock
    >>> at_start(iter_optimum(combination_lock(length=2, horizon=10**9), 0.9)).V_S.round(4).tolist()
    [0.81, 0.9, 1.0]
    """
    last = next(backups)
    for backup in backups:
        if np.array_equal(backup.V_S, last.V_S):
            return backup
        last = backup
    return last


def occupancy(mdp: TokenMDP, policy: Floats) -> Floats:
    """[H, S] undiscounted probability that the response is alive and in state s when token t is sampled."""
    return _forward(mdp, check_policy(mdp, policy))[0]


def lengths(mdp: TokenMDP, policy: Floats) -> LengthDistribution:
    """Compute the distribution of the response length in tokens, the stop token included.

    >>> from sim.mdp.families import combination_lock
    >>> lock = combination_lock(length=2, num_tokens=4, horizon=3, seed=0)
    >>> stop_half = np.tile([0.5, 1 / 6, 1 / 6, 1 / 6], (3, 1))
    >>> lengths(lock, stop_half).prob_H1.round(3).tolist(), round(lengths(lock, stop_half).cut_prob, 3)
    ([0.0, 0.5, 0.25, 0.25], 0.125)
    """
    _, ended_H, cut = _forward(mdp, check_policy(mdp, policy))
    prob_H1 = np.concatenate([[0.0], ended_H])
    prob_H1[-1] += cut
    return LengthDistribution(prob_H1, cut)


def softmax_policy_gradient(
    mdp: TokenMDP, logits: Floats, gamma: float = 1.0, *, advantage_HSA: NDArray[np.floating] | None = None
) -> Floats:
    """Compute the gradient of J with respect to the logits of a softmax policy.

    With d_t(s) the occupancy and pi = softmax(logits),

        dJ / dlogits_t(s, a) = gamma^t d_t(s) pi_t(a|s) ( A_t(s, a) - sum_b pi_t(b|s) A_t(s, b) ).

    The last sum is 0 for the exact advantage. Logits [S, A] are shared over time, so their gradient is the sum over t.

    Args:
        logits: [S, A] or [H, S, A].
        advantage_HSA: a table to use instead of the exact advantage, e.g. the mean of an estimator. The result
            is then the expected direction of a policy-gradient step that uses this estimator: bias without sampling.
    """
    logits = np.asarray(logits, dtype=np.float64)
    policy = softmax(logits)
    alive_HS = occupancy(mdp, policy)
    gradient = np.zeros_like(logits)
    for t, V_S, Q_SA in iter_evaluate(mdp, policy, gamma):
        advantage_SA = Q_SA - V_S[:, None] if advantage_HSA is None else advantage_HSA[t]
        policy_SA = policy_at(policy, t)
        centred_SA = advantage_SA - np.einsum("sa,sa->s", policy_SA, advantage_SA)[:, None]
        step_SA = gamma**t * alive_HS[t][:, None] * policy_SA * centred_SA
        if gradient.ndim == 3:
            gradient[t] = step_SA
        else:
            gradient += step_SA
    return gradient


def softmax(logits: Floats) -> Floats:
    """Turn logits into probabilities over the last axis.

    >>> softmax(np.log([1.0, 3.0])).tolist()
    [0.25, 0.75]
    """
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def policy_at(policy: Floats, t: int) -> Floats:
    """[S, A] the policy's probabilities for token t."""
    return policy[t] if policy.ndim == 3 else policy


def check_policy(mdp: TokenMDP, policy: Floats) -> Floats:
    """The policy as float64, or an error that says what is wrong with it."""
    policy = np.asarray(policy, dtype=np.float64)
    one = (mdp.num_states, mdp.num_tokens)
    if policy.shape not in (one, (mdp.horizon, *one)):
        raise ValueError(
            f"policy: found shape {policy.shape}; expected {one} or {(mdp.horizon, *one)}; "
            "give one row of token probabilities per state, or per time and state."
        )
    error = float(np.abs(policy.sum(axis=-1) - 1.0).max())
    if not (policy.min() >= 0.0 and error <= PROBABILITY_TOLERANCE):
        raise ValueError(
            f"policy: found a smallest entry {policy.min():.3g} and rows that miss a sum of 1 by {error:.3g}; "
            "expected probabilities; for logits call softmax first."
        )
    return policy


def state_blocks(mdp: TokenMDP) -> Iterator[slice]:
    """Slices of states whose gathered outcomes fit in cache."""
    size = max(1, BLOCK_NUMBERS // (mdp.num_tokens * mdp.num_outcomes))
    for first in range(0, mdp.num_states, size):
        yield slice(first, min(first + size, mdp.num_states))


def gather_next(mdp: TokenMDP, value_S: Floats, block: slice) -> Floats:
    """[S of the block, A, K] value_S at the next state, 0 where the response ends."""
    # Wrapping sends index -1 to the extra last entry, which is the value of an ended response.
    return np.append(value_S, 0.0).take(mdp.next_SAK[block], mode="wrap")


def _q_values(mdp: TokenMDP, V_S: Floats, gamma: float) -> Floats:
    """[S, A] E[r + gamma V(s')]."""
    Q_SA = np.empty((mdp.num_states, mdp.num_tokens))
    for block in state_blocks(mdp):
        Q_SA[block] = np.einsum("sak,sak->sa", mdp.prob_SAK[block], gather_next(mdp, V_S, block))
    Q_SA *= gamma
    Q_SA += mdp.mean_reward_SA
    return Q_SA


def _forward(mdp: TokenMDP, policy: Floats) -> tuple[Floats, Floats, float]:
    """Forward pass: probability of being alive [H, S], of ending with token t [H], of being cut at the horizon."""
    alive_HS, ended_H = np.zeros((mdp.horizon, mdp.num_states)), np.zeros(mdp.horizon)
    alive_S = mdp.initial_S
    for t in range(mdp.horizon):
        alive_HS[t] = alive_S
        mass_S1 = np.zeros(mdp.num_states + 1)
        flow_SA = alive_S[:, None] * policy_at(policy, t)
        for block in state_blocks(mdp):
            flow_SAK = flow_SA[block][..., None] * mdp.prob_SAK[block]
            slots = (mdp.next_SAK[block] - TERMINAL).ravel()  # slot 0 collects the responses that end
            mass_S1 += np.bincount(slots, flow_SAK.ravel(), minlength=mdp.num_states + 1)
        ended_H[t], alive_S = mass_S1[0], mass_S1[1:]
    return alive_HS, ended_H, float(alive_S.sum())
