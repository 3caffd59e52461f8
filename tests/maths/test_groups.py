"""Advantages relative to the group: GRPO, Dr.GRPO, RLOO and the two weights of fine-tuning on both kinds of answers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from tests.support.ragged_cases import flat
from tppo.maths.groups import (
    group_extremes,
    group_mean,
    group_std,
    group_sums,
    grpo_advantage,
    rloo_advantage,
    signed_weights,
)

few = settings(derandomize=True, deadline=None, max_examples=80)
close = {"rtol": 1e-12, "atol": 1e-12}
OUTCOME = st.one_of(st.sampled_from([0.0, 1.0, 0.1, -1.0]), st.floats(-3, 3))
GROUPS = st.lists(st.lists(OUTCOME, min_size=1, max_size=9), max_size=6)
ADVANTAGES = {
    "grpo": lambda R, g: grpo_advantage(R, g, scale=True),
    "dr-grpo": lambda R, g: grpo_advantage(R, g, scale=False),
    "rloo": rloo_advantage,
    "fisft": signed_weights,
}
ON_PAPER = {
    "grpo": lambda R: reference.grpo_advantage(R, scale=True),
    "dr-grpo": lambda R: reference.grpo_advantage(R, scale=False),
    "rloo": reference.rloo_advantage,
    "fisft": reference.signed_weights,
}
names = pytest.mark.parametrize("name", ADVANTAGES)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def ids(groups: list[list[float]], device: torch.device | str = "cpu") -> torch.Tensor:
    return torch.tensor([i for i, group in enumerate(groups) for _ in group], dtype=torch.int64, device=device)


def outcomes(groups: list[list[float]], device: torch.device | str = "cpu") -> torch.Tensor:
    return flat([R for group in groups for R in group], device=device)


GOLDEN = [
    # mean 1/2, std sqrt(4/4 / 3) = .5773503: .5 / .5773513 = .8660239;  .5;  4/3 * .5
    ([1, 0, 0, 1], "grpo", [0.8660239, -0.8660239, -0.8660239, 0.8660239]),
    ([1, 0, 0, 1], "dr-grpo", [0.5, -0.5, -0.5, 0.5]),
    ([1, 0, 0, 1], "rloo", [0.6666667, -0.6666667, -0.6666667, 0.6666667]),
    # mean 1/4, std sqrt((9/16 + 3/16) / 3) = 1/2: .75 / .500001 = 1.4999970;  .75;  1 - 0 and 0 - 1/3
    ([1, 0, 0, 0], "grpo", [1.499997, -0.499999, -0.499999, -0.499999]),
    ([1, 0, 0, 0], "dr-grpo", [0.75, -0.25, -0.25, -0.25]),
    ([1, 0, 0, 0], "rloo", [1.0, -0.3333333, -0.3333333, -0.3333333]),
    # mean 1.75, std sqrt((.15^2 + .05^2) * 2 / 3) = .1290994: .15 / .1291004 = 1.1618860, .05 / .1291004 = .3872953
    ([1.9, 1.8, 1.7, 1.6], "grpo", [1.161886, 0.3872953, -0.3872953, -1.161886]),
    # Two members: std = 1 / sqrt 2, so the scale is a factor and no more.
    ([1, 0], "grpo", [0.7071058, -0.7071058]),
    # p = 1/4, c = sqrt(3/4): c sqrt 3 = 3/2 and -c / sqrt 3 = -1/2;  p = 1/2: c = .8660254.  Above 0 is right.
    ([1, 0, 0, 0], "fisft", [1.5, -0.5, -0.5, -0.5]),
    ([1, 0, 0, 1], "fisft", [0.8660254, -0.8660254, -0.8660254, 0.8660254]),
    ([0.2, 0, -1, 0], "fisft", [1.5, -0.5, -0.5, -0.5]),
    # Three right, one wrong: mean 3/4, std 1/2.
    ([1, 1, 1, 0], "grpo", [0.499999, 0.499999, 0.499999, -1.499997]),
]


@pytest.mark.parametrize(("group", "name", "expected"), GOLDEN)
def test_worked_numbers(device, group, name, expected) -> None:
    assert ON_PAPER[name](group) == pytest.approx(expected, abs=6e-8)
    found = ADVANTAGES[name](outcomes([group], device), ids([group], device))
    assert found.tolist() == pytest.approx(expected, abs=6e-8)


def test_worked_mean_and_standard_deviation() -> None:
    groups = [[1.0, 0.0, 0.0, 1.0], [3.0], [1.0, 2.0, 3.0]]
    mean, std = (f(outcomes(groups), ids(groups)) for f in (group_mean, group_std))
    assert mean.tolist() == [0.5] * 4 + [3.0] + [2.0] * 3
    assert std.tolist() == pytest.approx([0.5773503] * 4 + [0.0] + [1.0] * 3, abs=6e-8)


@few
@given(groups=st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=9), max_size=6))
def test_two_weights_are_the_scaled_advantage_of_right_and_wrong(groups) -> None:
    """RL in name only (arXiv 2505.13697): A+ / -A- = (1 - p) / p, and both are GRPO's for outcomes 0 and 1."""
    R, group = outcomes(groups), ids(groups)
    weights = signed_weights(R, group)
    torch.testing.assert_close(weights, grpo_advantage(R, group, scale=True, eps=1e-300), rtol=1e-14, atol=1e-14)
    for i, members in enumerate(groups):
        own, p = weights[group == i], sum(members) / len(members)
        if 0 < p < 1:
            assert float(own.max() / -own.min()) == pytest.approx((1 - p) / p, rel=1e-14)


@few
@given(groups=GROUPS)
def test_sums_and_extremes_of_a_group(groups) -> None:
    R, group = outcomes(groups), ids(groups)
    low, high = group_extremes(R, group)
    assert low.tolist() == [min(members) for members in groups for _ in members]
    assert high.tolist() == [max(members) for members in groups for _ in members]
    expected = flat([sum(members) for members in groups for _ in members])
    torch.testing.assert_close(group_sums(R, group), expected, **close)


@names
@few
@given(groups=GROUPS)
def test_advantages_agree_with_the_formula(device, name, groups) -> None:
    found = ADVANTAGES[name](outcomes(groups, device), ids(groups, device))
    expected = [A for group in groups for A in ON_PAPER[name](group)]
    # Round-off of 1e-16 in a deviation becomes 1e-10 when divided by eps = 1e-6.
    np.testing.assert_allclose(found.cpu(), expected, rtol=1e-9, atol=1e-9)


@few
@given(groups=GROUPS)
def test_mean_and_standard_deviation_agree_with_the_formula(device, groups) -> None:
    R, group = outcomes(groups, device), ids(groups, device)
    for function, by_hand in ((group_mean, reference.group_mean), (group_std, reference.group_std)):
        expected = [by_hand(members) for members in groups for _ in members]
        np.testing.assert_allclose(function(R, group).cpu(), expected, **close)


@names
@few
@given(groups=GROUPS)
def test_advantages_of_a_group_have_mean_zero(name, groups) -> None:
    group = ids(groups)
    mean = group_mean(ADVANTAGES[name](outcomes(groups), group), group)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9)


@few
@given(groups=GROUPS)
def test_rloo_and_grpo_are_multiples_of_the_deviation(groups) -> None:
    R, group = outcomes(groups), ids(groups)
    deviation = grpo_advantage(R, group, scale=False)
    torch.testing.assert_close(deviation, R - group_mean(R, group), **close)
    factor = flat([len(g) / max(len(g) - 1, 1) for g in groups for _ in g])
    torch.testing.assert_close(rloo_advantage(R, group), factor * deviation, **close)
    scaled = grpo_advantage(R, group, scale=True, eps=0.5)
    torch.testing.assert_close(scaled * (group_std(R, group) + 0.5), deviation, **close)


@names
@few
@given(groups=GROUPS, random=st.randoms(use_true_random=False))
def test_order_and_numbering_do_not_matter(name, groups, random) -> None:
    R, group = outcomes(groups), ids(groups)
    order, number = list(range(len(R))), list(range(len(groups)))
    random.shuffle(order)
    random.shuffle(number)
    renumbered = torch.tensor(number, dtype=torch.int64)[group][order]
    expected = ADVANTAGES[name](R, group)[order]
    torch.testing.assert_close(ADVANTAGES[name](R[order], renumbered), expected, rtol=1e-9, atol=1e-9)


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_member_and_equal_outcomes_give_exactly_zero(device, name, dtype) -> None:
    # The sum of ten .1 is rounded, and so would be their mean.
    groups = [[5.0], [0.1] * 10, [1.0] * 3, [0.7] * 7]
    found = ADVANTAGES[name](outcomes(groups, device).to(dtype), ids(groups, device))
    assert found.dtype == dtype
    assert found.tolist() == [0.0] * 21
    assert [A for group in groups for A in ON_PAPER[name](group)][:11] == [0.0] * 11


def test_an_eps_that_the_dtype_does_not_know_gives_zero_too() -> None:
    R = torch.tensor([0.1, 0.1, 1.0, 0.0], dtype=torch.float32)
    found = grpo_advantage(R, torch.tensor([0, 0, 1, 1]), scale=True, eps=1e-300)
    assert found.tolist() == pytest.approx([0.0, 0.0, 0.7071068, -0.7071068], abs=1e-6)


@names
def test_no_responses_give_no_advantages(name) -> None:
    assert ADVANTAGES[name](torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)


@names
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_an_outcome_that_is_not_finite_spoils_its_own_group_only(name, poison) -> None:
    R, group = flat([poison, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    found = ADVANTAGES[name](R, group)
    assert not found[:2].isfinite().any()
    torch.testing.assert_close(found[2:], ADVANTAGES[name](R[2:], torch.tensor([0, 0])))


@names
def test_advantages_are_data_and_leave_their_inputs_alone(name) -> None:
    R, group = torch.tensor([1.0, 0.0], requires_grad=True), torch.tensor([0, 0])
    assert not ADVANTAGES[name](R, group).requires_grad
    assert R.tolist() == [1.0, 0.0]
    assert group.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda R, g: group_mean(R.view(1, 3), g), "R_S: found rank 2"),
        (lambda R, g: group_mean(R.half(), g), r"R_S: found torch.float16, expected float32 or float64"),
        (lambda R, g: group_std(R, g[:2]), r"group_S: found shape \(2,\), expected \[3\]"),
        (lambda R, g: rloo_advantage(R, g.int()), "group_S: found torch.int32, expected int64"),
        (lambda R, g: rloo_advantage(R, g - 1), "group_S: found numbers from -1 to 0, expected groups numbered from 0"),
        (lambda R, g: signed_weights(R, g[:2]), r"group_S: found shape \(2,\), expected \[3\]"),
        (lambda R, g: group_extremes(R, g + 2), "group_S: found numbers from 2 to 3, .* below 3"),
        (lambda R, g: grpo_advantage(R, g + 2, scale=True), "group_S: found numbers from 2 to 3, .* below 3"),
        (lambda R, g: grpo_advantage(R, g, scale=True, eps=0.0), "eps: found 0.0, expected a number above 0"),
    ],
)
def test_malformed_arguments(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3), torch.tensor([0, 1, 1]))
