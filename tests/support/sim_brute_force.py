"""Oracle for the exact solver: enumerate every response of a small table and apply the definitions to each.

No recursion over values, no vectorisation, nothing imported from `sim.exact.values` or `sim.exact.moments`.
"""

from collections.abc import Callable, Iterator

import numpy as np

from sim.mdp.families import combination_lock, garnet, reasoning_ladder, tailed_length
from sim.mdp.table import TokenMDP

Response = list[tuple[int, int, float, int]]  # (state, token, reward, next state) of every token
Weighted = list[tuple[float, Response]]

SMALL = {
    "garnet": lambda: garnet(3, 2, 2, 4, seed=1, end_prob=0.25),
    "garnet endless": lambda: garnet(3, 2, 2, 4, seed=2),
    "garnet stop token": lambda: garnet(3, 3, 1, 4, seed=3, stop_token=True),
    "reasoning ladder": lambda: reasoning_ladder(1, 4, 1, 4, num_prompts=2, seed=4),
    "combination lock": lambda: combination_lock(2, 3, 5, seed=5),
    "tailed length": lambda: tailed_length(1.0, 2, 3, 5, seed=6),
}


def random_policy(mdp: TokenMDP, seed: int, *, over_time: bool, with_zeros: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (mdp.horizon, mdp.num_states, mdp.num_tokens) if over_time else (mdp.num_states, mdp.num_tokens)
    weight = rng.exponential(size=shape)
    if with_zeros:
        weight *= rng.random(shape) < 0.6
        weight[..., -1] += weight.sum(axis=-1) == 0.0
    return weight / weight.sum(axis=-1, keepdims=True)


def responses(mdp: TokenMDP, policy: np.ndarray, t: int, state: int, token: int | None = None) -> Iterator:
    """(probability, tokens from t on) of every possible response from a state, the first token given or sampled."""
    policy_SA = policy[t] if policy.ndim == 3 else policy
    choices = [(token, 1.0)] if token is not None else list(enumerate(policy_SA[state]))
    for a, p_token in choices:
        for k in range(mdp.num_outcomes):
            p = float(p_token * mdp.prob_SAK[state, a, k])
            if p == 0.0:
                continue
            s_next, reward = int(mdp.next_SAK[state, a, k]), float(mdp.reward_SAK[state, a, k])
            step = (state, int(a), reward, s_next)
            if s_next == -1 or t + 1 == mdp.horizon:
                yield p, [step]
            else:
                for p_rest, rest in responses(mdp, policy, t + 1, s_next):
                    yield p * p_rest, [step, *rest]


def all_responses(mdp: TokenMDP, policy: np.ndarray) -> Weighted:
    """Every response from the initial distribution."""
    starts = [(p, s) for s, p in enumerate(mdp.initial_S) if p > 0.0]
    return [(p0 * p, steps) for p0, s in starts for p, steps in responses(mdp, policy, 0, s)]


def cells(mdp: TokenMDP, policy: np.ndarray) -> Iterator[tuple[tuple[int, int, int], Weighted]]:
    """Every (t, s, a), reachable or not, with all that can follow."""
    for cell in np.ndindex(mdp.horizon, mdp.num_states, mdp.num_tokens):
        yield cell, list(responses(mdp, policy, *cell))


def discounted(steps: Response, gamma: float) -> float:
    return sum(gamma**j * step[2] for j, step in enumerate(steps))


def advantage(
    steps: Response,
    t: int,
    critic_HS: np.ndarray,
    *,
    estimator: str,
    boundary: str | None = None,
    window: int | None = None,
    gamma: float,
    lam: float,
) -> float:
    """The estimate at the first of `steps`, which is token t of the response, straight from the definition."""
    if estimator == "monte-carlo":
        return discounted(steps, gamma) - critic_HS[t][steps[0][0]]
    end = t + len(steps)
    stop = end if estimator == "gae" else min(end, (t // window + 1) * window)
    total = 0.0
    for j, (state, _, reward, s_next) in enumerate(steps[: stop - t]):
        u = t + j
        if u == end - 1:
            after = 0.0
        elif u == stop - 1:
            after = {"repeat": critic_HS[u][state], "critic": critic_HS[u + 1][s_next], "terminal": 0.0}[boundary]
        else:
            after = critic_HS[u + 1][s_next]
        total += (gamma * lam) ** j * (reward + gamma * after - critic_HS[u][state])
    return total


def moments(weighted: Weighted, estimate: Callable[[Response], float]) -> tuple[float, float]:
    p, x = np.array([w for w, _ in weighted]), np.array([estimate(steps) for _, steps in weighted])
    mean = p @ x
    return mean, p @ (x - mean) ** 2


def bernstein(variance: float, largest: float, count: int, alpha: float) -> float:
    """How far a sample mean can be off: further with probability <= alpha, by Bernstein's inequality.

    The mean is over `count` independent terms of this variance, and |term - mean| <= largest. The result solves
    alpha = 2 exp(-n e^2 / (2 var + 2 largest e / 3)) for e. It holds for every n; no normal approximation.
    """
    log = np.log(2.0 / alpha) / count
    linear = largest * log / 3.0
    return linear + float(np.sqrt(linear**2 + 2.0 * variance * log))
