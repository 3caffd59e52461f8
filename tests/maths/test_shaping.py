"""Outcomes that depend on length."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from tests.support.ragged_cases import flat
from tppo.maths.groups import grpo_advantage
from tppo.maths.shaping import concise_outcomes, kimi_length_reward, linear_length_outcomes, overlong_penalty

few = settings(derandomize=True, deadline=None, max_examples=25)
close = {"rtol": 1e-12, "atol": 1e-12}
MEMBER = st.tuples(st.sampled_from([0.0, 1.0, 0.5, -1.0]), st.integers(0, 50))
GROUPS = st.lists(st.lists(MEMBER, min_size=1, max_size=6), max_size=5)
SHAPED = {
    "concise": lambda R, L, g: concise_outcomes(R, L, g, max_length=50, coef=0.3),
    "linear": lambda R, L, g: linear_length_outcomes(R, L, g, coef=0.25),
    "kimi": kimi_length_reward,
}
ON_PAPER = {
    "concise": lambda R, L: reference.concise_outcomes(R, L, max_length=50, coef=0.3),
    "linear": lambda R, L: reference.linear_length_outcomes(R, L, coef=0.25),
    "kimi": reference.kimi_length_reward,
}
shapes = pytest.mark.parametrize("name", SHAPED)
LENGTHS = torch.tensor([100, 200, 300, 400])
ONE = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("lengths", "cap", "buffer", "expected"),
    [
        ([700, 800, 900, 1000, 1100], 1000, 200, [0, 0, -0.5, -1, -1]),
        ([16384, 18432, 20480], 20480, 4096, [0, -0.5, -1]),  # DAPO's own numbers (arXiv 2503.14476)
    ],
)
def test_worked_overlong_penalties(lengths, cap, buffer, expected) -> None:
    assert overlong_penalty(torch.tensor(lengths), max_length=cap, buffer=buffer).tolist() == expected


@few
@given(
    lengths=st.lists(st.integers(0, 3000), max_size=6),
    cap=st.integers(1, 2000),
    share=st.floats(0, 1),
    coef=st.floats(0, 2),
)
def test_overlong_penalties_agree_with_the_formula(lengths, cap, share, coef) -> None:
    buffer = max(1, round(share * cap))
    found = overlong_penalty(torch.tensor(lengths, dtype=torch.int64), max_length=cap, buffer=buffer, coef=coef)
    expected = [reference.overlong_penalty(n, max_length=cap, buffer=buffer, coef=coef) for n in lengths]
    np.testing.assert_allclose(found, expected, **close)


def test_an_all_right_group_with_an_overlong_member_differs_in_the_shaped_outcome_only() -> None:
    R, L = flat([1, 1, 1, 1]), torch.tensor([700, 800, 900, 700])
    assert grpo_advantage(R, ONE, scale=False).tolist() == [0.0] * 4
    shaped = R + overlong_penalty(L, max_length=1000, buffer=200)
    assert grpo_advantage(shaped, ONE, scale=False).tolist() == [0.125, 0.125, -0.375, 0.125]


def test_worked_concise_outcomes() -> None:
    """And that dividing by the standard deviation takes the coefficient out again."""
    right, advantages = flat([1, 1, 1, 1]), {}
    for coef in (1.0, 0.1):
        shaped = concise_outcomes(right, LENGTHS, ONE, max_length=1000, coef=coef)
        both = {scale: grpo_advantage(shaped, ONE, scale=scale, eps=1e-300) for scale in (True, False)}
        advantages[coef] = {scale: A.tolist() for scale, A in both.items()}
        if coef == 1:
            assert shaped.tolist() == pytest.approx([1.9, 1.8, 1.7, 1.6], abs=1e-15)
        assert advantages[coef][True] == pytest.approx([1.1619, 0.3873, -0.3873, -1.1619], abs=5e-5)
    assert advantages[0.1][False] == pytest.approx([0.015, 0.005, -0.005, -0.015], abs=1e-15)
    assert advantages[1.0][False] == pytest.approx([0.15, 0.05, -0.05, -0.15], abs=1e-15)
    # Three right, one wrong: no effect of length.
    mixed = concise_outcomes(flat([1, 1, 0, 1]), LENGTHS, ONE, max_length=1000, coef=1.0)
    assert grpo_advantage(mixed, ONE, scale=True, eps=1e-300).tolist() == pytest.approx([0.5, 0.5, -1.5, 0.5])


def test_worked_linear_and_kimi_lengths() -> None:
    R = flat([1, 1, 0, 1])
    linear = linear_length_outcomes(R, LENGTHS, ONE)
    assert linear.tolist() == pytest.approx([0.9531, 0.9063, -0.1406, 0.8125], abs=6e-5)
    assert kimi_length_reward(R, LENGTHS, ONE).tolist() == pytest.approx([0.5, 0.1667, -0.1667, -0.5], abs=5e-5)
    # A wrong answer gains nothing from being short.
    assert kimi_length_reward(flat([0, 1, 1, 1]), LENGTHS, ONE).tolist() == pytest.approx([0, 1 / 6, -1 / 6, -0.5])


@shapes
@few
@given(groups=GROUPS)
def test_shapes_agree_with_the_formula(name, groups) -> None:
    R, L = (flat([m[k] for group in groups for m in group]) for k in (0, 1))
    group = torch.tensor([i for i, members in enumerate(groups) for _ in members], dtype=torch.int64)
    expected = [x for members in groups for x in ON_PAPER[name](*map(list, zip(*members, strict=True)))]
    np.testing.assert_allclose(SHAPED[name](R, L.long(), group), expected, **close)


@shapes
def test_one_member_and_equal_lengths(name) -> None:
    R, L = flat([1, 1, 1, 0]), torch.tensor([7, 5, 5, 5])
    shaped = SHAPED[name](R, L, torch.tensor([0, 1, 1, 1]))
    expected = {
        "concise": [1 + 0.3 * (1 - 7 / 50), 1, 1, 0],
        "linear": [0.75, 1 - 0.25 * 2 / 3, 1 - 0.25 * 2 / 3, -0.25 * 2 / 3],
        "kimi": [0, 0, 0, 0],
    }[name]
    assert shaped.tolist() == pytest.approx(expected, abs=1e-15)


@shapes
def test_no_responses_and_only_empty_ones(name) -> None:
    nothing, none = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert SHAPED[name](nothing, none, none).shape == (0,)
    assert SHAPED[name](flat([0, 0]), torch.tensor([0, 0]), torch.tensor([0, 0])).tolist() == [0.0, 0.0]
    assert overlong_penalty(none, max_length=4, buffer=2).shape == (0,)


@shapes
def test_an_outcome_that_is_nan_spoils_its_own_group_only(name) -> None:
    R, L = flat([math.nan, 1, 0, 1]), torch.tensor([1, 2, 3, 4])
    group = torch.tensor([0, 0, 1, 1])
    shaped = SHAPED[name](R, L, group)
    assert torch.equal(shaped[2:], SHAPED[name](R[2:], L[2:], torch.tensor([0, 0])))
    # What is added to an outcome leaves a NaN one; what depends on the group may be seen by its other members.
    assert grpo_advantage(R + 0 * shaped if name == "kimi" else shaped, group, scale=True)[:2].isnan().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda R, L, g: overlong_penalty(L, max_length=10, buffer=0), "buffer: found 0, expected above 0 and at most"),
        (lambda R, L, g: overlong_penalty(L, max_length=10, buffer=11), r"buffer: found 11, .* max_length \(10\)"),
        (lambda R, L, g: concise_outcomes(R, L[:2], g, max_length=9, coef=1), r"L_S: found shape \(2,\)"),
        (lambda R, L, g: concise_outcomes(R, L, g + 3, max_length=9, coef=1), "group_S: found numbers from 3 to 3"),
        (lambda R, L, g: concise_outcomes(R, L, g, max_length=0, coef=1), "max_length: found 0, expected above 0"),
        (lambda R, L, g: linear_length_outcomes(R, L[:2], g), r"L_S: found shape \(2,\), expected \[3\]"),
        (lambda R, L, g: linear_length_outcomes(R, L, g.int()), "group_S: found torch.int32, expected int64"),
        (lambda R, L, g: kimi_length_reward(R, L[:2], g), r"L_S: found shape \(2,\), expected \[3\]"),
        (lambda R, L, g: kimi_length_reward(R.half(), L, g), "float16, expected float32 or float64"),
    ],
)
def test_malformed_arguments(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3), torch.ones(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
