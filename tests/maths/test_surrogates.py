"""Losses that are a weight, a gate or a square: worked numbers, gradients, agreement, and what must not matter."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from tests.support.ragged_cases import flat
from tppo.maths.aggregate import aggregate_sum
from tppo.maths.surrogates import gate_loss, square_loss, weighted_loss

few = settings(derandomize=True, deadline=None, max_examples=25)
close = {"rtol": 1e-12, "atol": 1e-12}
TAUS = {"tau_positive": 1.0, "tau_negative": 1.05}
LOSSES = {
    "weight": lambda d, A: weighted_loss(d, A, torch.full_like(d, 0.7)),
    "gate": lambda d, A: gate_loss(d, A, **TAUS),
    "square": lambda d, A: square_loss(d, A, tau=0.1),
}
losses = pytest.mark.parametrize("name", LOSSES)


def test_worked_numbers() -> None:
    """SAPO at a ratio of 1.5 (arXiv 2511.20347), and Kimi's square (arXiv 2501.12599)."""
    gates = gate_loss(flat([math.log(1.5)] * 2), flat([1, -1]), **TAUS)
    assert gates.tolist() == pytest.approx([-2.4898, 2.3936], abs=5e-5)
    assert square_loss(flat([0.24]), flat([0.5]), tau=0.1).tolist() == pytest.approx([0.476**2], abs=1e-15)
    assert pytest.approx(0.2266, abs=5e-5) == 0.476**2


@few
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 30.0]))
def test_losses_agree_with_the_formulas(seed, scale) -> None:
    rng = np.random.default_rng(seed)
    d, A, w = scale * rng.normal(size=12), rng.normal(size=12) * rng.integers(0, 2, 12), rng.exponential(size=12)
    found = {
        "weight": weighted_loss(flat(d), flat(A), flat(w)),
        "no weight": weighted_loss(flat(d), flat(A)),
        "gate": gate_loss(flat(d), flat(A), **TAUS),
        "square": square_loss(flat(d), flat(A), tau=0.1),
    }
    on_paper = {
        "weight": [reference.weighted_loss(*x) for x in zip(d, A, w, strict=True)],
        "no weight": [reference.weighted_loss(*x) for x in zip(d, A, strict=True)],
        "gate": [reference.gate_loss(*x, **TAUS) for x in zip(d, A, strict=True)],
        "square": [reference.square_loss(*x, tau=0.1) for x in zip(d, A, strict=True)],
    }
    for name, expected in on_paper.items():
        np.testing.assert_allclose(found[name], expected, **close, err_msg=name)


def test_gradients_are_those_of_the_formulas() -> None:
    d, A = flat([0.3, -0.7, 0.0, 2.0]), flat([1.5, -0.5, -1.0, 0.25])
    rho = d.exp()
    sigma = torch.sigmoid(flat([1.0, 1.05, 1.05, 1.0]) * (rho - 1))
    expected = {"weight": -0.7 * A, "gate": -4 * sigma * (1 - sigma) * rho * A, "square": -0.2 * (A - 0.1 * d)}
    for name, loss in LOSSES.items():
        x = d.clone().requires_grad_()
        loss(x, A).sum().backward()
        torch.testing.assert_close(x.grad, expected[name], **close)


def test_the_square_is_at_rest_where_the_log_ratio_is_the_advantage_over_tau() -> None:
    d = flat([5.0, -5.0]).requires_grad_()
    square_loss(d, flat([0.5, -0.5]), tau=0.1).sum().backward()
    assert d.grad.tolist() == [0.0, 0.0]


def test_weight_and_advantage_are_constants() -> None:
    d, A, w = (flat([0.5]).requires_grad_() for _ in range(3))
    (weighted_loss(d, A, w) + gate_loss(d, A, **TAUS) + square_loss(d, A, tau=0.1)).sum().backward()
    assert d.grad is not None
    assert A.grad is None
    assert w.grad is None


@losses
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["advantage", "log-ratio"])
def test_dropped_tokens_never_matter(name, junk, where) -> None:
    """Neither to the sum nor to the gradient, whatever stands there; kept, they are seen."""
    keep, offsets = torch.tensor([True, False, True]), torch.tensor([0, 3])
    d, A = flat([0.1, 0.2, 0.3]), flat([1.0, -1.0, -0.5])
    clean = d.clone().requires_grad_()
    expected = aggregate_sum(LOSSES[name](clean, A), keep, offsets, mode="seq-mean-token-mean")
    expected.backward()
    (A if where == "advantage" else d)[1] = junk
    dirty = d.clone().requires_grad_()
    loss = LOSSES[name](dirty, A)
    total = aggregate_sum(loss, keep, offsets, mode="seq-mean-token-mean")
    total.backward()
    assert torch.equal(total, expected)
    assert torch.equal(dirty.grad, clean.grad)
    if math.isnan(junk) or where == "advantage":
        assert loss[1].isnan()


def test_a_weight_that_is_not_finite_leaves_no_trace_on_dropped_tokens() -> None:
    d, w = flat([0.1, 0.2]).requires_grad_(), flat([1.0, math.nan])
    loss = weighted_loss(d, flat([1.0, 1.0]), w)
    assert loss[1].isnan()
    aggregate_sum(loss, torch.tensor([True, False]), torch.tensor([0, 2]), mode="token-mean").backward()
    assert d.grad.tolist() == [-1.0, 0.0]


@losses
def test_no_tokens(name) -> None:
    assert LOSSES[name](torch.zeros(0), torch.zeros(0)).shape == (0,)


@losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(name, dtype) -> None:
    assert LOSSES[name](torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: weighted_loss(d.view(1, 3), d), r"logprobs_N: found shape \(1, 3\), expected \[3\]"),
        (lambda d: weighted_loss(d, d[:1]), r"advantages_N: found shape \(1,\), expected \[3\]"),
        (lambda d: weighted_loss(d, d, d[:1]), r"weight_N: found shape \(1,\), expected \[3\]"),
        (lambda d: gate_loss(d, d[:1], **TAUS), r"advantages_N: found shape \(1,\), expected \[3\]"),
        (lambda d: gate_loss(d, d, tau_positive=0.0, tau_negative=1), "tau_positive: found 0.0, expected a number"),
        (lambda d: gate_loss(d, d, tau_positive=1, tau_negative=-1), "tau_negative: found -1, expected a number"),
        (lambda d: square_loss(d, d[:1], tau=0.1), r"advantages_N: found shape \(1,\), expected \[3\]"),
        (lambda d: square_loss(d, d, tau=math.nan), "tau: found nan, expected a number above 0"),
    ],
)
def test_malformed_arguments(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3))
