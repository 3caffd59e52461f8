"""Values, optimum, occupancy, lengths and gradient against enumeration, autograd and hand arithmetic."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.exact.values import (
    evaluate,
    iter_evaluate,
    iter_optimum,
    lengths,
    occupancy,
    optimum,
    softmax,
    softmax_policy_gradient,
    state_blocks,
)
from sim.mdp.families import garnet, reasoning_ladder
from sim.mdp.table import TokenMDP
from tests.support import sim_brute_force as brute

EXACT = {"rtol": 0.0, "atol": 1e-12}


def check_against_enumeration(mdp, policy, gamma):
    found = evaluate(mdp, policy, gamma)
    for cell, weighted in brute.cells(mdp, policy):
        q = sum(p * brute.discounted(steps, gamma) for p, steps in weighted)
        np.testing.assert_allclose(found.Q_HSA[cell], q, **EXACT)
    for t, s in np.ndindex(mdp.horizon, mdp.num_states):
        v = sum(p * brute.discounted(steps, gamma) for p, steps in brute.responses(mdp, policy, t, s))
        np.testing.assert_allclose(found.V_HS[t, s], v, **EXACT)
    np.testing.assert_allclose(found.A_HSA, found.Q_HSA - found.V_HS[:-1, :, None], **EXACT)
    assert not found.V_HS[-1].any()

    everything = brute.all_responses(mdp, policy)
    np.testing.assert_allclose(found.J, sum(p * brute.discounted(steps, gamma) for p, steps in everything), **EXACT)
    alive_HS, law_H1, cut = np.zeros((mdp.horizon, mdp.num_states)), np.zeros(mdp.horizon + 1), 0.0
    for p, steps in everything:
        law_H1[len(steps)] += p
        cut += p * (steps[-1][3] != -1)
        for t, step in enumerate(steps):
            alive_HS[t, step[0]] += p
    np.testing.assert_allclose(occupancy(mdp, policy), alive_HS, **EXACT)
    law = lengths(mdp, policy)
    np.testing.assert_allclose(law.prob_H1, law_H1, **EXACT)
    np.testing.assert_allclose([law.cut_prob, law.mean], [cut, law_H1 @ np.arange(mdp.horizon + 1)], **EXACT)


@pytest.mark.parametrize("name", brute.SMALL)
@pytest.mark.parametrize("over_time", [False, True])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_families_agree_with_enumeration(name, over_time, gamma):
    mdp = brute.SMALL[name]()
    check_against_enumeration(mdp, brute.random_policy(mdp, 7, over_time=over_time), gamma)


@settings(deadline=None, max_examples=120)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 4)),
    end_prob=st.sampled_from([0.0, 0.3, 1.0]),
    gamma=st.sampled_from([0.0, 0.7, 1.0]),
    over_time=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_random_tables_agree_with_enumeration(shape, end_prob, gamma, over_time, seed):
    states, tokens, branching, horizon = shape
    mdp = garnet(states, tokens, min(branching, states), horizon, seed=seed, end_prob=end_prob)
    policy = brute.random_policy(mdp, seed, over_time=over_time, with_zeros=True)
    check_against_enumeration(mdp, policy, gamma)


def two_steps() -> TokenMDP:
    """Token 0 ends and pays 1. Token 1 pays 0.5 and stays with probability 0.25, or pays 0 and ends."""
    return TokenMDP(
        "two steps",
        2,
        np.array([1.0]),
        np.array([[[-1, -1], [0, -1]]]),
        np.array([[[1.0, 0.0], [0.25, 0.75]]]),
        np.array([[[1.0, 9.0], [0.5, 0.0]]]),
    )


def test_golden_values():
    """By hand, policy 0.4/0.6, gamma 0.5.

    Q_1 = (1, 0.25 * 0.5) = (1, 0.125); V_1 = 0.4 + 0.6 * 0.125 = 0.475.
    Q_0 = (1, 0.25 * (0.5 + 0.5 * 0.475)) = (1, 0.184375); V_0 = 0.4 + 0.6 * 0.184375 = 0.510625.
    Alive: 1, then 0.6 * 0.25 = 0.15. Cut at the horizon: 0.15 * 0.6 * 0.25 = 0.0225.
    """
    policy = np.array([[0.4, 0.6]])
    found = evaluate(two_steps(), policy, 0.5)
    np.testing.assert_allclose(found.Q_HSA[:, 0], [[1, 0.184375], [1, 0.125]], **EXACT)
    np.testing.assert_allclose(found.V_HS[:, 0], [0.510625, 0.475, 0.0], **EXACT)
    np.testing.assert_allclose(found.J, 0.510625, **EXACT)
    np.testing.assert_allclose(occupancy(two_steps(), policy)[:, 0], [1.0, 0.15], **EXACT)
    law = lengths(two_steps(), policy)
    np.testing.assert_allclose(law.prob_H1, [0.0, 0.85, 0.15], **EXACT)
    np.testing.assert_allclose([law.cut_prob, law.mean], [0.0225, 1.15], **EXACT)
    assert (law.quantile(0.84), law.quantile(0.86)) == (1, 2)
    best = optimum(two_steps(), 0.5)
    assert best.greedy_HS.tolist() == [[0], [0]]
    assert best.J == 1.0


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), gamma=st.sampled_from([0.6, 1.0]), end_prob=st.sampled_from([0.0, 0.3]))
def test_optimum_is_the_best_of_all_deterministic_policies(seed, gamma, end_prob):
    mdp = garnet(2, 2, 2, 2, seed=seed, end_prob=end_prob)
    scores = []
    for tokens in itertools.product(range(2), repeat=4):
        policy = np.eye(2)[np.reshape(tokens, (2, 2))]
        scores.append(sum(p * brute.discounted(steps, gamma) for p, steps in brute.all_responses(mdp, policy)))
    best = optimum(mdp, gamma)
    np.testing.assert_allclose(best.J, max(scores), **EXACT)
    achieved = evaluate(mdp, best.policy_HSA, gamma)
    np.testing.assert_allclose(achieved.V_HS, best.V_HS, **EXACT)
    np.testing.assert_allclose(achieved.Q_HSA, best.Q_HSA, **EXACT)


def torch_objective(mdp: TokenMDP, logits: torch.Tensor, gamma: float) -> torch.Tensor:
    """J by dense matrices, differentiable."""
    size = mdp.num_states
    move = torch.zeros(size, mdp.num_tokens, size, dtype=torch.float64)
    for (s, a, k), s_next in np.ndenumerate(mdp.next_SAK):
        if s_next >= 0:
            move[s, a, s_next] += mdp.prob_SAK[s, a, k]
    reward = torch.tensor((mdp.prob_SAK * mdp.reward_SAK).sum(-1))
    alive, objective = torch.tensor(mdp.initial_S), torch.zeros((), dtype=torch.float64)
    for t in range(mdp.horizon):
        flow = alive[:, None] * torch.softmax(logits[t] if logits.ndim == 3 else logits, dim=-1)
        objective = objective + gamma**t * (flow * reward).sum()
        alive = torch.einsum("sa,saz->z", flow, move)
    return objective


@pytest.mark.parametrize("name", brute.SMALL)
@pytest.mark.parametrize("over_time", [False, True])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_gradient_is_that_of_automatic_differentiation(name, over_time, gamma):
    mdp = brute.SMALL[name]()
    shape = (mdp.horizon, mdp.num_states, mdp.num_tokens)[0 if over_time else 1 :]
    logits = torch.tensor(np.random.default_rng(11).standard_normal(shape), requires_grad=True)
    objective = torch_objective(mdp, logits, gamma)
    objective.backward()
    plain = logits.detach().numpy()
    np.testing.assert_allclose(evaluate(mdp, softmax(plain), gamma).J, objective.item(), **EXACT)
    np.testing.assert_allclose(softmax_policy_gradient(mdp, plain, gamma), logits.grad.numpy(), **EXACT)


def test_gradient_does_not_change_with_a_baseline_of_the_state():
    mdp = brute.SMALL["garnet"]()
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((mdp.num_states, mdp.num_tokens))
    table = evaluate(mdp, softmax(logits)).Q_HSA + rng.standard_normal((mdp.horizon, mdp.num_states, 1))
    np.testing.assert_allclose(
        softmax_policy_gradient(mdp, logits, advantage_HSA=table), softmax_policy_gradient(mdp, logits), **EXACT
    )
    assert np.abs(softmax_policy_gradient(mdp, logits)).max() > 0.01


def test_streams_storage_types_and_blocks_do_not_change_the_answer(monkeypatch):
    mdp = reasoning_ladder(2, 4, 2, 9, num_prompts=2)
    policy = brute.random_policy(mdp, 1, over_time=True)
    whole, best, law = evaluate(mdp, policy, 0.95), optimum(mdp, 0.95), lengths(mdp, policy)
    assert evaluate(mdp, policy, 0.95, dtype=np.float32).Q_HSA.dtype == np.float32
    monkeypatch.setattr("sim.exact.values.BLOCK_NUMBERS", 12)
    assert len(list(state_blocks(mdp))) == 5
    for stream, stored in ((iter_evaluate(mdp, policy, 0.95), whole), (iter_optimum(mdp, 0.95), best)):
        times = []
        for t, V_S, Q_SA in stream:
            times.append(t)
            np.testing.assert_array_equal(V_S, stored.V_HS[t])
            np.testing.assert_array_equal(Q_SA, stored.Q_HSA[t])
        assert times == list(range(9))[::-1]
    np.testing.assert_allclose(lengths(mdp, policy).prob_H1, law.prob_H1, **EXACT)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (np.ones((2, 2)) / 2, r"policy: found shape \(2, 2\); expected \(1, 2\) or \(2, 1, 2\)"),
        (np.array([[0.5, 0.6]]), "policy: found a smallest entry 0.5 and rows that miss a sum of 1 by 0.1"),
        (np.array([[1.5, -0.5]]), "policy: found a smallest entry -0.5"),
        (np.array([[np.nan, 0.5]]), "policy: found a smallest entry nan"),
    ],
)
def test_what_is_not_a_policy_is_refused(policy, message):
    with pytest.raises(ValueError, match=message):
        evaluate(two_steps(), policy)


def test_a_quantile_needs_a_level_inside_0_1():
    with pytest.raises(ValueError, match=r"level: found 1\.0; expected 0 < level < 1"):
        lengths(two_steps(), np.array([[0.4, 0.6]])).quantile(1.0)
