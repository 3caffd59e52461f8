"""Two exact rules that organise all methods whose advantage is one number a response.

1. At the policy that a ratio is centred on, all surrogates of one aggregation have one gradient, -agg(A grad log pi).
2. The expected update is the gradient of an expected utility with frozen coefficients (`sim.exact.utility`).

Both sides of the second come from the algorithms' own selection, shaping, advantage, term and aggregation: once by
enumeration of all groups of responses, once from what they give each (outcome, length) beside every group of others.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from sim import exact
from sim.mdp.families import combination_lock, reasoning_ladder, tailed_length
from sim.mdp.table import TokenMDP
from tests.support.token_trees import (
    CHAIN3_STOP,
    Listed,
    Summed,
    aggregated,
    chain3,
    cosine,
    expected_update,
    fork,
    logits_of,
    outcome_algorithms,
    parts_of,
    slope,
    utility,
    without_kl,
)
from tppo.algorithms.base import Algorithm, Rollout
from tppo.algorithms.conciser import Concise
from tppo.algorithms.dapo import DAPO
from tppo.algorithms.dr_grpo import DrGRPO
from tppo.algorithms.em import EM, EMFilter
from tppo.algorithms.grpo import GRPO
from tppo.algorithms.kimi import Kimi
from tppo.algorithms.maxrl import MaxRL
from tppo.algorithms.opo import OPO, OPOLeaveOneOut
from tppo.algorithms.parts.select import mixed_group
from tppo.algorithms.rloo import RLOO
from tppo.algorithms.topr import TOPR
from tppo.config.registry import algorithm_entry_points, load_algorithm
from tppo.fit.terms import Columns, Now, Term
from tppo.types import Prompt, Response, Status

OUTCOME = outcome_algorithms()
WITH_POLICY_LOSS = [
    name for name in sorted(algorithm_entry_points())
    if [term.name for term in parts_of(without_kl(load_algorithm(name)()), 8, 4).terms[:1]] == ["policy_loss"]
]  # fmt: skip
CHAIN = Listed(chain3(), logits_of(CHAIN3_STOP))
FORK = Listed(fork(), np.array([[0.3, -0.2, 0.5], [0.0, 0.7, -0.4], [0.1, -0.6, 0.2]]))


# Rule 1


def log_likelihood(aggregation: str, like: Term) -> Term:
    """-A log pi with the aggregation that the losses of ``like`` amount to."""

    def loss(now: Now, data: Columns) -> object:
        return like.loss(now, data)._replace(loss_X=-data["advantages"] * now.value_X)

    constant = like.constant_length if aggregation == "constant" else None
    return replace(like, loss=loss, aggregation=aggregation, constant_length=constant)  # type: ignore[arg-type]


# A ratio of the whole response, repeated for its tokens: a mean over them is the loss of the response, whose gradient
# is that of a sum over tokens for the product of ratios.
AMOUNTS_TO = {"kimi": "seq-mean-token-sum", "rloo-sequence": "seq-mean-token-sum"}


@pytest.mark.parametrize("name", WITH_POLICY_LOSS)
def test_at_the_centre_all_surrogates_of_an_aggregation_have_one_gradient(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 1, 5, 2])
    offsets = torch.tensor([0, 3, 4, 9, 11])
    logprobs = (torch.randn(11, generator=g, dtype=torch.float64) - 2).requires_grad_()
    keep = torch.rand(11, generator=g) < 0.8
    advantages = torch.randn(4, generator=g, dtype=torch.float64).repeat_interleave(lengths) * keep
    term = parts_of(without_kl(load_algorithm(name)()), 8, 4).terms[0]
    # Every policy that a term reads is the present one.
    columns: Columns = dict.fromkeys(term.reads, logprobs.detach()) | {"train": keep, "advantages": advantages}
    columns |= {"old": logprobs.detach()}
    now = Now(logprobs, torch.zeros_like(logprobs), offsets)
    plain = log_likelihood(AMOUNTS_TO.get(name, term.aggregation), term)
    [found], [expected] = (torch.autograd.grad(aggregated(t, now, columns), logprobs) for t in (term, plain))
    assert float(expected.abs().max()) > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_every_aggregation_and_kind_of_term_is_among_them() -> None:
    assert {parts_of(without_kl(load_algorithm(n)()), 8, 4).terms[0].aggregation for n in WITH_POLICY_LOSS} == {
        "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant",
    }  # fmt: skip
    assert {"grpo", "gspo", "cispo", "sapo", "dppo", "topr", "kimi", "rloo-sequence", "raft", "ppo"} <= set(
        WITH_POLICY_LOSS
    )


# Rule 2


@pytest.mark.parametrize("name", OUTCOME)
@pytest.mark.parametrize(("table", "group_size"), [(CHAIN, 3), (FORK, 2)], ids=["chain", "fork"])
def test_the_expected_update_is_the_gradient_of_the_frozen_utility(table: Listed, group_size: int, name: str) -> None:
    """On all 4^3 groups of a chain and all 7^2 of a tree with graded outcomes, in every order."""
    update = expected_update(table, OUTCOME[name], group_size, ordered=True)
    gradient = table.gradient(utility(table, OUTCOME[name], group_size))
    assert np.abs(update).max() > 1e-3
    np.testing.assert_allclose(update, gradient, rtol=0, atol=1e-12)


def prompt_of(mdp: TokenMDP, state: int) -> Listed:
    """One prompt of a table: responses start in one state."""
    one = replace(mdp, initial_S=np.eye(mdp.num_states)[state])
    return Listed(one, np.random.default_rng(0).normal(size=(mdp.num_states, mdp.num_tokens)))


FAMILIES = {
    "reasoning ladder": prompt_of(reasoning_ladder(1, 4, 1, 3, num_prompts=2, seed=4), 3),
    "combination lock": prompt_of(combination_lock(1, 3, 4, seed=5), 0),
    "tailed length": prompt_of(tailed_length(1.0, 2, 3, 4, seed=6), 1),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("algorithm", [GRPO(kl=0.0), DAPO()], ids=lambda a: a.name)
def test_the_rule_holds_where_states_merge(family: str, algorithm: Algorithm) -> None:
    """Families of token MDPs, whose states are reached in several ways; all pairs of responses."""
    table = FAMILIES[family]
    gradient = table.gradient(utility(table, algorithm, 2))
    np.testing.assert_allclose(expected_update(table, algorithm, 2), gradient, rtol=0, atol=1e-12)


# Its coefficients for outcomes 0 and 1: h(p)


def grpo_slope(p: float, G: int) -> float:
    terms = [math.comb(G, k) * p**k * (1 - p) ** (G - k) * math.sqrt(k * (G - k) * (G - 1) / G) for k in range(1, G)]
    return sum(terms) / (G * p * (1 - p))


SLOPES = {
    **dict.fromkeys(["rloo", "rloo-sequence", "raft", "topr", "opo-loo"], lambda p, G: 1.0),
    **dict.fromkeys(["dr-grpo", "dppo", "kimi", "em-baseline", "opo", "conciser"], lambda p, G: 1 - 1 / G),
    **dict.fromkeys(["grpo", "gspo", "cispo", "sapo", "dapo", "fisft", "conciser-walk"], grpo_slope),
    "maxrl": lambda p, G: (1 - (1 - p) ** (G - 1)) / p,
    "em": lambda p, G: (1 - (1 - p) ** G) / p,
}
AT = [0.05, 0.25, 0.5, 0.75, 0.95]


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize(("p", "group_size"), [(0.05, 4), (0.5, 3), (0.75, 8), (0.3, 2)])
def test_slope_of_every_objective(name: str, p: float, group_size: int) -> None:
    assert slope(OUTCOME[name], p, group_size) == pytest.approx(SLOPES[name](p, group_size), abs=1e-12)


@pytest.mark.parametrize(
    ("algorithm", "group_size", "expected"),
    [
        (GRPO(kl=0, eps=1e-300), 4, [1.4809, 1.4246, 1.3995, 1.4246, 1.4809]),
        (GRPO(kl=0, eps=1e-300), 8, [2.3133, 1.8953, 1.7358, 1.8953, 2.3133]),
        (GRPO(kl=0, eps=1e-300), 2, [0.7071] * 5),  # of two members the standard deviation does nothing
        (MaxRL(), 8, [6.033, 3.466, 1.984, 1.333, 1.053]),
    ],
    ids=["grpo 4", "grpo 8", "grpo 2", "maxrl 8"],
)
def test_worked_slopes(algorithm: Algorithm, group_size: int, expected: list[float]) -> None:
    assert [slope(algorithm, p, group_size) for p in AT] == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("group_size", [2, 4, 8])
def test_an_all_wrong_group_that_is_pushed_raises_maxrls_order_by_one(group_size: int) -> None:
    """-1 for all of them makes log p truncated at order G; so do EM's weights, without a baseline."""
    for p in AT:
        expected = (1 - (1 - p) ** group_size) / p
        assert slope(MaxRL(all_wrong=-1.0), p, group_size) == pytest.approx(expected, abs=1e-12)
        assert slope(EM(), p, group_size) == pytest.approx(expected, abs=1e-12)


def test_large_groups_of_grpo_ascend_the_arc_sine() -> None:
    """2 arcsin sqrt p has the slope 1 / sqrt(p (1 - p)); the formula of finite groups rises to it."""
    for p, limit in zip(AT, [4.588, 2.309, 2.0, 2.309, 4.588], strict=True):
        rising = [grpo_slope(p, G) for G in (8, 64, 512)]
        assert rising == sorted(rising)
        assert rising[-1] == pytest.approx(limit, rel=0.03)
        assert limit == pytest.approx(1 / math.sqrt(p * (1 - p)), abs=6e-4)


# What is unbiased, and what bends the direction


UNBIASED = [(DrGRPO(), "shrunk, over the cap"), (Kimi(), "shrunk"), (RLOO(), ""), (TOPR(), "")]


@pytest.mark.parametrize(
    ("table", "algorithm", "factor"),
    [*((t, *row) for t in (CHAIN, FORK) for row in UNBIASED), *((t, *UNBIASED[0]) for t in FAMILIES.values())],
    ids=lambda x: x.mdp.name if isinstance(x, Listed) else getattr(x, "name", ""),
)
def test_unbiased_up_to_a_constant(table: Listed, algorithm: Algorithm, factor: str) -> None:
    """Dr.GRPO up to (1 - 1/G) / cap, RLOO and a constant baseline exactly, on every table whatever the lengths."""
    true = exact.softmax_policy_gradient(table.mdp, table.logits)
    shrunk = 1 - 1 / 2 if "shrunk" in factor else 1.0
    update = expected_update(table, algorithm, 2) / shrunk * (table.mdp.horizon if "cap" in factor else 1)
    np.testing.assert_allclose(update, true, rtol=0, atol=1e-14)


def test_the_own_response_in_the_length_baseline_bends_the_direction() -> None:
    """Cosines to the gradient on the chain for G = 2..6, where responses count alike; without it the estimator is
    unbiased. A mean over the tokens of one group bends both.
    """
    true = exact.softmax_policy_gradient(CHAIN.mdp, CHAIN.logits)

    def direction(algorithm: Algorithm, group_size: int) -> float:
        return cosine(CHAIN.gradient(utility(CHAIN, algorithm, group_size)), true)

    own = [direction(Summed(OPO()), G) for G in range(2, 7)]
    assert own == pytest.approx([0.9923, 0.9957, 0.9973, 0.9981, 0.9987], abs=6e-5)
    assert (direction(OPO(), 2), direction(OPOLeaveOneOut(), 2)) == pytest.approx((0.9771, 0.9947), abs=6e-5)
    for group_size in (2, 4):
        unbiased = CHAIN.gradient(utility(CHAIN, Summed(OPOLeaveOneOut()), group_size))
        np.testing.assert_allclose(unbiased, true, rtol=0, atol=1e-14)


def constant_baseline_variance(table: Listed, baseline: float) -> float:
    """Trace of the variance of (R - b) s of one response, by TOPR's own update at the centre."""
    algorithm, total, mean = TOPR(baseline=baseline), 0.0, np.zeros_like(table.logits)
    for i, (p, _, _) in enumerate(table.answers):
        one = replace_answers(table, i)
        update = expected_update(one, algorithm, 1)
        total, mean = total + p * float((update**2).sum()), mean + p * update
    return total - float((mean**2).sum())


def replace_answers(table: Listed, i: int) -> Listed:
    """Only one response, with certainty, under the same logits."""
    one = Listed(table.mdp, table.logits)
    one.__dict__["answers"] = [(1.0, *table.answers[i][1:])]
    return one


def test_worked_variances_of_constant_baselines() -> None:
    """OPO (arXiv 2505.23585): the length baseline is the best one where scores are equally long, under the uniform
    policy of a tree, and near it elsewhere.
    """
    found = [constant_baseline_variance(CHAIN, b) for b in (0, 0.29, 0.3722, 0.4688)]
    assert found == pytest.approx([0.3419, 0.17925, 0.15964, 0.15156], abs=6e-6)
    uniform = Listed(chain3(), np.zeros((3, 2)))
    length = sum(p * len(steps) * r for p, steps, r in uniform.answers) / sum(
        p * len(steps) for p, steps, _ in uniform.answers
    )
    assert length == 0.5
    at_best, at_mean = (constant_baseline_variance(uniform, b) for b in (length, uniform.law.mean_reward))
    assert (at_best, at_mean) == pytest.approx((0.132812, 0.146484), abs=5e-7)
    assert at_best < min(constant_baseline_variance(uniform, length + step) for step in (-0.01, 0.01))


@dataclass(frozen=True)
class OwnTokens(TOPR):
    """A constant baseline, and a mean over each response's own tokens."""

    def objective(self, rollout: Rollout) -> Term:
        return replace(super().objective(rollout), aggregation="seq-mean-token-mean")


def test_positives_negatives_and_both_have_one_direction_and_three_variances() -> None:
    """Without 1/L, since the score has mean 0: w = R, R - 1 and R - p (arXiv 2505.13697, filtered fine-tuning)."""
    true = exact.softmax_policy_gradient(CHAIN.mdp, CHAIN.logits)
    variances = []
    for baseline in (0.0, 1.0, 0.29):
        update = expected_update(CHAIN, TOPR(baseline=baseline), 2)
        np.testing.assert_allclose(update, true, rtol=0, atol=1e-15)
        variances.append(constant_baseline_variance(CHAIN, baseline))
    assert variances == pytest.approx([0.3419, 0.3959, 0.1793], abs=6e-5)
    positives = CHAIN.gradient(utility(CHAIN, Summed(EMFilter()), 2))
    np.testing.assert_allclose(positives, true, rtol=0, atol=1e-15)
    # With a mean over own tokens they are three directions.
    shorter = [CHAIN.gradient(utility(CHAIN, OwnTokens(baseline=b), 2)) for b in (0.0, 1.0, 0.29)]
    assert max(cosine(a, b) for a, b in itertools.combinations(shorter, 2)) < 0.99


def test_wrong_answers_grow_longer_by_the_mean_over_own_tokens() -> None:
    """d E[L | wrong] along a unit step of GRPO's advantage, G = 4: n = 1, a mean over tokens, over own tokens."""
    law, L = CHAIN.law, np.arange(4)
    wrong = np.array([[1.0], [0.0]])
    p, mean = law.mean_reward, float((law.prob_RH1 * wrong * L).sum()) / (1 - law.mean_reward)
    solve_rate, wrong_tokens = CHAIN.gradient(1 - np.tile(wrong, (1, 4))), CHAIN.gradient(wrong * L)

    def growth(algorithm: Algorithm) -> float:
        step = CHAIN.gradient(utility(CHAIN, algorithm, 4))
        unit = step / np.linalg.norm(step)
        return float((wrong_tokens * unit).sum() + mean * (solve_rate * unit).sum()) / (1 - p)

    grpo = without_kl(GRPO())
    found = [growth(Summed(grpo)), growth(OUTCOME["cispo"]), growth(grpo)]
    assert found == pytest.approx([0.304, 0.332, 0.425], abs=6e-4)


# Filters and gates


@pytest.mark.parametrize(("p", "expected"), [(0.01, 6.73), (0.05, 1.79), (0.25, 1.01), (0.5, 1.0)])
def test_mixed_groups_are_rare_at_the_ends(p: float, expected: float) -> None:
    """1 / P(mixed) of 16, by the filter itself: what dynamic sampling costs, and by how much it enlarges a step."""
    chance = 0.0
    for right in range(17):
        outcomes = [1.0] * right + [0.0] * (16 - right)
        members = [Response(0, 0, Prompt("p", (1,)), status=Status.EOS, reward=outcome) for outcome in outcomes]
        chance += math.comb(16, right) * p**right * (1 - p) ** (16 - right) * (mixed_group(members, 0) == "now")
    assert 1 / chance == pytest.approx(expected, abs=6e-3)


def test_dropping_groups_without_variance_changes_no_direction() -> None:
    """They contribute exactly nothing at the centre, without an overlong penalty."""
    filtered = expected_update(CHAIN, without_kl(DAPO(buffer=0.0)), 3)
    np.testing.assert_allclose(filtered, expected_update(CHAIN, OUTCOME["cispo"], 3), rtol=0, atol=1e-15)


def test_the_gate_of_conciseness_opens_like_a_power_of_the_solve_rate() -> None:
    """It adds p^(G-1) (1 - 1/G) (E[L | right] - L) / cap to Dr.GRPO's utility of a right response, nothing else."""
    G, p = 3, CHAIN.law.mean_reward
    gate = utility(CHAIN, Summed(Concise()), G) - utility(CHAIN, Summed(DrGRPO()), G)
    mean = float(CHAIN.law.prob_RH1[1] @ np.arange(4)) / p
    expected = p ** (G - 1) * (1 - 1 / G) * (mean - np.arange(4)) / 3
    np.testing.assert_allclose(gate[1, 2:], expected[2:], rtol=0, atol=1e-14)
    np.testing.assert_allclose(gate[0], 0.0, rtol=0, atol=1e-14)
    assert pytest.approx((0.478, 0.0078), abs=5e-4) == (0.9**7, 0.5**7)
