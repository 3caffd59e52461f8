"""Exact moments of advantage estimators against enumeration and hand arithmetic, and what is and is not unbiased."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.exact.moments import estimator_moments, iter_estimator_moments
from sim.exact.values import evaluate, lengths, softmax, softmax_policy_gradient
from sim.mdp.families import combination_lock, garnet, reasoning_ladder, tailed_length
from sim.mdp.table import TokenMDP
from tests.support import sim_brute_force as brute

EXACT = {"rtol": 0.0, "atol": 1e-12}
CHOICES = [
    {"estimator": "gae"},
    {"estimator": "monte-carlo"},
    *({"estimator": "egae", "boundary": b, "window": w} for b in ("repeat", "critic", "terminal") for w in (1, 2, 3)),
]


def random_critic(mdp, seed, *, over_time):
    shape = (mdp.horizon + 1, mdp.num_states) if over_time else (mdp.num_states,)
    return np.random.default_rng(seed).standard_normal(shape)


def check_against_enumeration(mdp, policy, critic, gamma, lam, choices=CHOICES):
    critic_HS = np.broadcast_to(critic, (mdp.horizon + 1, mdp.num_states))
    weighted_at = dict(brute.cells(mdp, policy))
    for choice in choices:
        lam_used = 1.0 if choice["estimator"] == "monte-carlo" else lam
        found = estimator_moments(mdp, policy, critic, gamma=gamma, lam=lam_used, **choice)
        assert found.variance_HSA.min() >= 0.0
        for cell, weighted in weighted_at.items():
            mean, variance = brute.moments(
                weighted,
                lambda steps, t=cell[0], choice=choice, lam=lam_used: brute.advantage(
                    steps, t, critic_HS, gamma=gamma, lam=lam, **choice
                ),
            )
            np.testing.assert_allclose(found.mean_HSA[cell], mean, **EXACT)
            np.testing.assert_allclose(found.variance_HSA[cell], variance, **EXACT)


@pytest.mark.parametrize("name", brute.SMALL)
@pytest.mark.parametrize(("gamma", "lam", "over_time"), [(1.0, 0.95, False), (0.9, 0.7, True)])
def test_families_agree_with_enumeration(name, gamma, lam, over_time):
    mdp = brute.SMALL[name]()
    policy = brute.random_policy(mdp, 7, over_time=over_time)
    check_against_enumeration(mdp, policy, random_critic(mdp, 8, over_time=over_time), gamma, lam)


@settings(deadline=None, max_examples=150)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(1, 4)),
    end_prob=st.sampled_from([0.0, 0.3, 1.0]),
    gamma=st.sampled_from([0.0, 0.7, 1.0]),
    lam=st.sampled_from([0.0, 0.5, 1.0]),
    over_time=st.booleans(),
    seed=st.integers(0, 10_000),
    choice=st.sampled_from(CHOICES),
)
def test_random_tables_agree_with_enumeration(shape, end_prob, gamma, lam, over_time, seed, choice):
    states, tokens, branching, horizon = shape
    mdp = garnet(states, tokens, min(branching, states), horizon, seed=seed, end_prob=end_prob)
    policy = brute.random_policy(mdp, seed, over_time=over_time, with_zeros=True)
    check_against_enumeration(mdp, policy, random_critic(mdp, seed, over_time=over_time), gamma, lam, [choice])


def stop_or_go(horizon: int) -> TokenMDP:
    """One state. Token 0 ends and pays 1, token 1 goes on and pays nothing."""
    ones = np.ones((1, 2, 1))
    return TokenMDP("stop or go", horizon, np.array([1.0]), np.array([[[-1], [0]]]), ones, np.array([[[1.0], [0.0]]]))


def test_golden_moments():
    """By hand: horizon 3, window 2, policy 1/4 stop and 3/4 go, critic 0.6, gamma 0.8, lambda 0.5, so c = 0.4.

    t=2 (last of all): mean = r - 0.6 = (0.4, -0.6), variance 0.
    t=1 (last of window 0): stop 1 - 0.6 = 0.4; go, by boundary: repeat 0.8*0.6 - 0.6 = -0.12, the critic's value is the
        same number here, terminal -0.6. Variance 0.
    t=0: stop 0.4, variance 0. Go: d = 0.8*0.6 - 0.6 = -0.12; next M = 0.25*0.4 + 0.75*(-0.12) = 0.01 (repeat) or
        0.25*0.4 - 0.75*0.6 = -0.35 (terminal); mean = -0.12 + 0.4*M = -0.116 or -0.26.
        V = 0.25*0.75*(0.4 - x)^2, x = -0.12 or -0.6: 0.0507 or 0.1875; variance = 0.16*V = 0.008112 or 0.03.
    """
    policy, critic = np.array([[0.25, 0.75]]), np.array([0.6])
    arguments = {"estimator": "egae", "window": 2, "gamma": 0.8, "lam": 0.5}
    repeat = estimator_moments(stop_or_go(3), policy, critic, boundary="repeat", **arguments)
    np.testing.assert_allclose(repeat.mean_HSA[:, 0], [[0.4, -0.116], [0.4, -0.12], [0.4, -0.6]], **EXACT)
    np.testing.assert_allclose(repeat.variance_HSA[:, 0], [[0, 0.008112], [0, 0], [0, 0]], **EXACT)
    terminal = estimator_moments(stop_or_go(3), policy, critic, boundary="terminal", **arguments)
    np.testing.assert_allclose(terminal.mean_HSA[:, 0], [[0.4, -0.26], [0.4, -0.6], [0.4, -0.6]], **EXACT)
    np.testing.assert_allclose(terminal.variance_HSA[:, 0], [[0, 0.03], [0, 0], [0, 0]], **EXACT)


BIGGER = {
    "garnet": lambda: garnet(12, 4, 3, 20, seed=1, end_prob=0.05),
    "garnet stop token": lambda: garnet(12, 4, 1, 20, seed=2, stop_token=True),
    "reasoning ladder": lambda: reasoning_ladder(2, 4, 2, 24, num_prompts=2, seed=3),
    "combination lock": lambda: combination_lock(3, 3, 20, seed=4),
    "tailed length": lambda: tailed_length(1.0, 8, 3, seed=5),
}


@pytest.mark.parametrize("name", BIGGER)
@pytest.mark.parametrize("window", [1, 3, 7])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
class TestExactCritic:
    """The critic is the policy's own value function."""

    def setup(self, name, gamma):
        mdp = BIGGER[name]()
        policy = brute.random_policy(mdp, 3, over_time=True)
        return mdp, policy, evaluate(mdp, policy, gamma)

    def test_gae_and_the_critics_own_boundary_are_unbiased_everywhere(self, name, window, lam, gamma):
        mdp, policy, values = self.setup(name, gamma)
        for choice in ({"estimator": "gae"}, {"estimator": "egae", "boundary": "critic", "window": window}):
            found = estimator_moments(mdp, policy, values.V_HS, gamma=gamma, lam=lam, **choice)
            np.testing.assert_allclose(found.mean_HSA, values.A_HSA, **EXACT)

    def test_the_bias_of_repeat_is_what_the_docstring_says(self, name, window, lam, gamma):
        """bias = gamma c^(l-1-t) E[1{alive at l} (V_{l-1} - V_l) | s_t, a_t], by a walk forward from every cell."""
        mdp, policy, values = self.setup(name, gamma)
        found = estimator_moments(
            mdp, policy, values.V_HS, estimator="egae", boundary="repeat", window=window, gamma=gamma, lam=lam
        )
        goes_on_SAK = mdp.prob_SAK * (mdp.next_SAK >= 0)
        move_SAS = np.zeros((mdp.num_states, mdp.num_tokens, mdp.num_states))
        for (s, a, k), p in np.ndenumerate(goes_on_SAK):
            move_SAS[s, a, mdp.next_SAK[s, a, k]] += p
        expected = values.A_HSA.copy()
        for t in range(mdp.horizon):
            end = min((t // window + 1) * window, mdp.horizon)
            if end == mdp.horizon:
                continue
            drop_SA = goes_on_SAK.sum(-1) * values.V_HS[end - 1][:, None] - move_SAS @ values.V_HS[end]
            bias_SA = drop_SA if t == end - 1 else None
            if bias_SA is None:
                alive_SAS = move_SAS
                for u in range(t + 1, end - 1):
                    alive_SAS = alive_SAS @ np.einsum("sa,saz->sz", policy[u], move_SAS)
                bias_SA = alive_SAS @ (policy[end - 1] * drop_SA).sum(-1)
            expected[t] += gamma * (gamma * lam) ** (end - 1 - t) * bias_SA
        np.testing.assert_allclose(found.mean_HSA, expected, **EXACT)


def no_end_in_the_last_slot(mdp, window, *, stop_rows):
    """A policy that may stop anywhere but in the last slot of a window."""
    policy = brute.random_policy(mdp, 3, over_time=True)
    for t in range(window - 1, mdp.horizon, window):
        policy[t][:, stop_rows] = 0.0
        policy[t] /= policy[t].sum(axis=-1, keepdims=True)
    return policy


@pytest.mark.parametrize("name", ["reasoning ladder", "combination lock", "tailed length"])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_repeat_is_unbiased_before_the_last_token_when_nothing_can_end_there(name, lam):
    """Exact critic, gamma = 1, rewards only at the end, no end in a window's last slot."""
    mdp, window = BIGGER[name](), 4
    policy = no_end_in_the_last_slot(mdp, window, stop_rows=0)
    values = evaluate(mdp, policy)
    found = estimator_moments(mdp, policy, values.V_HS, estimator="egae", boundary="repeat", window=window, lam=lam)
    last_whole = (mdp.horizon - 1) // window * window  # the tokens of the last window are never cut
    for t in range(mdp.horizon):
        if t < last_whole and t % window == window - 1:
            # Last token of an unfinished window: 0 by construction, and so without variance; the truth is not 0.
            np.testing.assert_allclose(found.mean_HSA[t][:, 1:], 0.0, **EXACT)
            np.testing.assert_allclose(found.variance_HSA[t], 0.0, **EXACT)
            assert np.abs(values.A_HSA[t][:, 1:]).max() > 1e-6
            # A stop there finishes the window: return minus value, which is exact.
            np.testing.assert_allclose(found.mean_HSA[t][:, 0], values.A_HSA[t][:, 0], **EXACT)
        else:
            np.testing.assert_allclose(found.mean_HSA[t], values.A_HSA[t], **EXACT)


def test_repeat_is_biased_before_the_last_token_when_the_response_can_end_there():
    """The counterexample, by hand: stop or go, horizon 3, window 2, stop probability 1/2, gamma 1.

    V_2 = 1/2, V_1 = 1/2 + 1/4 = 3/4, V_0 = 1/2 + 3/8 = 7/8. True A_0(go) = 3/4 - 7/8 = -1/8.
    A_1: stop 1 - 3/4 = 1/4; go, unfinished, 0 instead of V_2 - V_1 = -1/4. Their average is 1/8, not 0.
    Hence the estimate of A_0(go) is -1/8 + lambda/8: the formula P(end) (E[r | end] - V_1) = 1/2 (1 - 3/4) = 1/8.
    """
    policy = np.array([[0.5, 0.5]])
    values = evaluate(stop_or_go(3), policy)
    np.testing.assert_allclose(values.V_HS[:, 0], [7 / 8, 3 / 4, 1 / 2, 0.0], **EXACT)
    np.testing.assert_allclose(values.A_HSA[0, 0], [1 / 8, -1 / 8], **EXACT)
    for lam in (0.0, 0.5, 1.0):
        found = estimator_moments(
            stop_or_go(3), policy, values.V_HS, estimator="egae", boundary="repeat", window=2, lam=lam
        )
        np.testing.assert_allclose(found.mean_HSA[0, 0], [1 / 8, (lam - 1) / 8], **EXACT)
        np.testing.assert_allclose(found.mean_HSA[1, 0], [1 / 4, 0.0], **EXACT)


def test_the_bias_of_repeat_fades_away_from_the_cut_by_lambda():
    mdp, window, lam = BIGGER["garnet"](), 10, 0.8
    policy = brute.random_policy(mdp, 3, over_time=False)
    values = evaluate(mdp, policy)
    arguments = {"estimator": "egae", "boundary": "repeat", "window": window}
    bias = {
        decay: np.abs(estimator_moments(mdp, policy, values.V_HS, lam=decay, **arguments).mean_HSA - values.A_HSA)
        for decay in (lam, 1.0)
    }
    for t in range(window - 1):
        np.testing.assert_allclose(bias[lam][t], bias[1.0][t] * lam ** (window - 1 - t), **EXACT)
        assert bias[1.0][t].max() > 1e-3


@pytest.mark.parametrize("name", BIGGER)
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_identities_for_any_critic(name, gamma):
    mdp = BIGGER[name]()
    policy, critic = brute.random_policy(mdp, 1, over_time=True), random_critic(mdp, 2, over_time=True)

    def solve(**choice):
        found = estimator_moments(mdp, policy, critic, gamma=gamma, **choice)
        return found.mean_HSA, found.variance_HSA

    gae = solve(estimator="gae", lam=0.9)
    for boundary in ("repeat", "critic", "terminal"):
        for window in (mdp.horizon, mdp.horizon + 5):
            np.testing.assert_array_equal(solve(estimator="egae", boundary=boundary, window=window, lam=0.9), gae)
    # With lambda 1 the critic's errors telescope, at every gamma.
    monte_carlo = solve(estimator="monte-carlo")
    np.testing.assert_allclose(solve(estimator="gae", lam=1.0), monte_carlo, **EXACT)
    values = evaluate(mdp, policy, gamma)
    np.testing.assert_allclose(monte_carlo[0], values.Q_HSA - critic[:-1, :, None], **EXACT)
    # A window of one token has no use for lambda.
    one = {"estimator": "egae", "boundary": "repeat", "window": 1}
    np.testing.assert_array_equal(solve(**one, lam=0.3), solve(**one, lam=0.9))


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_variance_at_lambda_0_is_that_of_one_reward_and_one_value(gamma):
    mdp = BIGGER["garnet"]()
    policy, critic = brute.random_policy(mdp, 1, over_time=True), random_critic(mdp, 2, over_time=True)
    found = estimator_moments(mdp, policy, critic, estimator="gae", gamma=gamma, lam=0.0)
    for t in range(mdp.horizon):
        after_S = np.zeros(mdp.num_states) if t + 1 == mdp.horizon else critic[t + 1]
        x = mdp.reward_SAK + gamma * np.where(mdp.next_SAK >= 0, after_S[mdp.next_SAK], 0.0)
        mean = (mdp.prob_SAK * x).sum(-1)
        np.testing.assert_allclose(found.mean_HSA[t], mean - critic[t][:, None], **EXACT)
        np.testing.assert_allclose(found.variance_HSA[t], (mdp.prob_SAK * x**2).sum(-1) - mean**2, **EXACT)
    assert not estimator_moments(
        BIGGER["combination lock"](), np.full((4, 3), 1 / 3), np.ones(4), estimator="gae", lam=0.0
    ).variance_HSA.any()


def test_monte_carlo_variance_ignores_the_critic_and_only_the_mean_shifts():
    mdp = BIGGER["reasoning ladder"]()
    policy, critic = brute.random_policy(mdp, 1, over_time=False), random_critic(mdp, 2, over_time=False)
    with_critic = estimator_moments(mdp, policy, critic, estimator="monte-carlo")
    without = estimator_moments(mdp, policy, 0 * critic, estimator="monte-carlo")
    np.testing.assert_array_equal(with_critic.variance_HSA, without.variance_HSA)
    np.testing.assert_allclose(with_critic.mean_HSA, without.mean_HSA - critic[:, None], **EXACT)


def test_a_huge_critic_costs_no_digits_of_the_variance():
    """Subtracting squares would lose everything: 1e8 squared against a variance below 1."""
    mdp = stop_or_go(6)
    policy = np.array([[0.25, 0.75]])
    plain = estimator_moments(mdp, policy, np.zeros(1), estimator="gae", lam=1.0)
    huge = estimator_moments(mdp, policy, np.array([1e8]), estimator="monte-carlo")
    assert plain.variance_HSA[0, 0, 1] > 0.1
    np.testing.assert_allclose(huge.variance_HSA, plain.variance_HSA, rtol=1e-12)
    shifted = estimator_moments(mdp, policy, np.array([1e8]), estimator="gae", lam=1.0)
    assert shifted.variance_HSA.min() >= 0.0
    np.testing.assert_allclose(shifted.variance_HSA, plain.variance_HSA, atol=1e-6)


def test_expected_policy_gradient_of_an_estimator():
    """An unbiased estimator gives the exact gradient; "terminal" does not."""
    mdp = BIGGER["reasoning ladder"]()
    logits = np.random.default_rng(0).standard_normal((mdp.num_states, mdp.num_tokens))
    truth, values = softmax_policy_gradient(mdp, logits), evaluate(mdp, softmax(logits))
    assert lengths(mdp, softmax(logits)).mean > 3.0

    def expected(**choice):
        table = estimator_moments(mdp, softmax(logits), values.V_HS, **choice).mean_HSA
        return softmax_policy_gradient(mdp, logits, advantage_HSA=table)

    np.testing.assert_allclose(expected(estimator="egae", boundary="critic", window=3, lam=0.5), truth, **EXACT)
    np.testing.assert_allclose(expected(estimator="monte-carlo"), truth, **EXACT)
    wrong = expected(estimator="egae", boundary="terminal", window=3, lam=0.5)
    assert np.abs(wrong - truth).max() > 0.1 * np.abs(truth).max()


def test_streams_storage_types_and_blocks_do_not_change_the_answer(monkeypatch):
    mdp = BIGGER["garnet"]()
    policy, critic = brute.random_policy(mdp, 1, over_time=True), random_critic(mdp, 2, over_time=True)
    choice = {"estimator": "egae", "boundary": "repeat", "window": 6, "gamma": 0.9, "lam": 0.8}
    stored = estimator_moments(mdp, policy, critic, **choice)
    narrow = estimator_moments(mdp, policy, critic, dtype=np.float32, **choice)
    assert narrow.mean_HSA.dtype == narrow.variance_HSA.dtype == np.float32
    np.testing.assert_array_equal(narrow.variance_HSA, stored.variance_HSA.astype(np.float32))
    monkeypatch.setattr("sim.exact.values.BLOCK_NUMBERS", 50)
    times = []
    for t, mean_SA, variance_SA in iter_estimator_moments(mdp, policy, critic, **choice):
        times.append(t)
        np.testing.assert_array_equal(mean_SA, stored.mean_HSA[t])
        np.testing.assert_array_equal(variance_SA, stored.variance_HSA[t])
    assert times == list(range(mdp.horizon))[::-1]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"estimator": "td"}, "estimator: found 'td'"),
        ({"estimator": "egae", "window": 2}, "boundary: found None; expected"),
        ({"estimator": "egae", "boundary": "zero", "window": 2}, "boundary: found 'zero'"),
        ({"estimator": "egae", "boundary": "repeat"}, "window: found None; expected at least 1"),
        ({"estimator": "egae", "boundary": "repeat", "window": 0}, "window: found 0"),
        ({"estimator": "gae", "window": 2}, "boundary, window: found None, 2; expected neither"),
        ({"estimator": "gae", "boundary": "critic"}, "boundary, window: found 'critic', None"),
        ({"estimator": "monte-carlo", "lam": 0.5}, "lam: found 0.5; expected 1"),
        ({"estimator": "gae", "critic": np.ones(2)}, r"critic: found shape \(2,\); expected \(1,\) or \(4, 1\)"),
        ({"estimator": "gae", "critic": np.array([np.nan])}, "critic: found NaN"),
    ],
)
def test_impossible_choices_are_refused(choice, message):
    arguments = {"critic": np.ones(1)} | choice
    with pytest.raises(ValueError, match=message):
        estimator_moments(stop_or_go(3), np.array([[0.5, 0.5]]), **arguments)
