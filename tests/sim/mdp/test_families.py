"""The families: promised structure and promised laws of the start state."""

import numpy as np
import pytest

from sim.exact.values import optimum
from sim.mdp.families import FAMILIES, combination_lock, garnet, reasoning_ladder, tailed_length

DETERMINISTIC = {
    "garnet": lambda seed: garnet(9, 4, 1, 10, seed=seed, stop_token=True),
    "reasoning_ladder": lambda seed: reasoning_ladder(3, 5, 2, 20, num_prompts=3, seed=seed),
    "reasoning_ladder without detours": lambda seed: reasoning_ladder(3, 4, 0, 20, seed=seed),
    "combination_lock": lambda seed: combination_lock(4, 3, 12, seed=seed),
    "tailed_length": lambda seed: tailed_length(1.5, 8, 3, seed=seed),
}


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("seed", range(5))
def test_deterministic_families_end_by_token_0_alone(name, seed):
    mdp = DETERMINISTIC[name](seed)
    assert mdp.deterministic
    assert mdp.stop_tokens == (0,)
    assert mdp.ends_only_by_stop_token


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_seed_fixes_the_table_and_another_changes_it(name):
    first, again, other = (DETERMINISTIC[name](seed) for seed in (0, 0, 1))
    assert np.array_equal(first.next_SAK, again.next_SAK)
    assert np.array_equal(first.reward_SAK, again.reward_SAK)
    assert not np.array_equal(first.next_SAK, other.next_SAK)


def test_every_family_is_named_and_has_defaults():
    for name, family in FAMILIES.items():
        assert family().name.replace(" ", "_") == name


def test_garnet_rows_have_distinct_next_states_and_all_subsets_occur():
    mdp = garnet(4, 600, 2, 3, seed=0)
    assert (mdp.next_SAK[..., 0] != mdp.next_SAK[..., 1]).all()
    pairs, counts = np.unique(np.sort(mdp.next_SAK.reshape(-1, 2), axis=-1), axis=0, return_counts=True)
    assert len(pairs) == 6
    assert counts.min() > 300  # 400 expected, standard deviation 18
    assert not mdp.deterministic
    assert garnet(4, 2, 1, 3).deterministic
    assert garnet(5, 4, 3, 3, stop_token=True).ends_only_by_stop_token
    assert 0.2 < (garnet(10, 20, 5, 3, end_prob=0.25).next_SAK == -1).mean() < 0.3


def test_ladder_by_hand():
    ladder = reasoning_ladder(rungs=2, num_tokens=4, detour=2, seed=1)
    # Rungs 0, 1, 2; detour of rung 0 is states 3, 4 and that of rung 1 is 5, 6. Find the right tokens, 2 or 3.
    right = [next(a for a in (2, 3) if ladder.next_SAK[rung, a, 0] == rung + 1) for rung in (0, 1)]
    wrong = [5 - a for a in right]
    expected = np.zeros((7, 4), np.int64)
    expected[:, 0] = -1
    expected[:, 1] = [0, 0, 1, 0, 3, 1, 5]  # backtrack
    expected[[0, 1], right] = [1, 2]
    expected[[0, 1], wrong] = [3, 5]
    expected[2, 2:] = 2  # the top rung holds
    expected[3:, 2:] = np.array([4, 4, 6, 6])[:, None]  # deeper, to the bottom at most
    assert np.array_equal(ladder.next_SAK[..., 0], expected)
    assert np.argwhere(ladder.reward_SAK[..., 0]).tolist() == [[2, 0]]
    assert optimum(ladder, 1.0).J == 1.0


def test_prompts_of_a_ladder_are_separate():
    ladder = reasoning_ladder(rungs=2, detour=1, num_prompts=3, seed=0)
    size = ladder.num_states // 3
    assert np.flatnonzero(ladder.initial_S).tolist() == [0, size, 2 * size]
    block = np.arange(ladder.num_states) // size
    inside = ladder.next_SAK[:, 1:, 0] // size
    assert (inside == block[:, None]).all()


def test_lock_pays_for_one_sequence_only():
    lock = combination_lock(3, 4, 8, seed=2)
    right = [int(np.flatnonzero(lock.next_SAK[i, :, 0] == i + 1)[0]) for i in range(3)]
    assert lock.walk(0, [*right, 0]).reward == 1.0
    for i in range(3):
        wrong = [*right[:i], 1 + right[i] % 3, *right[i + 1 :]]
        assert lock.walk(0, [*wrong, 0]).reward == 0.0
        assert lock.walk(0, wrong[: i + 1]).states[-1] == 0
    assert lock.walk(0, [*right, 1]).states[-1] == 0


def test_percentiles_quoted_in_the_docstring():
    found = {}
    for tail in (1, 2, 4):
        mdp = tailed_length(tail, 100_000, 2, horizon=1)
        cdf = np.cumsum(mdp.initial_S)
        found[tail] = [int(np.searchsorted(cdf, level)) + 1 for level in (0.5, 0.9, 0.99)]
    assert found == {1: [2, 10, 100], 2: [2, 4, 10], 4: [2, 2, 4]}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: garnet(3, 2, 4), "branching: found 4; expected 1..num_states = 3"),
        (lambda: garnet(end_prob=0.1, stop_token=True), "end_prob: found 0.1 with stop_token=True"),
        (lambda: reasoning_ladder(num_tokens=3), "num_tokens: found 3; expected at least 4"),
        (lambda: reasoning_ladder(rungs=0), "rungs: found 0"),
        (lambda: combination_lock(length=0), "length: found 0"),
        (lambda: tailed_length(tail=0.0), "tail: found 0.0; expected a positive Pareto index"),
        (lambda: tailed_length(max_demand=0), "max_demand: found 0"),
    ],
)
def test_impossible_choices_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
