"""The stream of problems: addressed by index, split for good, with long-tailed lengths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.language import FAMILIES, MAX_STEPS, MIN_STEPS, Difficulty, Language, demonstrate, split_of

seeds = st.integers(0, 2**32 - 1)


def test_train_and_heldout_never_meet() -> None:
    """By construction for any seed; checked where collisions are likeliest, on the shortest problems."""
    language = Language(difficulty=Difficulty(maximum=MIN_STEPS))
    train = {language.problem("train", i, seed).prompt for seed in range(3) for i in range(1500)}
    heldout = {language.problem("heldout", i, seed).prompt for seed in range(3) for i in range(500)}
    assert not train & heldout
    assert {split_of(prompt) for prompt in train} == {"train"}
    assert {split_of(prompt) for prompt in heldout} == {"heldout"}


def test_the_split_does_not_depend_on_the_process() -> None:
    """Golden values: a change would silently move problems a trained model has seen into the held-out set."""
    assert [split_of(prompt) for prompt in ("Skdbm?k=5", "Rkdbm?k=0", "Wkdbm?k=0:0", "Rab?b=0")] == ["train"] * 4
    assert Language().problem("heldout", 0).prompt == "Sdayesj?e=8"


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=5), st.sampled_from(["train", "heldout"]), seeds)
def test_a_problem_depends_on_its_address_alone(indices: list[int], split: str, seed: int) -> None:
    first = [Language().problem(split, i, seed) for i in indices]  # type: ignore[arg-type]
    again = [Language().problem(split, i, seed) for i in reversed(indices)]  # type: ignore[arg-type]
    assert first == again[::-1]


def test_seeds_splits_and_indices_give_different_problems() -> None:
    language = Language()
    streams = {
        (split, seed): [language.problem(split, i, seed) for i in range(50)]
        for split in ("train", "heldout")
        for seed in (0, 1)
    }  # type: ignore[arg-type]
    assert len({tuple(stream) for stream in streams.values()}) == 4
    assert len(set(streams["train", 0])) > 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("test", 0, 0), r"split is 'test'.*train, heldout"),
        (("train", -1, 0), r"index is -1"),
        (("train", 0, -1), r"seed is -1"),
    ],
)
def test_a_bad_address_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Language().problem(*arguments)


def test_one_family_can_be_chosen() -> None:
    language = Language(families=("walk",))
    assert {language.problem("train", i).family for i in range(20)} == {"walk"}


@pytest.mark.parametrize(
    ("families", "message"), [((), r"families is empty"), (("walk", "chess"), r"'chess'.*sum, walk, rank")]
)
def test_bad_families_are_refused(families: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Language(families=families)


def test_lengths_are_long_tailed() -> None:
    """99th percentile at least five medians. Over 20,000 problems the two quantiles stray by less than 5%, the margin
    to five is above 15%: false alarm below 1e-6."""
    rng = np.random.default_rng(0)
    problems = [Language().problem("train", i) for i in range(20_000)]
    lengths = np.array([len(demonstrate(problem, rng)) + 1 for problem in problems])  # with end of response
    median, tail = np.quantile(lengths, [0.5, 0.99])
    assert 10 <= median <= 20
    assert tail >= 5 * median
    assert lengths.max() == 5 * MAX_STEPS + 3 + 1  # the longest walk
    assert {problem.family for problem in problems} == set(FAMILIES)
