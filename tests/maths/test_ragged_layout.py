"""The layout of a ragged batch, and what is said about malformed arguments."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.ragged_cases import LENGTHS
from tppo.maths.advantages import egae
from tppo.maths.ragged import offsets_of, segments


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(LENGTHS, max_size=8))
def test_layout_counts_down_to_the_end_of_each_response(lengths: list[int]) -> None:
    layout = segments(torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64))
    assert layout.left_N.tolist() == [k for n in lengths for k in range(n, 0, -1)]
    assert layout.longest == max(lengths, default=0)
    assert layout.spread(torch.arange(len(lengths))).tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(LENGTHS, max_size=8))
def test_offsets_are_the_running_sums(lengths: list[int]) -> None:
    lengths_S = torch.tensor(lengths, dtype=torch.int64)
    offsets = offsets_of(lengths_S)
    assert offsets.dtype == torch.int64
    assert offsets.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert torch.equal(segments(offsets).lengths_S, lengths_S)
    # Flags count as 0 and 1, and not in one byte.
    assert offsets_of(torch.ones(300, dtype=torch.bool))[-1] == 300


ARGUMENTS = {
    "rewards_N": torch.zeros(3),
    "values_N": torch.zeros(3),
    "offsets": torch.tensor([0, 1, 3]),
    "finished_S": torch.tensor([True, False]),
    "gamma": 1.0,
    "lam": 0.95,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values_N": torch.zeros(1, 3)}, r"values_N: found rank 2.*expected a flat tensor"),
        ({"values_N": torch.zeros(3, dtype=torch.bfloat16)}, r"values_N: found torch.bfloat16, expected float32"),
        ({"rewards_N": torch.zeros(4)}, r"rewards_N: found shape \(4,\), expected \[3\]"),
        ({"finished_S": torch.tensor([True])}, r"finished_S: found shape \(1,\), expected \[2\]"),
        ({"finished_S": torch.tensor([1, 0])}, r"finished_S: found torch.int64, expected bool"),
        ({"gamma": 1.01}, r"gamma: found 1.01, expected a number within \[0, 1\]"),
        ({"gamma": float("nan")}, r"gamma: found nan"),
        ({"lam": -0.1}, r"lam: found -0.1"),
        ({"lam": torch.tensor([0.5, 1.5])}, r"lam: found entries from 0.5 to 1.5"),
        ({"lam": torch.tensor([0.5, float("nan")])}, r"lam: found entries"),
        ({"lam": torch.tensor([0.5])}, r"lam: found shape \(1,\), expected \[2\]"),
        ({"boundary": "bootstrap"}, r"boundary: found 'bootstrap', expected one of repeat, critic, terminal"),
        ({"boundary": "critic"}, r"cut_values_S: found None"),
        ({"boundary": "critic", "cut_values_S": torch.zeros(3)}, r"cut_values_S: found shape \(3,\)"),
        ({"offsets": torch.tensor([0, 4, 3])}, r"offsets: .*smallest step -1.*never decreasing"),
        ({"offsets": torch.tensor([1, 2, 3])}, r"offsets: found first 1.*expected 0 first"),
        ({"offsets": torch.tensor([0, 1, 2])}, r"offsets: .*last 2.*3 tokens last"),
        ({"offsets": torch.tensor([0, 1, 3], dtype=torch.int32)}, r"offsets: .*torch.int32, expected int64"),
        ({"offsets": torch.tensor([[0, 1, 3]])}, r"found shape"),
    ],
)
def test_malformed_arguments_name_what_was_found_and_expected(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        egae(**{**ARGUMENTS, **change})
