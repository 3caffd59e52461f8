"""Sampled responses through the library's own EGAE against the exact moments: simulator, estimator and solver agree.

Every cell (t, s, a) is met at most once in a response, so its samples are independent. Bernstein's inequality bounds
the error of their mean and of their mean squared deviation; its constants are exact, from enumeration. The false-alarm
probability is 1e-6 a test, by a union bound over both moments of all cells. Nothing rests on a normal approximation.
"""

import functools

import numpy as np
import pytest
import torch

from sim.exact.moments import estimator_moments
from sim.exact.values import evaluate, lengths
from sim.mdp.families import garnet, reasoning_ladder
from tests.support import sim_brute_force as brute
from tppo.maths.advantages import egae

FALSE_ALARM = 1e-6
RESPONSES = 100_000
TABLES = {
    "garnet": lambda: garnet(3, 2, 2, 5, seed=4, end_prob=0.2),
    "reasoning ladder": lambda: reasoning_ladder(1, 4, 1, 6, seed=1),
}


@functools.cache
def sampled(name):
    """One batch of responses per table: alive [B, H], and state, token, reward, next state of every token [B, H]."""
    mdp = TABLES[name]()
    policy = brute.random_policy(mdp, 9, over_time=True)
    rng = np.random.default_rng(20_240)
    state = mdp.start(rng.random(RESPONSES))
    alive = np.ones(RESPONSES, bool)
    columns = []
    for t in range(mdp.horizon):
        here = np.where(alive, state, 0)
        token = (rng.random(RESPONSES)[:, None] >= np.cumsum(policy[t], axis=-1)[here]).sum(-1)
        token = np.minimum(token, mdp.num_tokens - 1)
        result = mdp.step(here, token, rng.random(RESPONSES))
        columns.append((alive, here, token, result.reward, result.next_state))
        alive = alive & ~result.terminated
        state = result.next_state
    return mdp, policy, tuple(np.stack(column, axis=1) for column in zip(*columns, strict=True))


def through_the_library(name, critic_HS, *, window, boundary, gamma, lam):
    """[B, H] advantages by `tppo.maths.advantages.egae`, every window of every response one ragged segment."""
    mdp, _, (alive, state, _, reward, after) = sampled(name)
    advantages = np.full(alive.shape, np.nan)
    for first in range(0, mdp.horizon, window):
        end = min(first + window, mdp.horizon)
        rows = np.flatnonzero(alive[:, first])
        mask = alive[rows, first:end]
        count = mask.sum(axis=1)
        last = first + count - 1
        finished = (after[rows, last] == -1) | (end == mdp.horizon)
        at_cut = critic_HS[end][np.where(finished, 0, after[rows, last])]
        values = critic_HS[np.arange(first, end), state[rows, first:end]]
        found = egae(
            torch.from_numpy(reward[rows, first:end][mask]),
            torch.from_numpy(values[mask]),
            torch.from_numpy(np.concatenate([[0], np.cumsum(count)])),
            torch.from_numpy(finished),
            gamma=gamma,
            lam=lam,
            boundary=boundary,
            cut_values_S=torch.from_numpy(at_cut) if boundary == "critic" else None,
        )
        block = np.full(mask.shape, np.nan)
        block[mask] = found.numpy()
        advantages[rows, first:end] = block
    return advantages


def worst_excess(name, critic_HS, advantages, expected, choice):
    """The largest (error - allowed) over cells and both moments; at most 0 with probability 1 - FALSE_ALARM."""
    mdp, policy, (alive, state, token, _, _) = sampled(name)
    alpha = FALSE_ALARM / (2 * expected.mean_HSA.size)
    worst, tested = -np.inf, 0
    for (t, s, a), weighted in brute.cells(mdp, policy):
        x = advantages[alive[:, t] & (state[:, t] == s) & (token[:, t] == a), t]
        if len(x) < 100:
            continue
        tested += 1
        p = np.array([w for w, _ in weighted])
        atoms = np.array([brute.advantage(steps, t, critic_HS, **choice) for _, steps in weighted])
        mean, variance = expected.mean_HSA[t, s, a], expected.variance_HSA[t, s, a]
        squares = (atoms - mean) ** 2
        allowed_mean = brute.bernstein(p @ squares, np.abs(atoms - mean).max(), len(x), alpha)
        spread = p @ (squares - p @ squares) ** 2
        allowed_variance = brute.bernstein(spread, np.abs(squares - p @ squares).max(), len(x), alpha)
        worst = max(worst, abs(x.mean() - mean) - allowed_mean - 1e-9)
        worst = max(worst, abs(((x - mean) ** 2).mean() - variance) - allowed_variance - 1e-9)
    assert tested >= expected.mean_HSA.size // 3
    return worst


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("boundary", ["repeat", "critic", "terminal"])
@pytest.mark.parametrize(("window", "gamma", "lam"), [(2, 1.0, 0.95), (3, 0.9, 0.7), (10, 1.0, 0.9)])
def test_mean_and_variance_of_sampled_advantages_are_the_exact_ones(name, boundary, window, gamma, lam):
    mdp, policy, _ = sampled(name)
    critic_HS = np.random.default_rng(1).standard_normal((mdp.horizon + 1, mdp.num_states))
    rule = {"boundary": boundary, "window": window, "gamma": gamma, "lam": lam}
    expected = estimator_moments(mdp, policy, critic_HS, estimator="egae", **rule)
    advantages = through_the_library(name, critic_HS, **rule)
    assert worst_excess(name, critic_HS, advantages, expected, {"estimator": "egae"} | rule) <= 0.0


@pytest.mark.parametrize("name", TABLES)
def test_the_check_above_notices_a_wrong_boundary_and_a_wrong_lambda(name):
    """Power: a test that cannot fail proves nothing."""
    mdp, policy, _ = sampled(name)
    critic_HS = np.random.default_rng(1).standard_normal((mdp.horizon + 1, mdp.num_states))
    rule = {"boundary": "repeat", "window": 2, "gamma": 1.0, "lam": 0.95}
    expected = estimator_moments(mdp, policy, critic_HS, estimator="egae", **rule)
    for mistake in ({"boundary": "critic"}, {"boundary": "terminal"}, {"lam": 0.5}, {"gamma": 0.8}):
        advantages = through_the_library(name, critic_HS, **(rule | mistake))
        assert worst_excess(name, critic_HS, advantages, expected, {"estimator": "egae"} | rule) > 0.01


@pytest.mark.parametrize("name", TABLES)
def test_sampled_returns_and_lengths_are_the_exact_ones(name):
    """False-alarm probability 1e-6: Bernstein for the return and for each length, union bound."""
    mdp, policy, (alive, _, _, reward, _) = sampled(name)
    everything = brute.all_responses(mdp, policy)
    p, totals = (
        np.array(column) for column in zip(*((w, brute.discounted(r, 1.0)) for w, r in everything), strict=True)
    )
    alpha = FALSE_ALARM / (mdp.horizon + 1)
    J = evaluate(mdp, policy).J
    allowed = brute.bernstein(p @ (totals - J) ** 2, np.abs(totals - J).max(), RESPONSES, alpha)
    assert abs((reward * alive).sum(axis=1).mean() - J) <= allowed
    law = lengths(mdp, policy).prob_H1
    for n in range(1, mdp.horizon + 1):
        error = abs((alive.sum(axis=1) == n).mean() - law[n])
        assert error <= brute.bernstein(law[n] * (1 - law[n]), 1.0, RESPONSES, alpha)
