"""PPO clip, clip-higher, dual clip, the LM loss and the KL estimates."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from tppo.maths.objectives import kl_estimate, lm_loss, ppo_loss
from tppo.maths.weights import Weight, weigh

CLIP = {"clip_low": 0.2, "clip_high": 0.28}
few = settings(derandomize=True, deadline=None, max_examples=100)
log_ratios = st.lists(st.tuples(st.floats(-3, 3), st.floats(-2, 2)), max_size=12)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def double(x: object, device: torch.device | str = "cpu") -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64, device=device)


# (A, rho, loss): -min(1.5, 1.28), -min(.5, .8), max(1.5, 1.28), max(.5, .8), min(max(5, 1.28), 3), -min(1.25, 1.25).
WORKED = [(1, 1.5, -1.28), (1, 0.5, -0.5), (-1, 1.5, 1.5), (-1, 0.5, 0.8), (-1, 5.0, 3.0), (1, 1.25, -1.25)]


def test_worked_losses(device) -> None:
    advantages, ratios, expected = (double(x, device) for x in zip(*WORKED, strict=True))
    terms = ppo_loss(ratios.log(), torch.zeros_like(ratios), advantages, **CLIP, dual_clip=3.0)
    assert terms.loss_N.tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    assert terms.ratio_N.tolist() == pytest.approx(ratios.tolist(), abs=1e-12)
    assert terms.clipped_N.tolist() == [True, False, False, True, False, False]
    assert terms.dual_clipped_N.tolist() == [False, False, False, False, True, False]
    for advantage, ratio, loss in WORKED:
        by_hand = reference.dual_clip(reference.ppo_clip(ratio, advantage, **CLIP), advantage, bound=3.0)
        assert by_hand == pytest.approx(loss, abs=1e-12)


@few
@given(log_ratios, st.floats(0, 0.9), st.floats(0, 10), st.sampled_from([None, 1.01, 3.0, 10.0]))
def test_agrees_with_the_formula(device, tokens, clip_low, clip_high, dual) -> None:
    logprobs, advantages = (double([t[i] for t in tokens], device) for i in (0, 1))
    old = torch.full_like(logprobs, -0.7)
    found = ppo_loss(logprobs + old, old, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual)
    expected = []
    for x, a in tokens:
        loss = reference.ppo_clip(reference.ratio(x - 0.7, -0.7), a, clip_low=clip_low, clip_high=clip_high)
        expected.append(loss if dual is None else reference.dual_clip(loss, a, bound=dual))
    np.testing.assert_allclose(found.loss_N.cpu(), expected, rtol=1e-12, atol=1e-12)


def gradient(log_ratio: torch.Tensor, advantages: torch.Tensor, dual_clip: float | None = 3.0) -> torch.Tensor:
    x = log_ratio.clone().requires_grad_()
    terms = ppo_loss(x, torch.zeros_like(x), advantages, **CLIP, dual_clip=dual_clip)
    (g,) = torch.autograd.grad(terms.loss_N.sum(), x)
    blocked = (terms.clipped_N | terms.dual_clipped_N) & (advantages != 0)
    assert torch.equal(g == 0, blocked | (advantages == 0))
    return g


def test_gradient_is_zero_exactly_in_the_clipped_regions(device) -> None:
    ratios = [0.1, 0.79, 0.81, 1.0, 1.27, 1.29, 2.9, 3.1, 9.0]
    grid = [(a, r) for a in (-2.0, 0.0, 0.5) for r in ratios]
    advantages, rho = (double(x, device) for x in zip(*grid, strict=True))
    expected = [0.0 if a == 0 or (a > 0 and r > 1.28) or (a < 0 and (r < 0.8 or r > 3.0)) else -a * r for a, r in grid]
    assert gradient(rho.log(), advantages).tolist() == pytest.approx(expected, abs=1e-12)
    # Without the dual clip a negative advantage is unbounded above.
    assert gradient(rho.log(), advantages, None)[8] == pytest.approx(2.0 * 9.0)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_on_the_edge_the_gradient_is_the_unclipped_one(advantage) -> None:
    # A range of width 0 puts rho = 1 exactly on both edges.
    x = torch.zeros(1, requires_grad=True)
    terms = ppo_loss(x, torch.zeros(1), torch.full((1,), advantage), clip_low=0.0, clip_high=0.0)
    (g,) = torch.autograd.grad(terms.loss_N.sum(), x)
    assert g.item() == -advantage
    assert not terms.clipped_N.any()


def test_gradient_at_ratio_1_is_the_policy_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    tokens, advantages = torch.tensor([0, 3, 6, 3, 1]), double([1.0, -2.0, 0.5, 0.0, 3.0])
    logprobs = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    terms = ppo_loss(logprobs, logprobs.detach(), advantages, **CLIP, dual_clip=10.0)
    assert terms.ratio_N.tolist() == [1.0] * 5
    (found,) = torch.autograd.grad(terms.loss_N.sum(), logits)
    # grad_logits log pi(y) = onehot(y) - pi
    score = torch.nn.functional.one_hot(tokens, 7) - logits.detach().softmax(-1)
    torch.testing.assert_close(found, -advantages[:, None] * score, rtol=1e-12, atol=1e-12)


def test_the_ports_ratio_is_not_ours() -> None:
    # The port exponentiates k3 instead of the log-ratio: at log-ratio -.5 it gets exp(e^.5 - 1.5) = 1.160 with slope
    # 1.160 (1 - e^.5) = -.753, at 0 a slope of 0. The PPO ratio is e^-.5 = .607 with the same slope.
    x = double([-0.5, 0.0]).requires_grad_()
    faulty = (torch.exp(-x) + x - 1).exp()
    (slope,) = torch.autograd.grad(faulty.sum(), x)
    assert faulty.tolist() == pytest.approx([1.160, 1.0], abs=5e-4)
    assert slope.tolist() == pytest.approx([-0.753, 0.0], abs=5e-4)
    ours = ppo_loss(x, torch.zeros(2).double(), -torch.ones(2).double(), clip_low=0.9, clip_high=0.28)
    (slope,) = torch.autograd.grad(ours.loss_N.sum(), x)
    assert ours.ratio_N.tolist() == pytest.approx([math.exp(-0.5), 1.0])
    assert slope.tolist() == pytest.approx([math.exp(-0.5), 1.0])


def test_gradcheck() -> None:
    # Away from the kinks at .8, 1.28 and 3.
    ratios, advantages = double([0.5, 0.9, 1.2, 1.5, 2.5, 4.0] * 2), double([1.0] * 6 + [-1.5] * 6)
    x = ratios.log().requires_grad_()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return ppo_loss(x, torch.full_like(x, 0.0), advantages, **CLIP, dual_clip=3.0).loss_N

    assert torch.autograd.gradcheck(loss, x)
    d = double([-1.3, -0.2, 0.4, 2.0]).requires_grad_()
    for kind in ("k1", "k2", "k3", "abs"):
        assert torch.autograd.gradcheck(lambda x, k=kind: kl_estimate(x, torch.zeros(4).double(), kind=k), d)
    assert torch.autograd.gradcheck(lm_loss, d)


def test_only_the_policy_gets_a_gradient() -> None:
    x, old, a = (torch.ones(3, requires_grad=True) for _ in range(3))
    terms = ppo_loss(x, old, a, **CLIP)
    grads = torch.autograd.grad(terms.loss_N.sum(), (x, old, a), allow_unused=True)
    assert [g is None for g in grads] == [False, True, True]
    assert not terms.ratio_N.requires_grad


def test_huge_log_ratios_stay_finite(device) -> None:
    x = torch.tensor([200.0, -200.0, -torch.inf], device=device, requires_grad=True)
    terms = ppo_loss(x, torch.zeros_like(x), -torch.ones_like(x), **CLIP)
    assert terms.ratio_N.tolist() == pytest.approx([math.exp(20), math.exp(-20), math.exp(-20)])
    assert reference.ratio(200.0, 0.0) == pytest.approx(math.exp(20))
    (g,) = torch.autograd.grad(terms.loss_N.sum(), x)
    assert g.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("where", ["logprobs", "old", "advantages"])
def test_a_token_that_is_not_a_number_shows_in_the_loss_and_nowhere_else(where) -> None:
    inputs = {"logprobs": torch.zeros(2), "old": torch.zeros(2), "advantages": torch.ones(2)}
    inputs[where][1] = torch.nan
    x = inputs["logprobs"].requires_grad_()
    terms = ppo_loss(x, inputs["old"], inputs["advantages"], **CLIP, dual_clip=3.0)
    assert terms.loss_N.isnan().tolist() == [False, True]
    assert not (terms.clipped_N | terms.dual_clipped_N).any()
    (g,) = torch.autograd.grad(terms.loss_N[0], x)
    assert g.tolist() == [-1.0, 0.0]


# d = .1: k1 .1; k2 .005; k3 = e^-.1 - .9 = .0048374
@pytest.mark.parametrize(("kind", "expected"), [("k1", 0.1), ("k2", 0.005), ("k3", 0.0048374), ("abs", 0.1)])
def test_kl_estimates(device, kind, expected) -> None:
    d = [0.1, -0.1, 0.0, 1.5, -2.5]
    by_hand = {"k1": reference.kl_k1, "k2": reference.kl_k2, "k3": reference.kl_k3, "abs": reference.kl_abs}[kind]
    found = kl_estimate(double(d, device) - 1, double([-1.0] * 5, device), kind=kind)
    assert found[0].item() == pytest.approx(expected, abs=6e-8)
    np.testing.assert_allclose(found.cpu(), [by_hand(x) for x in d], rtol=1e-12, atol=1e-15)


def test_kl_estimates_are_unbiased_where_they_should_be() -> None:
    # Exact expectation over a five-letter alphabet, no sampling.
    p, q = double([0.1, 0.2, 0.3, 0.25, 0.15]), double([0.3, 0.2, 0.1, 0.2, 0.2])
    exact = (p * (p / q).log()).sum()
    for kind in ("k1", "k3"):
        torch.testing.assert_close((p * kl_estimate(p.log(), q.log(), kind=kind)).sum(), exact, rtol=1e-12, atol=1e-12)
    assert (kl_estimate(p.log(), q.log(), kind="k3") >= 0).all()


def test_kl_of_hopeless_tokens_stays_finite() -> None:
    x = torch.tensor([-100.0, 0.0, torch.nan], requires_grad=True)
    found = kl_estimate(x, torch.zeros(3), kind="k3")
    assert found[0].item() == pytest.approx(math.exp(20) - 21)
    assert found.isnan().tolist() == [False, False, True]
    (g,) = torch.autograd.grad(found[:2].sum(), x)
    assert g.tolist() == [0.0, 0.0, 0.0]


def test_lm_loss_is_the_negative_log_likelihood() -> None:
    # -ln .5 = .6931472
    assert lm_loss(double([0.5]).log()).item() == pytest.approx(0.6931472, abs=6e-8)
    assert reference.lm_loss(math.log(0.5)) == pytest.approx(0.6931472, abs=6e-8)


def test_float32_agrees_to_1e_6() -> None:
    generator = torch.Generator().manual_seed(0)
    x, a = (torch.randn(1000, generator=generator) * s for s in (0.3, 1.0))
    single = ppo_loss(x, torch.zeros_like(x), a, **CLIP, dual_clip=3.0).loss_N
    exact = ppo_loss(x.double(), torch.zeros_like(x).double(), a.double(), **CLIP, dual_clip=3.0).loss_N
    torch.testing.assert_close(single.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logprobs_N": torch.zeros(1, 2)}, "logprobs_N: found shape"),
        ({"old_logprobs_N": torch.zeros(3)}, r"old_logprobs_N: found shape \(3,\), expected \[2\]"),
        ({"advantages_N": torch.zeros(())}, "advantages_N: found shape"),
        ({"clip_low": -0.1}, "clip_low: found -0.1"),
        ({"clip_high": -0.1}, "clip_high: found -0.1"),
        ({"dual_clip": 1.0}, "dual_clip: found 1.0, expected a number above 1"),
    ],
)
def test_malformed_arguments(change, message) -> None:
    arguments = {"logprobs_N": torch.zeros(2), "old_logprobs_N": torch.zeros(2), "advantages_N": torch.zeros(2), **CLIP}
    with pytest.raises(ValueError, match=message):
        ppo_loss(**{**arguments, **change})
    with pytest.raises(ValueError, match="kind: found 'k4', expected one of k1, k2, k3, abs"):
        kl_estimate(torch.zeros(2), torch.zeros(2), kind="k4")
    with pytest.raises(ValueError, match="logprobs_N: found shape"):
        lm_loss(torch.zeros(1, 2))


def test_truncated_importance_weights() -> None:
    """Equal log-probs weigh 1, the cap bounds, the reference agrees, and no gradient flows."""
    old = torch.tensor([-1.0, -0.5, -2.0], dtype=torch.float64, requires_grad=True)
    behaviour = torch.tensor([-1.0, -1.5, -1.7], dtype=torch.float64)
    keep, offsets = torch.ones(3, dtype=torch.bool), torch.tensor([0, 3])
    got = weigh(old - behaviour, keep, offsets, Weight(0, 2))
    # exp(0) = 1; exp(1) = 2.718 is capped at 2; exp(-0.3) = 0.7408182
    assert got.tolist() == pytest.approx([1.0, 2.0, 0.7408182], abs=1e-7)
    pairs = zip(old.tolist(), behaviour.tolist(), strict=True)
    assert got.tolist() == pytest.approx(
        [reference.truncated_importance_weight(o, b, cap=2.0) for o, b in pairs], abs=1e-15
    )
    assert not got.requires_grad
