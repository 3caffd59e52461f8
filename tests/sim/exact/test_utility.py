"""The frozen utility of methods with one advantage a response, against enumeration of responses and of groups."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from sim.exact import (
    OutcomeLaw,
    evaluate,
    frozen_utility,
    lengths,
    outcome_law,
    softmax,
    softmax_policy_gradient,
    sums_law,
    utility_gradient,
)
from sim.mdp.families import garnet
from sim.mdp.table import TERMINAL, TokenMDP
from tests.support.sim_brute_force import SMALL, all_responses
from tests.support.token_trees import chain3, fork, logits_of


def with_last_rewards(mdp: TokenMDP) -> TokenMDP:
    """The same table with outcomes 0, 1/2 and 1, paid with the last token alone."""
    reward_SAK = np.where(mdp.next_SAK == TERMINAL, mdp.reward_SAK.round().clip(0, 1), 0.0)
    reward_SAK[..., -1] *= 0.5
    return replace(mdp, reward_SAK=reward_SAK)


TABLES = {
    "chain": chain3,
    "fork": fork,
    "ladder": SMALL["reasoning ladder"],
    "lock": SMALL["combination lock"],
    "tailed": SMALL["tailed length"],
    "several outcomes": lambda: with_last_rewards(garnet(3, 2, 2, 4, seed=1, end_prob=0.25)),
}
tables = pytest.mark.parametrize("name", TABLES)
over_time = pytest.mark.parametrize("over_time", [False, True])


def policy_logits(mdp: TokenMDP, over_time: bool) -> np.ndarray:
    shape = (mdp.num_states, mdp.num_tokens)
    return np.random.default_rng(3).normal(size=(mdp.horizon, *shape) if over_time else shape)


def answers(mdp: TokenMDP, logits: np.ndarray) -> list[tuple[float, float, int, np.ndarray]]:
    """(probability, outcome, length, score) of every response; the score is d log pi / d logits."""
    policy, found = softmax(logits), []
    for p, steps in all_responses(mdp, policy):
        score = np.zeros_like(logits)
        for t, (s, a, _, _) in enumerate(steps):
            row = (t, s) if logits.ndim == 3 else (s,)
            score[row] -= policy[row]
            score[(*row, a)] += 1.0
        found.append((p, sum(step[2] for step in steps), len(steps), score))
    return found


@tables
@over_time
def test_the_law_of_outcome_and_length_agrees_with_enumeration(name: str, over_time: bool) -> None:
    mdp = TABLES[name]()
    logits = policy_logits(mdp, over_time)
    law = outcome_law(mdp, softmax(logits))
    expected = np.zeros_like(law.prob_RH1)
    for p, outcome, length, _ in answers(mdp, logits):
        expected[np.flatnonzero(law.rewards_R == outcome), length] += p
    np.testing.assert_allclose(law.prob_RH1, expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(law.prob_RH1.sum(0), lengths(mdp, softmax(logits)).prob_H1, rtol=0, atol=1e-15)
    assert law.mean_reward == pytest.approx(evaluate(mdp, softmax(logits)).J, abs=1e-15)


@tables
@over_time
def test_the_gradient_of_any_utility_agrees_with_enumeration(name: str, over_time: bool) -> None:
    mdp = TABLES[name]()
    logits = policy_logits(mdp, over_time)
    law = outcome_law(mdp, softmax(logits))
    f = np.random.default_rng(0).normal(size=law.prob_RH1.shape)
    row = {float(r): i for i, r in enumerate(law.rewards_R)}
    expected = sum(p * f[row[outcome], length] * score for p, outcome, length, score in answers(mdp, logits))
    np.testing.assert_allclose(utility_gradient(mdp, logits, law, f), expected, rtol=0, atol=1e-14)
    # The outcome itself gives the policy gradient; a constant gives nothing.
    outcome = np.tile(law.rewards_R[:, None], (1, mdp.horizon + 1))
    exact = softmax_policy_gradient(mdp, logits)
    np.testing.assert_allclose(utility_gradient(mdp, logits, law, outcome), exact, rtol=0, atol=1e-15)
    np.testing.assert_allclose(utility_gradient(mdp, logits, law, np.ones_like(f)), 0.0, rtol=0, atol=1e-15)


@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_the_expected_update_over_all_groups_is_the_gradient_of_the_frozen_utility(group_size: int) -> None:
    """For a credit that needs all three sums, on all 4^4 ordered groups of a chain of three tokens."""
    mdp, logits = chain3(), logits_of([0.5, 0.4, 0.3])
    listed, law = answers(mdp, logits), outcome_law(mdp, softmax(logits))

    def credit(outcome: float, length: int, others: np.ndarray) -> np.ndarray:
        right, tokens, product = others.T
        return (outcome - (product + outcome * length) / (tokens + length)) * group_size / (tokens + length) + right

    def numbers(outcome: float, length: int) -> list[float]:
        return [outcome, length, outcome * length]

    f = frozen_utility(law, group_size, credit, statistic=numbers)
    update = np.zeros_like(logits)
    for group in itertools.product(listed, repeat=group_size):
        total = np.sum([numbers(outcome, length) for _, outcome, length, _ in group], axis=0)
        for _, outcome, length, score in group:
            others = np.array([total - numbers(outcome, length)])
            p = np.prod([member[0] for member in group])
            update += p * float(credit(outcome, length, others)[0]) * score / group_size
    np.testing.assert_allclose(utility_gradient(mdp, logits, law, f), update, rtol=0, atol=1e-15)


def test_sums_agree_with_enumeration_and_unit_vectors_list_all_groups() -> None:
    mdp = fork()
    law = outcome_law(mdp, softmax(policy_logits(mdp, False)))
    kinds = [(i, n) for i, n in np.argwhere(law.prob_RH1 > 0)]
    sums, prob = sums_law(law, 3, lambda outcome, length: [outcome, length])
    expected: dict[tuple[float, ...], float] = {}
    for chosen in itertools.product(kinds, repeat=3):
        key = (sum(float(law.rewards_R[i]) for i, _ in chosen), float(sum(n for _, n in chosen)))
        expected[key] = expected.get(key, 0.0) + float(np.prod([law.prob_RH1[i, n] for i, n in chosen]))
    assert {tuple(row): p for row, p in zip(sums.tolist(), prob.tolist(), strict=True)} == pytest.approx(expected)
    row = {(float(law.rewards_R[i]), int(n)): k for k, (i, n) in enumerate(kinds)}
    multisets, prob = sums_law(law, 3, lambda outcome, length: np.eye(len(kinds))[row[outcome, length]])
    assert len(multisets) == len(list(itertools.combinations_with_replacement(kinds, 3)))
    assert prob.sum() == pytest.approx(1.0, abs=1e-15)


def test_sums_that_round_off_parts_are_one() -> None:
    law = OutcomeLaw(np.array([0.1, 0.3]), np.array([[0.0, 0.5], [0.0, 0.5]]))
    sums, _ = sums_law(law, 4, lambda outcome, length: [outcome])
    assert sums.ravel().tolist() == [0.4, 0.6, 0.8, 1.0, 1.2]


def test_no_others_leave_the_credit_itself() -> None:
    law = OutcomeLaw(np.array([0.0, 1.0]), np.array([[0.0, 0.25, 0.0], [0.0, 0.25, 0.5]]))
    f = frozen_utility(law, 1, lambda outcome, length, others: [outcome / length], statistic=lambda r, n: [r])
    assert f.tolist() == [[0.0, 0.0, 0.0], [0.0, 1.0, 0.5]]


def test_an_outcome_that_is_a_sum_of_rewards_is_refused() -> None:
    mdp = garnet(3, 2, 2, 4, seed=1, end_prob=0.25)
    with pytest.raises(ValueError, match=r"reward_SAK: found a reward of .* after which the response goes on"):
        outcome_law(mdp, np.full((3, 2), 0.5))
    # What cannot happen does not matter.
    never = np.zeros(mdp.next_SAK.shape)
    never[..., 1] = 7.0
    sure = replace(mdp, prob_SAK=np.tile([1.0, 0.0], (3, 2, 1)), reward_SAK=never)
    assert outcome_law(sure, np.full((3, 2), 0.5)).mean_reward == 0.0
