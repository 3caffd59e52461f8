"""Baselines by length, batch, success rate, reference and position."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from tests.support.ragged_cases import flat
from tppo.maths.baselines import (
    batch_scaled,
    energy_advantage,
    length_baseline_advantage,
    posterior_weights,
    prompt_mean_scale,
    reference_margin,
    success_scaled_advantage,
)
from tppo.maths.groups import grpo_advantage, rloo_advantage

few = settings(derandomize=True, deadline=None, max_examples=25)
close = {"rtol": 1e-12, "atol": 1e-12}
MEMBER = st.tuples(st.one_of(st.sampled_from([0.0, 1.0, 0.1]), st.floats(0, 3)), st.integers(0, 50))
GROUPS = st.lists(st.lists(MEMBER, min_size=1, max_size=7), max_size=5)
ADVANTAGES = {
    "opo": lambda R, L, g: length_baseline_advantage(R, L, g, own=True),
    "opo-loo": lambda R, L, g: length_baseline_advantage(R, L, g, own=False),
    "maxrl": lambda R, L, g: success_scaled_advantage(R, g),
    "maxrl, all wrong": lambda R, L, g: success_scaled_advantage(R, g, all_wrong=-1.0),
    "em": lambda R, L, g: posterior_weights(R, g),
}
ON_PAPER = {
    "opo": lambda R, L: reference.length_baseline_advantage(R, L, own=True),
    "opo-loo": lambda R, L: reference.length_baseline_advantage(R, L, own=False),
    "maxrl": lambda R, L: reference.success_scaled_advantage(R),
    "maxrl, all wrong": lambda R, L: reference.success_scaled_advantage(R, all_wrong=-1.0),
    "em": lambda R, L: reference.posterior_weights(R),
}
names = pytest.mark.parametrize("name", ADVANTAGES)

GOLDEN = [
    # b = 10 / 100;  the others' b = 0 / 90, 10 / 80, 10 / 70, 10 / 60
    ([1, 0, 0, 0], [10, 20, 30, 40], "opo", [0.9, -0.1, -0.1, -0.1]),
    ([1, 0, 0, 0], [10, 20, 30, 40], "opo-loo", [1, -0.125, -0.142857, -0.166667]),
    ([1, 1, 0, 0], [10, 20, 30, 40], "opo", [0.7, 0.7, -0.3, -0.3]),
    ([1, 0, 0, 0], [1, 1, 1, 1], "opo", [0.75, -0.25, -0.25, -0.25]),
    ([1, 0, 0, 0], [1, 1, 1, 1], "maxrl", [3, -1, -1, -1]),
    ([1, 1, 0, 0], [1, 1, 1, 1], "maxrl", [1, 1, -1, -1]),
    ([1, 1, 1], [1, 2, 3], "maxrl", [0, 0, 0]),
    ([0, 0, 0], [1, 2, 3], "maxrl", [0, 0, 0]),
    ([0, 0, 0], [1, 2, 3], "maxrl, all wrong", [-1, -1, -1]),
    ([1, 0, 0, 0], [1, 1, 1, 1], "em", [4, 0, 0, 0]),
    ([0.2, 0.6, 1, 0.2], [1, 1, 1, 1], "em", [0.4, 1.2, 2, 0.4]),
    ([0, 0, 0, 0], [1, 1, 1, 1], "em", [0, 0, 0, 0]),
]


@pytest.mark.parametrize(("outcomes", "lengths", "name", "expected"), GOLDEN)
def test_worked_numbers(outcomes, lengths, name, expected) -> None:
    found = ADVANTAGES[name](flat(outcomes), torch.tensor(lengths), torch.zeros(len(outcomes), dtype=torch.int64))
    assert found.tolist() == pytest.approx(expected, abs=5e-7)
    assert ON_PAPER[name](outcomes, lengths) == pytest.approx(expected, abs=5e-7)


def tensors(groups) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    R, L = (flat([m[k] for group in groups for m in group]) for k in (0, 1))
    return R, L.long(), torch.tensor([i for i, members in enumerate(groups) for _ in members], dtype=torch.int64)


@names
@few
@given(groups=GROUPS)
def test_advantages_agree_with_the_formula(name, groups) -> None:
    expected = [x for members in groups for x in ON_PAPER[name](*map(list, zip(*members, strict=True)))]
    np.testing.assert_allclose(ADVANTAGES[name](*tensors(groups)), expected, **close)


@few
@given(groups=GROUPS)
def test_equal_lengths_leave_the_mean_and_the_mean_of_the_others(groups) -> None:
    R, L, group = tensors(groups)
    for same in (torch.full_like(L, 7), torch.zeros_like(L)):  # of empty responses none counts more
        own, others = (length_baseline_advantage(R, same, group, own=own) for own in (True, False))
        torch.testing.assert_close(own, grpo_advantage(R, group, scale=False), **close)
        torch.testing.assert_close(others, rloo_advantage(R, group), **close)


@few
@given(groups=GROUPS)
def test_the_two_ways_to_divide_by_success_differ_by_one(groups) -> None:
    """EM's weights are MaxRL's advantages of order G without their baseline."""
    R, _, group = tensors(groups)
    shifted = success_scaled_advantage(R, group, all_wrong=-1.0) + 1
    torch.testing.assert_close(posterior_weights(R, group), shifted, **close)


def test_a_response_that_is_long_and_wrong_pulls_the_baseline_down() -> None:
    one = torch.zeros(3, dtype=torch.int64)
    short, long = (length_baseline_advantage(flat([1, 1, 0]), torch.tensor([5, 5, n]), one, own=True) for n in (5, 50))
    assert float(long[0]) > float(short[0])


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_member_and_equal_outcomes_give_exactly_zero(name, dtype) -> None:
    R = torch.tensor([0.7, *[0.1] * 10, 1, 1, 1], dtype=dtype)
    L, group = torch.arange(14) + 3, torch.tensor([0, *[1] * 10, 2, 2, 2])
    found = ADVANTAGES[name](R, L, group)
    assert found.dtype == dtype
    assert found.tolist() == [1.0 if name == "em" else 0.0] * 14


@names
def test_no_responses(name) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert ADVANTAGES[name](torch.zeros(0), none, none).shape == (0,)


@names
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("size", [1, 2])
def test_an_outcome_that_is_not_finite_spoils_its_own_group_only(name, poison, size) -> None:
    """And is seen: no NaN becomes an advantage of 0."""
    R, L = flat([poison, 0, 0, 1][2 - size :]), torch.tensor([1, 2, 3, 4][2 - size :])
    R[0] = poison
    group = torch.tensor([0, 0, 1, 1][2 - size :])
    found = ADVANTAGES[name](R, L, group)
    spoiled = found[:size] if name != "em" or math.isnan(poison) else found[:1]  # R / inf is 0 for the others
    assert not spoiled.isfinite().any()
    torch.testing.assert_close(found[size:], ADVANTAGES[name](R[size:], L[size:], group[size:] - 1), **close)


@names
def test_advantages_are_data(name) -> None:
    R = torch.tensor([1.0, 0.0], requires_grad=True)
    assert not ADVANTAGES[name](R, torch.tensor([1, 2]), torch.tensor([0, 0])).requires_grad


def test_worked_batch_scales() -> None:
    """One mixed and one dead group: std of the outcomes sqrt(1/8), of the advantages sqrt(.75 / 7)."""
    R, group = flat([1, 0, 0, 0, 0, 0, 0, 0]), torch.tensor([0] * 4 + [1] * 4)
    A = grpo_advantage(R, group, scale=False)
    assert batch_scaled(A, of_S=R, eps=1e-300)[:5].tolist() == pytest.approx([2.1213, *[-0.7071] * 3, 0], abs=5e-5)
    assert batch_scaled(A, eps=1e-300)[:2].tolist() == pytest.approx([2.2913, -0.7638], abs=5e-5)
    # GPG scales by all groups / groups with a signal: [1.5, -.5, -.5, -.5], GRPO's own numbers here.
    assert (2 * A)[:4].tolist() == [1.5, -0.5, -0.5, -0.5]


@few
@given(
    A=st.lists(st.floats(-3, 3), max_size=9),
    own=st.booleans(),
    eps=st.sampled_from([1e-6, 0.5]),
    seed=st.integers(0, 9),
)
def test_batch_scales_agree_with_the_formula(A, own, eps, seed) -> None:
    R = np.random.default_rng(seed).normal(size=len(A))
    found = batch_scaled(flat(A), of_S=None if own else flat(R), eps=eps)
    # Round-off of 1e-16 in a deviation becomes 1e-10 when divided by eps = 1e-6.
    np.testing.assert_allclose(found, reference.batch_scaled(A, of=None if own else R, eps=eps), rtol=1e-9, atol=1e-9)


def test_a_batch_without_signal_stays_zero() -> None:
    assert batch_scaled(torch.zeros(3)).tolist() == [0.0] * 3
    assert batch_scaled(torch.zeros(3), eps=1e-300).tolist() == [0.0] * 3  # which float32 does not know
    assert batch_scaled(torch.ones(3), of_S=torch.zeros(3)).tolist() == [1.0] * 3
    assert batch_scaled(torch.zeros(1)).tolist() == [0.0]
    assert batch_scaled(torch.zeros(0)).shape == (0,)


def test_worked_margins() -> None:
    """AAPO (arXiv 2505.14264), beside both kinds of group advantage."""
    R, one = flat([1, 0, 0, 0]), torch.zeros(4, dtype=torch.int64)

    def margin(R, reference_S) -> list[float]:
        return reference_margin(flat(R), flat(reference_S), low=0.2, high=0.28).tolist()

    assert margin([1, 0, 0, 0], [0, 1, 0, 0]) == [0.28, -0.2, 0, 0]
    assert margin([1, 1, 1, 1], [1, 0, 1, 0]) == [0, 0.28, 0, 0.28]
    assert margin([0, 0, 0, 0], [1, 0, 1, 0]) == [-0.2, 0, -0.2, 0]
    assert margin([1, 0, 1], [0, 1, 1]) == [0.28, -0.2, 0]
    with_std = grpo_advantage(R, one, scale=True, eps=1e-4) + flat([0.28, -0.2, 0, 0])
    without = grpo_advantage(R, one, scale=False) + flat([0.28, -0.2, 0, 0])
    assert with_std.tolist() == pytest.approx([1.7797, -0.6999, -0.4999, -0.4999], abs=5e-5)
    assert without.tolist() == pytest.approx([1.03, -0.45, -0.25, -0.25], abs=1e-15)


@pytest.mark.parametrize("p", [0.05, 0.25, 0.5, 0.95])
def test_the_margin_adds_between_the_two_bounds_to_the_slope(p) -> None:
    """E[margin | right] - E[margin | wrong] = .2 + .08 (1 - p_ref) for a live reference; a cached mean is another."""
    live = [
        sum(q * reference_margin(flat([R]), flat([ref]), low=0.2, high=0.28).item() for q, ref in ((p, 1), (1 - p, 0)))
        for R in (0, 1)
    ]
    assert live[1] - live[0] == pytest.approx(0.2 + 0.08 * (1 - p), abs=1e-15)
    wrong, right = reference_margin(flat([0, 1]), flat([p, p]), low=0.2, high=0.28).tolist()
    assert right - wrong == pytest.approx(min(0.28, 1 - p) + min(0.2, p), abs=1e-15)
    if p == 0.5:
        assert (live[1] - live[0], right - wrong) == pytest.approx((0.24, 0.48))


@few
@given(pairs=st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), max_size=9), low=st.floats(0, 1))
def test_margins_agree_with_the_formula(pairs, low) -> None:
    R, ref = (flat([pair[k] for pair in pairs]) for k in (0, 1))
    expected = [reference.reference_margin(*pair, low=low, high=0.28) for pair in pairs]
    np.testing.assert_allclose(reference_margin(R, ref, low=low, high=0.28), expected, **close)


def positions(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([t for n in lengths for t in range(n)], dtype=torch.int64)


def test_worked_baselines_of_positions() -> None:
    """OTB (arXiv 2602.07078): B = .5, .55556, then 0 where only the longest is left."""
    returns, energy = flat([1, 1, 1, 0, 0]), flat([0.5, 1, 1.2, 0.5, 0.8])
    A = energy_advantage(returns, energy, positions([3, 2]), torch.zeros(5, dtype=torch.int64))
    assert (returns - A).tolist() == pytest.approx([0.5, 1 / 1.8, 0, 0.5, 1 / 1.8], abs=1e-15)


@few
@given(
    lengths=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), max_size=4),
    seed=st.integers(0, 2**32 - 1),
    idle=st.booleans(),
)
def test_baselines_of_positions_agree_with_the_formula(lengths, seed, idle) -> None:
    rng = np.random.default_rng(seed)
    returns = [[rng.normal(size=n) for n in members] for members in lengths]
    energy = [[np.cumsum(rng.random(n) * (not idle)) for n in members] for members in lengths]
    flatten = [np.concatenate([x for rows in nested for x in rows] or [np.zeros(0)]) for nested in (returns, energy)]
    group = torch.tensor([g for g, members in enumerate(lengths) for n in members for _ in range(n)], dtype=torch.int64)
    found = energy_advantage(*map(flat, flatten), positions([n for members in lengths for n in members]), group)
    expected = [
        a
        for pair in zip(returns, energy, strict=True)
        for row in reference.energy_advantage(*[[list(x) for x in rows] for rows in pair])
        for a in row
    ]
    np.testing.assert_allclose(found, expected, **close)


def test_a_nan_spoils_its_own_position_only() -> None:
    returns, energy, group = flat([1, 1, 0, 0, 1]), flat([0.5, 1, 0.5, 1, 0.3]), torch.tensor([0, 0, 0, 0, 1])
    at = positions([2, 2, 1])
    for poisoned in (0, 1):
        args = [returns.clone(), energy.clone()]
        args[poisoned][3] = math.nan
        found = energy_advantage(*args, at, group)
        assert found[[1, 3]].isnan().all()
        assert torch.equal(found[[0, 2, 4]], energy_advantage(returns, energy, at, group)[[0, 2, 4]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda R, L, g: length_baseline_advantage(R, L[:2], g, own=True), r"L_S: found shape \(2,\), expected \[3\]"),
        (lambda R, L, g: length_baseline_advantage(R, L, g + 3, own=True), "group_S: found numbers from 3 to 3"),
        (lambda R, L, g: success_scaled_advantage(R - 1, g), "R_S: found -1, expected outcomes of 0 or more"),
        (
            lambda R, L, g: success_scaled_advantage(R.half(), g),
            "R_S: found torch.float16, expected float32 or float64",
        ),
        (lambda R, L, g: posterior_weights(R - 0.5, g), "R_S: found -0.5, expected outcomes of 0 or more"),
        (lambda R, L, g: posterior_weights(R, g.int()), "group_S: found torch.int32, expected int64"),
        (lambda R, L, g: batch_scaled(R, eps=0.0), "eps: found 0.0, expected a number above 0"),
        (lambda R, L, g: batch_scaled(R, of_S=R[:2]), r"of_S: found shape \(2,\), expected \[3\]"),
        (lambda R, L, g: reference_margin(R, R[:2], low=0, high=0), r"reference_S: found shape \(2,\), expected \[3\]"),
        (lambda R, L, g: reference_margin(R, R, low=-1, high=0), "low: found -1, expected 0 or more"),
        (lambda R, L, g: reference_margin(R, R, low=0, high=math.nan), "high: found nan, expected 0 or more"),
        (lambda R, L, g: energy_advantage(R, R[:2], g, g), r"energy_N: found shape \(2,\), expected \[3\]"),
        (lambda R, L, g: energy_advantage(R, R, g[:2], g), r"position_N: found shape \(2,\), expected \[3\]"),
        (lambda R, L, g: energy_advantage(R, R, g, g[:2]), r"group_N: found shape \(2,\), expected \[3\]"),
    ],
)
def test_malformed_arguments(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3), torch.ones(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))


@few
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), min_size=1, max_size=12))
def test_a_mean_over_prompts_is_a_scaled_mean_over_responses(members: list[tuple[int, int]]) -> None:
    """Of any numbers, one a token; prompts and responses without a token count in neither mean."""
    order = {g: i for i, g in enumerate(dict.fromkeys(g for g, _ in members))}
    groups, lengths = [order[g] for g, _ in members], [n for _, n in members]
    scale = prompt_mean_scale(torch.tensor(lengths), torch.tensor(groups))
    np.testing.assert_allclose(scale, reference.prompt_mean_scale(lengths, groups), **close)
    tokens = [np.random.default_rng(i).normal(size=n) for i, n in enumerate(lengths)]
    of_prompts = [np.concatenate([x for x, h in zip(tokens, groups, strict=True) if h == g]) for g in set(groups)]
    over_prompts = [x.mean() for x in of_prompts if len(x)]
    over_responses = [f * x.sum() for f, x in zip(scale.tolist(), tokens, strict=True) if len(x)]
    expected = np.mean(over_prompts) if over_prompts else 0.0
    found = np.mean(over_responses) if over_responses else 0.0
    assert found == pytest.approx(expected, abs=1e-12)
