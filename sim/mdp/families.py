"""Families of token MDPs.

In every deterministic family token 0 is the one stop token, and nothing else ends a response before the horizon. The
state is then a function of prompt and tokens so far, which is what a language-model loop needs; the prompt is the start
state.

- `garnet`: random tables with stochastic outcomes, for checking the mathematics.
- `reasoning_ladder`: climb by correct tokens, wrong ones open detours; long-tailed lengths under a mediocre policy.
- `combination_lock`: one sequence pays, a wrong token starts again; rewards are rare.
- `tailed_length`: the prompt demands a length drawn from a truncated Pareto law; its tail is a knob.
"""

from collections.abc import Callable

import numpy as np

from sim.mdp.table import TERMINAL, Floats, Ints, TokenMDP

STOP = 0
BACKTRACK = 1


def garnet(
    num_states: int = 20,
    num_tokens: int = 4,
    branching: int = 3,
    horizon: int = 12,
    *,
    seed: int = 0,
    end_prob: float = 0.0,
    stop_token: bool = False,
) -> TokenMDP:
    """A random table: `branching` distinct next states a token, probabilities from uniform cuts of [0, 1].

    Rewards are standard normal per outcome; responses start in a uniformly drawn state. Deterministic if branching = 1.

    Args:
        branching: K, the number of outcomes of a state-token pair; at most num_states.
        end_prob: chance that an outcome ends the response instead of leading to its state.
        stop_token: token 0 ends the response from every state, and nothing else does; excludes end_prob.

    >>> table = garnet(5, 3, branching=1, horizon=4, stop_token=True)
    >>> table.deterministic, table.stop_tokens, table.ends_only_by_stop_token
    (True, (0,), True)
    """
    _at_least("num_states", num_states, 1)
    _at_least("num_tokens", num_tokens, 2 if stop_token else 1)
    if not 1 <= branching <= num_states:
        raise ValueError(
            f"branching: found {branching}; expected 1..num_states = {num_states}; lower it or add states."
        )
    if not 0.0 <= end_prob <= 1.0 or (stop_token and end_prob > 0.0):
        raise ValueError(
            f"end_prob: found {end_prob} with stop_token={stop_token}; expected 0..1, and 0 beside a stop token; "
            "choose one way of ending."
        )
    rng = np.random.default_rng(seed)
    shape = (num_states, num_tokens, branching)
    next_SAK = _distinct(rng, shape)
    next_SAK[rng.random(shape) < end_prob] = TERMINAL
    cuts = np.sort(rng.random((*shape[:2], branching - 1)), axis=-1)
    prob_SAK = np.diff(cuts, axis=-1, prepend=0.0, append=1.0)
    if stop_token:
        next_SAK[:, STOP] = TERMINAL
    initial_S = np.full(num_states, 1.0 / num_states)
    return TokenMDP("garnet", horizon, initial_S, next_SAK, prob_SAK, rng.standard_normal(shape))


def reasoning_ladder(
    rungs: int = 3,
    num_tokens: int = 5,
    detour: int = 4,
    horizon: int = 64,
    *,
    num_prompts: int = 1,
    seed: int = 0,
) -> TokenMDP:
    """Climb `rungs` rungs by their correct tokens, then answer.

    Token 0 answers: it ends the response and pays 1 on the top rung, 0 elsewhere. Token 1 backtracks: one step out of
    a detour, or one rung down. Of the content tokens 2.., one is correct on each rung below the top and climbs; any
    other opens a detour, and every content token inside a detour leads one step deeper, `detour` steps at most. On the
    top rung content tokens change nothing.

    Lengths. A policy that climbs well but seldom notices that it is lost (low skill in detours, see
    `sim.exact.policies.noisy_policy`) goes deeper more often than it backtracks and takes a time exponential in
    `detour` to return. Most of its responses are then short and a few are very long: the squared coefficient of
    variation exceeds 1, that of a geometric law.

    States of one prompt: rungs 0..rungs, then the detour of rung 0 from shallow to deep, that of rung 1, and so on.

    Args:
        num_tokens: at least 4 when there are detours, so that a wrong content token exists.
        num_prompts: separate ladders with correct tokens of their own; a response starts at the foot of one.

    >>> ladder = reasoning_ladder(rungs=2, seed=0)
    >>> ladder.num_states, ladder.walk(0, [4, 2, 4, 1, 1, 3, 0])  # climb, two steps astray and back, climb, answer
    (11, Walk(reward=1.0, states=(0, 1, 7, 8, 7, 1, 2), ended=True))
    """
    _at_least("rungs", rungs, 1)
    _at_least("num_tokens", num_tokens, 4 if detour else 3)
    _at_least("detour", detour, 0)
    _at_least("num_prompts", num_prompts, 1)
    rng = np.random.default_rng(seed)
    size = rungs + 1 + rungs * detour
    next_SA = np.empty((num_prompts * size, num_tokens), np.int64)
    reward_SA = np.zeros((num_prompts * size, num_tokens))
    for prompt in range(num_prompts):
        foot = prompt * size
        for rung in range(rungs + 1):
            here = foot + rung
            depths = foot + rungs + 1 + rung * detour + np.arange(detour)  # states of the detour off this rung
            next_SA[here, BACKTRACK] = max(here - 1, foot)
            next_SA[here, BACKTRACK + 1 :] = depths[0] if detour and rung < rungs else here
            if rung == rungs:
                reward_SA[here, STOP] = 1.0
                break
            next_SA[here, rng.integers(BACKTRACK + 1, num_tokens)] = here + 1
            next_SA[depths, BACKTRACK] = np.concatenate([[here], depths[:-1]])[:detour]
            next_SA[depths, BACKTRACK + 1 :] = np.concatenate([depths[1:], depths[-1:]])[:, None]
    next_SA[:, STOP] = TERMINAL
    return _deterministic("reasoning ladder", horizon, np.arange(num_prompts) * size, next_SA, reward_SA)


def combination_lock(length: int = 4, num_tokens: int = 4, horizon: int = 16, *, seed: int = 0) -> TokenMDP:
    """`length` right tokens in a row open the lock; any wrong one starts again. Token 0 stops and pays 1 if open.

    State i counts the right tokens so far. Once open, only stopping is right.
    """
    _at_least("length", length, 1)
    _at_least("num_tokens", num_tokens, 2)
    right = np.random.default_rng(seed).integers(1, num_tokens, size=length)
    next_SA = np.zeros((length + 1, num_tokens), np.int64)
    next_SA[np.arange(length), right] = np.arange(length) + 1
    next_SA[:, STOP] = TERMINAL
    reward_SA = np.zeros((length + 1, num_tokens))
    reward_SA[length, STOP] = 1.0
    return _deterministic("combination lock", horizon, np.array([0]), next_SA, reward_SA)


def tailed_length(
    tail: float = 1.0, max_demand: int = 64, num_tokens: int = 4, horizon: int | None = None, *, seed: int = 0
) -> TokenMDP:
    """The prompt demands n right tokens before the stop; n has a Pareto tail of index `tail`, cut at `max_demand`.

    State m says how many right tokens are still missing. The right token of a state leads to m - 1, a wrong one changes
    nothing, token 0 stops and pays 1 if m = 0. A response starts in state n with

        P(n >= k) = (k^-tail - (N+1)^-tail) / (1 - (N+1)^-tail),   k = 1..N = max_demand.

    A perfect policy answers in n + 1 tokens, hence the quantile of its length at level q is

        ceil( (1 - q (1 - (N+1)^-tail))^(-1/tail) ),

    about (1-q)^(-1/tail) while far below N. For large N the 50th, 90th and 99th percentiles are 2, 10, 100 tokens with
    tail 1; 2, 4, 10 with tail 2; 2, 2, 4 with tail 4. A smaller tail makes every quantile larger or equal, under every
    policy that treats all states with m > 0 alike.

    Args:
        horizon: 2 (max_demand + 1) when left out, so that a good policy is seldom cut.

    >>> tailed_length(tail=1.0, max_demand=3).initial_S.round(4).tolist()  # 1/2 : 1/6 : 1/12
    [0.0, 0.6667, 0.2222, 0.1111]
    """
    if not tail > 0.0:
        raise ValueError(
            f"tail: found {tail}; expected a positive Pareto index; use 1 for a heavy tail, 4 for a light one."
        )
    _at_least("max_demand", max_demand, 1)
    _at_least("num_tokens", num_tokens, 2)
    states = np.arange(max_demand + 1)
    right = np.random.default_rng(seed).integers(1, num_tokens, size=max_demand)
    next_SA = np.repeat(states[:, None], num_tokens, axis=1)
    next_SA[states[1:], right] = states[:-1]
    next_SA[:, STOP] = TERMINAL
    reward_SA = np.zeros((max_demand + 1, num_tokens))
    reward_SA[0, STOP] = 1.0
    demand_at_least = np.arange(1.0, max_demand + 2.0) ** -tail
    mass = -np.diff(demand_at_least)
    initial_S = np.concatenate([[0.0], mass / mass.sum()])
    horizon = 2 * (max_demand + 1) if horizon is None else horizon
    return _deterministic("tailed length", horizon, initial_S, next_SA, reward_SA)


FAMILIES: dict[str, Callable[..., TokenMDP]] = {
    "garnet": garnet,
    "reasoning_ladder": reasoning_ladder,
    "combination_lock": combination_lock,
    "tailed_length": tailed_length,
}


def _deterministic(name: str, horizon: int, start: Ints | Floats, next_SA: Ints, reward_SA: Floats) -> TokenMDP:
    """One outcome a token. `start` is a distribution [S], or the indices of equally likely states."""
    initial_S = start.astype(np.float64)
    if start.dtype.kind == "i":
        initial_S = np.isin(np.arange(len(next_SA)), start) / len(start)
    return TokenMDP(name, horizon, initial_S, next_SA[..., None], np.ones((*next_SA.shape, 1)), reward_SA[..., None])


def _distinct(rng: np.random.Generator, shape: tuple[int, int, int]) -> Ints:
    """[S, A, K] K distinct states for every state-token pair, every subset equally likely (Floyd's sampling)."""
    num_states, _, count = shape
    chosen_SAK = np.empty(shape, np.int64)
    for k in range(count):
        last = num_states - count + k
        draw_SA = rng.integers(0, last + 1, size=shape[:2])
        seen_SA = (chosen_SAK[..., :k] == draw_SA[..., None]).any(axis=-1)
        chosen_SAK[..., k] = np.where(seen_SA, last, draw_SA)
    return chosen_SAK


def _at_least(field: str, value: int, smallest: int) -> None:
    if value < smallest:
        raise ValueError(f"{field}: found {value}; expected at least {smallest}; raise it.")
