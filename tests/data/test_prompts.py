"""Prompts that fit, and their endless, repeatable order."""

from __future__ import annotations

import itertools
import pickle
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo.data.problems import Finding, Problem
from tppo.data.prompts import PromptStream, to_prompts
from tppo.errors import ConfigError, DataError
from tppo.types import Prompt

PROBLEMS = [Problem(f"sums/{n}", "x" * n, f"{n}", "sums", 10 + n) for n in (3, 8, 5)]


def encode(text: str) -> list[int]:
    return [ord(c) for c in text]


def test_prompts_carry_what_the_reward_needs() -> None:
    report = to_prompts(PROBLEMS, encode, template="Q: {question} {}", max_prompt_tokens=14)
    assert [p.id for p in report.prompts] == ["sums/3", "sums/8", "sums/5"]
    assert report.prompts[0] == Prompt(id="sums/3", tokens=tuple(encode("Q: xxx {}")), truth="3", source="sums")
    assert report.longest == 14  # 3 of the mark, 8 of the question, 3 after it
    assert report.overlong == Finding(0, ())
    assert str(report) == "3 prompts, longest seen 14 tokens"


def test_a_question_with_braces_is_not_a_template() -> None:
    report = to_prompts([Problem("a", "{question} {0}", "1", "s", 1)], encode, max_prompt_tokens=99)
    assert report.prompts[0].tokens == tuple(encode("{question} {0}"))


def test_overlong_prompts_are_an_error_or_dropped_with_lines() -> None:
    with pytest.raises(
        DataError, match=r"(?s)overlong: 2 \(line 18, 15\): 8 tokens where 4 fit.*raise max_prompt_tokens"
    ):
        to_prompts(PROBLEMS, encode, max_prompt_tokens=4)
    report = to_prompts(PROBLEMS, encode, max_prompt_tokens=5, on_overlong="drop")
    assert [p.id for p in report.prompts] == ["sums/3", "sums/5"]
    assert report.overlong == Finding(1, (18,), "8 tokens where 5 fit")
    with pytest.raises(DataError, match=r"(?s)0 prompts, longest seen 8 tokens.*at least one prompt"):
        to_prompts(PROBLEMS, encode, max_prompt_tokens=2, on_overlong="drop")
    with pytest.raises(DataError, match="at least one prompt"):
        to_prompts([], encode, max_prompt_tokens=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "Solve."}, "template = 'Solve.'"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens = 0"),
        ({"max_prompt_tokens": True}, "max_prompt_tokens = True"),
        ({"on_overlong": "cut"}, "on_overlong = 'cut'"),
    ],
)
def test_arguments_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        to_prompts(PROBLEMS, encode, **{"max_prompt_tokens": 9, **changes})


@pytest.mark.parametrize("result", [[], ["a"], {"input_ids": [1]}, [1.0]])
def test_encode_must_give_token_ids(result: Any) -> None:
    with pytest.raises(DataError, match=r"sums line 13: encode gave .*expected token ids"):
        to_prompts(PROBLEMS, lambda text: result, max_prompt_tokens=9)


def test_numpy_ids_become_plain_numbers() -> None:
    report = to_prompts(PROBLEMS[:1], lambda text: np.array([1, 2]), max_prompt_tokens=9)  # type: ignore[arg-type, return-value]
    assert [type(t) for t in report.prompts[0].tokens] == [int, int]


def prompts(n: int) -> list[Prompt]:
    return [Prompt(id=str(i), tokens=(i,)) for i in range(n)]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
def test_each_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    stream = PromptStream(prompts(n), seed)
    ids = [stream(epoch * n + i).id for i in range(n)]
    assert sorted(ids, key=int) == [str(i) for i in range(n)]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 12), seed=st.integers(0, 2**63 - 1), asked=st.lists(st.integers(0, 200), max_size=40))
def test_the_same_index_is_always_the_same_prompt(n: int, seed: int, asked: list[int]) -> None:
    in_order = PromptStream(prompts(n), seed)
    expected = [in_order(i) for i in range(201)]
    stream = PromptStream(prompts(n), seed)
    assert [stream(i) for i in asked] == [expected[i] for i in asked]
    resumed = pickle.loads(pickle.dumps(stream))
    assert [resumed(i) for i in range(201)] == expected


@settings(max_examples=40, deadline=None)
@given(seeds=st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=2, unique=True), epoch=st.integers(0, 1000))
def test_seeds_and_epochs_differ(seeds: list[int], epoch: int) -> None:
    n = 40  # two random orders agree with probability 1 / 40! < 1e-47

    def order(seed: int, epoch: int) -> list[str]:
        stream = PromptStream(prompts(n), seed)
        return [stream(epoch * n + i).id for i in range(n)]

    first = order(seeds[0], epoch)
    assert first != order(seeds[1], epoch)
    assert first != order(seeds[0], epoch + 1)


def test_all_orders_are_equally_likely() -> None:
    """Six orders of three prompts over 6000 epochs: chi-square with 5 degrees of freedom."""
    stream = PromptStream(prompts(3), seed=0)
    orders = ["".join(stream(3 * e + i).id for i in range(3)) for e in range(6000)]
    counts = [orders.count("".join(order)) for order in itertools.permutations("012")]
    # P(chi2_5 > 20.5) = 0.001: a wrong generator fails, a right one fails for one seed in a thousand.
    assert sum((c - 1000) ** 2 / 1000 for c in counts) < 20.5


def test_golden_order() -> None:
    """Pinned: a resumed run must draw the prompts that the lost one would have drawn, on any version of numpy."""
    stream = PromptStream(prompts(8), seed=7)
    assert [stream(i).tokens[0] for i in range(16)] == [6, 5, 2, 7, 1, 3, 4, 0, 6, 3, 2, 5, 4, 1, 0, 7]


def test_one_epoch_is_kept() -> None:
    stream = PromptStream(prompts(5), seed=0)
    size = len(pickle.dumps(stream))
    for _ in range(1000):
        stream(random.randrange(10**9))
    assert len(pickle.dumps(stream)) <= size + 100


def test_streams_that_cannot_be() -> None:
    with pytest.raises(DataError, match="prompts is empty"):
        PromptStream([], seed=0)
    for seed in (-1, 2**63):
        with pytest.raises(ConfigError, match="seed"):
            PromptStream(prompts(1), seed=seed)
    with pytest.raises(IndexError, match="index = -1"):
        PromptStream(prompts(1), seed=0)(-1)
