"""The clipped value loss."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from tppo.maths.values import value_loss

few = settings(derandomize=True, deadline=None, max_examples=100)
WIDTH = st.one_of(st.none(), st.floats(0, 1))


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def double(x: object, device: torch.device | str = "cpu") -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64, device=device)


CASES = [(0.9, 0.2, 1.0), (0.5, 0.2, 1.0), (-0.6, 0.2, -1.0), (0.9, 0.2, 0.0)]  # V, V_old, G


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        # V_c = .8, .5, -.3, .8: max(.1^2, .2^2)/2, .5^2/2, max(.4^2, .7^2)/2, max(.9^2, .8^2)/2
        (0.5, 0.6, [0.02, 0.125, 0.245, 0.405]),
        # V_c = .4, .4, 0, .4: .6^2/2 twice, 1/2, .9^2/2
        (0.2, 0.2, [0.18, 0.18, 0.5, 0.405]),
        # No clip: .1^2/2, .5^2/2, .4^2/2, .9^2/2
        (None, None, [0.005, 0.125, 0.08, 0.405]),
    ],
)
def test_worked_losses(device, low, high, expected) -> None:
    v, old, target = (double(x, device) for x in zip(*CASES, strict=True))
    found = value_loss(v, old, target, clip_low=low, clip_high=high)
    assert found.loss_N.tolist() == pytest.approx(expected, abs=1e-12)
    by_hand = [reference.value_loss(*case, clip_low=low, clip_high=high) for case in CASES]
    assert by_hand == pytest.approx(expected, abs=1e-12)


@few
@given(st.lists(st.tuples(*[st.floats(-2, 2)] * 3), max_size=12), WIDTH, WIDTH)
def test_agrees_with_the_formula(device, tokens, low, high) -> None:
    v, old, target = (double([t[i] for t in tokens], device) for i in range(3))
    found = value_loss(v, old, target, clip_low=low, clip_high=high)
    expected = [reference.value_loss(*t, clip_low=low, clip_high=high) for t in tokens]
    np.testing.assert_allclose(found.loss_N.cpu(), expected, rtol=1e-12, atol=1e-12)


@few
@given(st.lists(st.tuples(*[st.floats(-2, 2)] * 3), min_size=1, max_size=12), WIDTH, WIDTH)
def test_gradient_is_zero_exactly_beyond_the_range_towards_the_target(device, tokens, low, high) -> None:
    v, old, target = (double([t[i] for t in tokens], device) for i in range(3))
    v.requires_grad_()
    terms = value_loss(v, old, target, clip_low=low, clip_high=high)
    (found,) = torch.autograd.grad(terms.loss_N.sum(), v)
    expected, clipped = [], []
    for value, centre, goal in tokens:
        lowest = -math.inf if low is None else centre - low
        highest = math.inf if high is None else centre + high
        outside = value < lowest or value > highest
        bounded = reference.clip(value, lowest, highest)
        frozen = outside and (bounded - goal) ** 2 > (value - goal) ** 2
        expected.append(0.0 if frozen else value - goal)
        clipped.append(frozen)
    assert terms.clipped_N.tolist() == clipped
    np.testing.assert_allclose(found.cpu(), expected, rtol=1e-12, atol=1e-12)


def test_gradcheck_and_sources_of_the_gradient() -> None:
    v, old, target = (double(x) for x in zip(*CASES, strict=True))
    v.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, target, clip_low=0.5, clip_high=0.6).loss_N, v)
    old.requires_grad_()
    target.requires_grad_()
    loss = value_loss(v, old, target, clip_low=0.5, clip_high=0.6).loss_N.sum()
    grads = torch.autograd.grad(loss, (v, old, target), allow_unused=True)
    assert [g is None for g in grads] == [False, True, True]


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_token_that_is_not_finite_shows_in_the_loss_and_nowhere_else(where, poison) -> None:
    inputs = [torch.zeros(2), torch.zeros(2), torch.ones(2)]
    inputs[where][1] = poison
    v = inputs[0].requires_grad_()
    terms = value_loss(v, inputs[1], inputs[2], clip_low=0.5, clip_high=0.6)
    assert terms.loss_N.isnan().tolist() == [False, True]
    assert not terms.clipped_N.any()
    (g,) = torch.autograd.grad(terms.loss_N[0], v)
    assert g.tolist() == [-1.0, 0.0]


def test_old_values_are_not_read_without_a_clip() -> None:
    terms = value_loss(torch.zeros(2), torch.full((2,), torch.nan), torch.ones(2), clip_low=None, clip_high=None)
    assert terms.loss_N.tolist() == [0.5, 0.5]
    assert not terms.clipped_N.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values_N": torch.zeros(2, 1)}, "values_N: found shape"),
        ({"old_values_N": torch.zeros(1)}, "old_values_N: found shape"),
        ({"returns_N": torch.zeros(3)}, r"returns_N: found shape \(3,\), expected \[2\]"),
        ({"clip_low": -1.0}, "clip_low: found -1.0"),
        ({"clip_high": float("nan")}, "clip_high: found nan"),
    ],
)
def test_malformed_arguments(change, message) -> None:
    arguments = {"values_N": torch.zeros(2), "old_values_N": torch.zeros(2), "returns_N": torch.zeros(2)}
    with pytest.raises(ValueError, match=message):
        value_loss(**{**arguments, "clip_low": 0.5, "clip_high": 0.6, **change})
