"""Policies of chosen quality on a `TokenMDP`, made from its exact optimum."""

import numpy as np

from sim.exact.values import at_start, iter_optimum
from sim.mdp.table import Floats, TokenMDP


def noisy_policy(
    mdp: TokenMDP, skill: float | Floats, *, stop_prob: float | None = None, discount: float = 0.99
) -> Floats:
    """A policy [S, A] that plays a best token with probability `skill` and otherwise a random one.

    The best token is the greedy one at t = 0. A discount below 1 makes it the fastest way to the reward: undiscounted,
    going astray first is as good while time remains.

    Args:
        skill: 0 is random, 1 is greedy; one number, or one per state [S].
        stop_prob: share of the random part that goes to the stop tokens; uniform over all tokens when left out.
        discount: gamma of the optimum whose greedy tokens are the best ones.

    >>> from sim.mdp.families import combination_lock
    >>> lock = combination_lock(length=1, num_tokens=2, horizon=4)  # token 1 opens it, then token 0 stops
    >>> noisy_policy(lock, skill=0.5).tolist()
    [[0.25, 0.75], [0.75, 0.25]]
    """
    skill_S = np.asarray(skill, dtype=np.float64)
    if skill_S.shape not in ((), (mdp.num_states,)) or not ((skill_S >= 0.0) & (skill_S <= 1.0)).all():
        raise ValueError(
            f"skill: found {skill!r}; expected a number in 0..1, or {mdp.num_states} of them; 0 is random, 1 is greedy."
        )
    background_A = np.full(mdp.num_tokens, 1.0 / mdp.num_tokens)
    if stop_prob is not None:
        stops = np.isin(np.arange(mdp.num_tokens), mdp.stop_tokens)
        if not 0.0 <= stop_prob <= 1.0 or stops.all() or not stops.any():
            raise ValueError(
                f"stop_prob: found {stop_prob} with stop tokens {mdp.stop_tokens} of {mdp.num_tokens}; "
                "expected 0..1, and tokens that stop beside tokens that do not; leave it out."
            )
        background_A = np.where(stops, stop_prob / stops.sum(), (1.0 - stop_prob) / (~stops).sum())
    greedy_S = at_start(iter_optimum(mdp, discount)).Q_SA.argmax(axis=-1)
    best_SA = np.zeros((mdp.num_states, mdp.num_tokens))
    best_SA[np.arange(mdp.num_states), greedy_S] = 1.0
    skill_S1 = np.broadcast_to(skill_S, mdp.num_states)[:, None]
    return skill_S1 * best_SA + (1.0 - skill_S1) * background_A
