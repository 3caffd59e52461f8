"""Policies of chosen quality, and the length laws that the families promise under them."""

import itertools

import numpy as np
import pytest

from sim.exact.policies import noisy_policy
from sim.exact.values import evaluate, lengths, optimum
from sim.mdp.families import combination_lock, garnet, reasoning_ladder, tailed_length
from tests.support.sim_brute_force import random_policy


def test_a_ladder_policy_that_seldom_notices_it_is_lost_has_long_tailed_lengths():
    """A geometric law has squared coefficient of variation below 1; a mixture of very different scales is above."""
    ladder = reasoning_ladder(rungs=3, num_tokens=5, detour=4, horizon=256)
    on_rung = np.arange(ladder.num_states) <= 3

    def spread(policy):
        law = lengths(ladder, policy)
        return law.prob_H1 @ np.arange(257) ** 2 / law.mean**2 - 1.0, law.quantile(0.99) / law.quantile(0.5)

    squared_cv, ratio = spread(noisy_policy(ladder, np.where(on_rung, 0.8, 0.2), stop_prob=0.01))
    assert squared_cv > 2.0
    assert ratio > 20.0
    assert spread(noisy_policy(ladder, 0.8, stop_prob=0.01))[0] < 1.0  # equally good everywhere: short tail


@pytest.mark.parametrize("tail", [0.5, 1.0, 2.0, 4.0])
def test_perfect_lengths_follow_the_stated_law_and_quantiles(tail):
    largest = 40
    mdp = tailed_length(tail, largest, 3)
    law = lengths(mdp, noisy_policy(mdp, 1.0))
    k = np.arange(1, largest + 1)
    floor = (largest + 1.0) ** -tail
    # Length n + 1 for demand n, so P(length >= k + 1) = P(n >= k).
    at_least = np.cumsum(law.prob_H1[::-1])[::-1]
    np.testing.assert_allclose(at_least[k + 1], (k**-tail - floor) / (1 - floor), atol=1e-12)
    for level in (0.1, 0.5, 0.9, 0.99):
        assert law.quantile(level) == np.ceil((1 - level * (1 - floor)) ** (-1 / tail))
    assert law.cut_prob == 0.0
    np.testing.assert_allclose(evaluate(mdp, noisy_policy(mdp, 1.0)).J, 1.0, atol=1e-12)


@pytest.mark.parametrize("skill", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("stop_prob", [None, 0.05])
def test_a_smaller_tail_index_makes_every_length_stochastically_longer(skill, stop_prob):
    """First-order dominance: P(length > n) rises at every n, so every quantile rises too."""
    laws = []
    for tail in (4.0, 2.0, 1.0, 0.5):
        mdp = tailed_length(tail, 24, 4, horizon=96)
        laws.append(lengths(mdp, noisy_policy(mdp, skill, stop_prob=stop_prob)))
    beyond = [1.0 - np.cumsum(law.prob_H1) for law in laws]
    for light, heavy in itertools.pairwise(beyond):
        assert (heavy >= light - 1e-12).all()
        assert (heavy - light).max() > 1e-3
    means = [law.mean for law in laws]
    assert means == sorted(means)


def test_skill_runs_from_random_to_optimal():
    for mdp in (reasoning_ladder(2, 4, 2, 24), combination_lock(3, 3, 24), tailed_length(1.0, 5, 3)):
        scores = [evaluate(mdp, noisy_policy(mdp, skill)).J for skill in (0.0, 0.25, 0.5, 0.75, 1.0)]
        assert scores == sorted(scores)
        np.testing.assert_allclose(noisy_policy(mdp, 0.0), 1.0 / mdp.num_tokens)
        np.testing.assert_allclose(scores[-1], optimum(mdp).J, atol=1e-12)
        assert optimum(mdp).J >= evaluate(mdp, random_policy(mdp, 0, over_time=True)).J


def test_stop_share_and_skill_per_state():
    lock = combination_lock(2, 3, 8, seed=0)
    policy = noisy_policy(lock, np.array([1.0, 0.0, 0.5]), stop_prob=0.1)
    assert policy[0].max() == 1.0
    np.testing.assert_allclose(policy[1], [0.1, 0.45, 0.45])
    np.testing.assert_allclose(policy[2], [0.5 + 0.05, 0.225, 0.225])  # open: the best token is the stop


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: noisy_policy(combination_lock(), 1.5), "skill: found 1.5; expected a number in 0..1, or 5 of them"),
        (lambda: noisy_policy(combination_lock(), np.ones(3)), "skill: found array"),
        (lambda: noisy_policy(garnet(), 0.5, stop_prob=0.1), r"stop_prob: found 0.1 with stop tokens \(\) of 4"),
    ],
)
def test_impossible_choices_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
