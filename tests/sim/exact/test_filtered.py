"""Exact moments of the tokens that a filter keeps, against enumeration."""

import numpy as np
import pytest

from sim import exact
from sim.exact.filtered import kept_moments
from sim.exact.moments import estimator_moments
from sim.mdp.families import combination_lock
from tests.support import sim_brute_force as brute


def kept(steps: brute.Response, t: int, window: int, ignore_last: int, horizon: int) -> bool:
    """From the definition: does token t, the first of `steps`, train?"""
    stop = min((t // window + 1) * window, horizon)
    own = steps[: stop - t]
    ends_by_itself = own[-1][3] == -1
    unfinished = not ends_by_itself and stop < horizon
    return not (unfinished and t >= stop - ignore_last)


@pytest.mark.parametrize("name", brute.SMALL)
@pytest.mark.parametrize(("gamma", "lam", "over_time"), [(1.0, 0.95, False), (0.9, 0.7, True)])
@pytest.mark.parametrize("boundary", ["repeat", "critic", "terminal"])
def test_agrees_with_enumeration(name, gamma, lam, over_time, boundary):
    mdp = brute.SMALL[name]()
    policy = brute.random_policy(mdp, 7, over_time=over_time)
    critic_HS = np.random.default_rng(8).standard_normal((mdp.horizon + 1, mdp.num_states))
    weighted_at = dict(brute.cells(mdp, policy))
    for window, ignore_last in ((1, 1), (2, 0), (2, 1), (2, 2), (3, 1), (3, 5), (9, 4)):
        choice = {"boundary": boundary, "window": window, "gamma": gamma, "lam": lam}
        found = kept_moments(mdp, policy, critic_HS, ignore_last=ignore_last, **choice)
        for cell, weighted in weighted_at.items():
            p = np.array([w for w, _ in weighted])
            k = np.array([kept(steps, cell[0], window, ignore_last, mdp.horizon) for _, steps in weighted], dtype=float)
            x = np.array(
                [brute.advantage(steps, cell[0], critic_HS, estimator="egae", **choice) for _, steps in weighted]
            )
            for moment_HSA, expected in (
                (found.kept_HSA, p @ k),
                (found.first_HSA, p @ (k * x)),
                (found.second_HSA, p @ (k * x**2)),
            ):
                np.testing.assert_allclose(moment_HSA[cell], expected, rtol=0, atol=1e-12)


def test_dropping_nothing_is_the_estimator_itself():
    mdp = combination_lock(3, 3, 12)
    policy = brute.random_policy(mdp, 1, over_time=True)
    critic_S = np.random.default_rng(2).standard_normal(mdp.num_states)
    choice = {"boundary": "repeat", "window": 4, "gamma": 0.99, "lam": 0.9}
    plain = estimator_moments(mdp, policy, critic_S, estimator="egae", **choice)
    found = kept_moments(mdp, policy, critic_S, ignore_last=0, **choice)
    np.testing.assert_allclose(found.kept_HSA, 1.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.first_HSA, plain.mean_HSA, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.second_HSA - found.first_HSA**2, plain.variance_HSA, rtol=0, atol=1e-12)


def test_a_filter_that_looks_ahead_biases_an_unbiased_estimator():
    """Two tokens, window 1, the exact critic: without the filter the expected update is the gradient, with it not."""
    mdp = combination_lock(length=1, num_tokens=2, horizon=2, seed=0)
    logits = np.zeros((2, 2))
    policy = exact.softmax(logits)
    critic = exact.evaluate(mdp, policy).V_HS
    truth = exact.softmax_policy_gradient(mdp, logits)
    for ignore_last, same in ((0, True), (1, False)):
        moments = kept_moments(mdp, policy, critic, boundary="critic", window=1, ignore_last=ignore_last)
        update = exact.softmax_policy_gradient(mdp, logits, advantage_HSA=moments.first_HSA)
        assert np.allclose(update, truth, rtol=0, atol=1e-12) is same


def test_a_negative_number_of_tokens_is_refused():
    with pytest.raises(ValueError, match="ignore_last: found -1"):
        kept_moments(
            combination_lock(), np.full((5, 4), 0.25), np.zeros(5), boundary="repeat", window=2, ignore_last=-1
        )
