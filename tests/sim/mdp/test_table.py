"""The table: validation, its two readings by step and walk, and what it says about itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.mdp.families import garnet, reasoning_ladder
from sim.mdp.table import TokenMDP
from tests.support.sim_brute_force import SMALL, bernstein


def table(**changes):
    fields = {
        "name": "two states",
        "horizon": 3,
        "initial_S": np.array([0.25, 0.75]),
        "next_SAK": np.array([[[-1, 0], [1, 0]], [[-1, -1], [0, 1]]]),
        "prob_SAK": np.array([[[1.0, 0.0], [0.5, 0.5]], [[0.5, 0.5], [0.2, 0.8]]]),
        "reward_SAK": np.arange(8.0).reshape(2, 2, 2),
    }
    return TokenMDP(**(fields | changes))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("horizon", 0, "horizon: found 0; expected an int of at least 1"),
        ("horizon", 3.0, "horizon: found 3.0"),
        ("initial_S", [0.5, 0.5], "initial_S: found list; expected a numpy array of float64"),
        ("initial_S", np.ones(2, np.float32) / 2, "initial_S: found an array of float32"),
        ("initial_S", np.array([0.5, 0.6]), "initial_S: found a last-axis sum that misses 1 by 0.1"),
        ("initial_S", np.ones(3) / 3, r"initial_S: found shape \(3,\); expected shape \(2,\)"),
        ("initial_S", np.array([np.nan, 1.0]), "initial_S: found a smallest entry of nan"),
        ("next_SAK", np.zeros((2, 2, 2), np.int32), "next_SAK: found an array of int32"),
        ("next_SAK", np.full((2, 2, 2), 2), "next_SAK: found values from 2 to 2; expected state indices 0..1, or -1"),
        ("next_SAK", np.full((2, 2, 2), -2), "next_SAK: found values from -2"),
        ("next_SAK", np.zeros((2, 2), np.int64), r"next_SAK: found shape \(2, 2\); expected three axes"),
        ("prob_SAK", np.full((2, 2, 2), 0.4), "prob_SAK: found a last-axis sum that misses 1 by 0.2"),
        ("prob_SAK", np.array([1.5, -0.5]) * np.ones((2, 2, 1)), "prob_SAK: found a smallest entry of -0.5"),
        ("prob_SAK", np.ones((2, 2, 1)), r"prob_SAK: found shape \(2, 2, 1\)"),
        ("reward_SAK", np.full((2, 2, 2), np.inf), "reward_SAK: found NaN or infinity; expected finite rewards"),
    ],
)
def test_a_broken_table_is_refused_with_the_field_and_what_was_found(field, value, message):
    with pytest.raises(ValueError, match=message):
        table(**{field: value})


def test_arrays_of_a_table_are_read_only_and_the_callers_are_not_touched():
    mine = np.array([0.25, 0.75])
    mdp = table(initial_S=mine)
    with pytest.raises(ValueError, match="read-only"):
        mdp.initial_S[0] = 1.0
    mine.flags.writeable = True


def test_what_a_table_says_about_itself():
    mdp = table()
    # Token 0 ends from both states (its second outcome in state 0 goes on but has probability 0); token 1 never does.
    assert mdp.end_prob_SA.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert mdp.stop_tokens == (0,)
    assert mdp.ends_only_by_stop_token
    assert not mdp.deterministic  # state 1, token 0: both outcomes end, with rewards 4 and 5
    assert mdp.mean_reward_SA.tolist() == [[0.0, 2.5], [4.5, 0.2 * 6 + 0.8 * 7]]
    assert (mdp.num_states, mdp.num_tokens, mdp.num_outcomes) == (2, 2, 2)


def test_a_stop_token_must_stop_everywhere_and_nothing_else_may_stop():
    leaky = table(next_SAK=np.array([[[-1, 0], [1, 0]], [[-1, -1], [0, -1]]]))
    assert leaky.stop_tokens == (0,)
    assert not leaky.ends_only_by_stop_token
    partial = table(next_SAK=np.array([[[0, 0], [1, 0]], [[-1, -1], [0, 1]]]))
    assert partial.stop_tokens == ()
    assert not partial.ends_only_by_stop_token


def test_equal_outcomes_and_impossible_ones_still_count_as_deterministic():
    same = table(next_SAK=np.ones((2, 2, 2), np.int64), reward_SAK=np.ones((2, 2, 2)))
    assert same.deterministic
    impossible = table(
        next_SAK=np.array([0, 1]) * np.ones((2, 2, 1), np.int64), prob_SAK=np.array([0.0, 1.0]) * np.ones((2, 2, 1))
    )
    assert impossible.deterministic
    assert not table(next_SAK=np.ones((2, 2, 2), np.int64)).deterministic  # rewards differ


def test_step_is_the_inverse_cdf_of_the_table():
    mdp = table()
    # State 1, token 1: outcome 0 (state 0, reward 6) below 0.2, outcome 1 (state 1, reward 7) from 0.2 on.
    assert mdp.step(1, 1, 0.0) == (0, 6.0, False)
    assert mdp.step(1, 1, np.nextafter(0.2, 0.0)) == (0, 6.0, False)
    assert mdp.step(1, 1, 0.2) == (1, 7.0, False)
    largest = np.nextafter(1.0, 0.0)
    assert mdp.step(1, 1, largest) == (1, 7.0, False)
    assert mdp.step(0, 0, largest) == (-1, 0.0, True)  # the outcome of probability 0 is never drawn
    assert mdp.start([0.0, 0.2499, 0.25, largest]).tolist() == [0, 0, 1, 1]


def test_an_impossible_last_or_first_outcome_is_never_drawn_despite_round_off():
    p = np.full(10, 0.1)  # cumulative sum 0.9999999999999999
    assert np.cumsum(p)[-1] < 1.0
    prob_SAK = np.concatenate([[0.0], p, [0.0]]).reshape(1, 1, 12)
    mdp = TokenMDP("dust", 2, np.ones(1), np.zeros((1, 1, 12), np.int64), prob_SAK, np.arange(12.0).reshape(1, 1, 12))
    assert mdp.step(0, 0, np.nextafter(1.0, 0.0)).reward == 10.0
    assert mdp.step(0, 0, 0.0).reward == 1.0
    states = TokenMDP("dust", 2, p, np.zeros((10, 1, 1), np.int64), np.ones((10, 1, 1)), np.zeros((10, 1, 1)))
    assert states.start(np.nextafter(1.0, 0.0)) == 9


def test_a_token_that_surely_ends_stops_despite_round_off():
    """Ends of equal probability need not sum to exactly 1; the outcome that goes on is impossible."""
    rows = [np.append(np.full(n, 1.0 / n), 0.0).reshape(1, 1, n + 1) for n in range(3, 60)]
    prob_SAK = next(row for row in rows if row.sum(axis=-1) != 1.0)
    next_SAK = np.where(prob_SAK > 0.0, -1, 0)
    mdp = TokenMDP("dust", 2, np.ones(1), next_SAK, prob_SAK, np.zeros(prob_SAK.shape))
    assert mdp.end_prob_SA[0, 0] == 1.0
    assert mdp.stop_tokens == (0,)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), branching=st.integers(1, 4), end_prob=st.sampled_from([0.0, 0.3, 1.0]))
def test_step_on_arrays_equals_a_scan_of_the_row(seed, branching, end_prob):
    mdp = garnet(5, 3, branching, 4, seed=seed, end_prob=end_prob)
    rng = np.random.default_rng(seed)
    state_B, token_B, u_B = rng.integers(0, 5, (4, 6)), rng.integers(0, 3, 6), rng.random((4, 6))
    result = mdp.step(state_B, token_B, u_B)
    for i, j in np.ndindex(4, 6):
        s, a, k, left = state_B[i, j], token_B[j], 0, u_B[i, j]
        while left >= mdp.prob_SAK[s, a, k]:
            left -= mdp.prob_SAK[s, a, k]
            k += 1
        found = result.next_state[i, j], result.reward[i, j], result.terminated[i, j]
        assert found == (mdp.next_SAK[s, a, k], mdp.reward_SAK[s, a, k], mdp.next_SAK[s, a, k] == -1)


def test_sampled_frequencies_are_the_probabilities_of_the_table():
    """False-alarm probability 1e-6 in all, by Bernstein's inequality and a union bound over the cells."""
    mdp = garnet(4, 3, 3, 4, seed=5)
    count, rng = 20_000, np.random.default_rng(0)
    alpha = 1e-6 / mdp.prob_SAK.size
    for s, a in np.ndindex(4, 3):
        drawn = mdp.step(s, a, rng.random(count)).next_state
        for k in range(3):
            p = mdp.prob_SAK[s, a, k]  # next states of a garnet row are distinct
            error = abs((drawn == mdp.next_SAK[s, a, k]).mean() - p)
            assert error <= bernstein(p * (1 - p), max(p, 1 - p), count, alpha)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 0, 0.5), r"state: found values from 2 to 2; expected 0..1"),
        ((-1, 0, 0.5), r"state: found values from -1 .* a state of -1 has ended"),
        ((0, [0, 2], 0.5), r"token: found values from 0 to 2; expected 0..1"),
        ((0, 0.0, 0.5), "token: found dtype float64; expected integers"),
        ((0, 0, 1.0), "u: found values from 1.0 to 1.0; expected 0 <= u < 1"),
    ],
)
def test_step_refuses_what_is_outside_the_table(arguments, message):
    with pytest.raises(ValueError, match=message):
        table().step(*arguments)


@pytest.mark.parametrize("name", [name for name in SMALL if "garnet" not in name or "stop" in name])
def test_walk_agrees_with_step(name):
    mdp = SMALL[name]()
    rng = np.random.default_rng(3)
    for _ in range(50):
        start = int(mdp.start(rng.random()))
        tokens, state, total, states = [], start, 0.0, [start]
        while len(tokens) < mdp.horizon and state != -1:
            tokens.append(int(rng.integers(mdp.num_tokens)))
            state, reward, ended = (x.item() for x in mdp.step(state, tokens[-1], rng.random()))
            total += reward
            states += [] if ended else [state]
        assert mdp.walk(start, tokens) == (total, tuple(states), state == -1)
        prefix = mdp.walk(start, tokens[:-1])
        assert prefix.states == tuple(states[: len(tokens)])
        assert not prefix.ended


def test_walk_of_nothing_stays_at_the_start():
    assert reasoning_ladder().walk(2, []) == (0.0, (2,), False)


def test_walk_refuses_what_is_not_one_response():
    ladder = reasoning_ladder(horizon=3)
    with pytest.raises(ValueError, match=r"tokens: found 2 tokens after the end; expected none; drop .* after index 0"):
        ladder.walk(0, [0, 1, 2])
    with pytest.raises(ValueError, match="tokens: found 4 tokens; expected at most horizon = 3"):
        ladder.walk(0, [1, 1, 1, 1])
    with pytest.raises(ValueError, match="walk: found table 'garnet' with several outcomes; expected a deterministic"):
        garnet().walk(0, [1])
