"""Seeded sampling: counter-based numbers, and picks that follow the distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tppo.engines.sampling import pick, uniforms


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(0, 40), st.integers(1, 40))
def test_numbers_do_not_depend_on_windows(seed: int, uid: int, position: int, count: int) -> None:
    whole = uniforms(seed, uid, 0, 80)
    assert (uniforms(seed, uid, position, count) == whole[position : position + count]).all()


def test_numbers_are_uniform_and_differ_between_responses() -> None:
    draws = np.stack([uniforms(3, uid, 0, 500) for uid in range(200)])
    # Kolmogorov-Smirnov on 100,000 numbers; false alarm 1e-6.
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 1e-6
    assert len(np.unique(draws)) == draws.size
    assert not (uniforms(4, 0, 0, 8) == draws[0, :8]).any()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_picks_follow_the_distribution(temperature: float, top_p: float) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5])
    probs = (logits / temperature).softmax(-1).double()
    allowed = probs.clone()
    if top_p < 1:
        order = probs.argsort(descending=True)
        inside = probs[order].cumsum(0) - probs[order] < top_p
        allowed = torch.zeros_like(probs)
        allowed[order[inside]] = probs[order[inside]]
    count = 40_000
    u = torch.from_numpy(np.random.default_rng(0).random(count))
    tokens, logprobs = pick(logits.expand(count, -1), u, temperature=temperature, top_p=top_p)
    assert torch.allclose(logprobs.double(), probs.log()[tokens], atol=1e-6)  # of the full distribution
    support = allowed > 0
    observed = torch.bincount(tokens, minlength=5)
    assert observed[~support].sum() == 0
    expected = (allowed / allowed.sum() * count)[support]
    # Chi-square goodness of fit; false alarm 1e-6.
    assert stats.chisquare(observed[support].numpy(), expected.numpy()).pvalue > 1e-6


def test_edges_of_the_unit_interval_never_pick_an_impossible_token() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    for u, wanted in [(0.0, 1), (np.nextafter(1.0, 0.0), 2)]:
        tokens, _ = pick(logits, torch.tensor([u], dtype=torch.float64), temperature=1.0)
        assert tokens.item() == wanted


def test_temperature_zero_is_greedy() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 0.0, 1.0]])
    tokens, logprobs = pick(logits, torch.rand(2, dtype=torch.float64), temperature=0)
    assert tokens.tolist() == [1, 0]
    assert torch.allclose(logprobs, logits.log_softmax(-1).amax(-1))
