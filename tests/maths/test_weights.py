"""Weights from two policies: levels of a ratio, clamping and zeroing, trust regions, the off-policy sequence mask."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from tests.support.ragged_cases import Ragged, flat, ragged
from tppo.maths.weights import Trust, Weight, levelled, on_policy_enough, trusted, weigh

few = settings(derandomize=True, deadline=None, max_examples=25)
close = {"rtol": 1e-12, "atol": 1e-12}
LEVELS = ["token", "mean", "product"]
WEIGHTS = [
    Weight(),
    Weight(0, 2),
    Weight(0.5, 5, outside="zero"),
    Weight(0.7, 6, outside="zero", level="mean"),
    Weight(0.999, 1.002, outside="zero", level="mean"),
    Weight(0, 1, level="product"),
    Weight(1, 1),
]
TRUSTS = [Trust(0.15, 0.15), Trust(0.05, 0.3), Trust(0.05, 0.02, "kl"), Trust(0, 0), Trust(math.inf, math.inf, "kl")]
RATIOS = [0.3, 0.6, 0.75, 0.9, 1, 1.1, 1.5, 3, 6.5]


def tokens(case: Ragged) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return flat(case.values), torch.from_numpy(case.keep), case.offsets


def one(log_ratios: list[float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One response, all of it kept."""
    return flat(log_ratios), torch.ones(len(log_ratios), dtype=torch.bool), torch.tensor([0, len(log_ratios)])


def test_worked_levels() -> None:
    """GSPO's geometric mean (arXiv 2507.18071) and the product."""
    d, keep, offsets = one([0.1, -0.2, 0.3, 0.04])
    mean, product = (levelled(d, keep, offsets, level=level).exp() for level in ("mean", "product"))
    assert mean.tolist() == pytest.approx([1.0618365] * 4, abs=5e-8)
    assert product.tolist() == pytest.approx([1.2712492] * 4, abs=5e-8)
    assert torch.equal(levelled(d, keep, offsets, level="token"), d)


# Rows of the table of gradient weights that are a weight and nothing else.
@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (Weight(0, 1.2), [0.3, 0.6, 0.75, 0.9, 1, 1.1, 1.2, 1.2, 1.2]),
        (Weight(0, 5), [0.3, 0.6, 0.75, 0.9, 1, 1.1, 1.5, 3, 5]),
        (Weight(0.5, 5, outside="zero"), [0, 0.6, 0.75, 0.9, 1, 1.1, 1.5, 3, 0]),
        (Weight(0.7, 6, outside="zero"), [0, 0, 0.75, 0.9, 1, 1.1, 1.5, 3, 0]),
        (Weight(0, 1), [0.3, 0.6, 0.75, 0.9, 1, 1, 1, 1, 1]),
        (Weight(1, 1), [1] * 9),
    ],
)
def test_worked_weights(weight: Weight, expected: list[float]) -> None:
    d, keep, offsets = one([math.log(rho) for rho in RATIOS])
    assert weigh(d, keep, offsets, weight).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("level", LEVELS)
@few
@given(case=ragged())
def test_levels_agree_with_the_formula(level, case) -> None:
    d, keep, offsets = tokens(case)
    pairs = zip(case.rows(case.values), case.rows(case.keep), strict=True)
    expected = [x for row, flags in pairs for x in reference.levelled(row, flags, level=level)]
    np.testing.assert_allclose(levelled(d, keep, offsets, level=level), expected, **close)


@pytest.mark.parametrize("weight", WEIGHTS, ids=repr)
@few
@given(case=ragged(), scale=st.sampled_from([1e-3, 1.0, 30.0]))
def test_weights_agree_with_the_formula(weight, case, scale) -> None:
    d, keep, offsets = tokens(case)
    expected = []
    for row, flags in zip(case.rows(case.values), case.rows(case.keep), strict=True):
        for x in reference.levelled(scale * row, flags, level=weight.level):
            expected.append(reference.weight(x, low=weight.low, high=weight.high, outside=weight.outside))
    np.testing.assert_allclose(weigh(scale * d, keep, offsets, weight), expected, **close)


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_carries_the_gradient_of_its_kept_tokens(level) -> None:
    d = flat([0.1, -0.2, 0.3, 0.5, 0.7]).requires_grad_()
    keep, offsets = torch.tensor([True, False, True, True, False]), torch.tensor([0, 3, 5])
    levelled(d, keep, offsets, level=level)[keep].sum().backward()
    # The first response's level is read by two kept tokens: each token gets 2/n of the mean, 2 of the product.
    expected = {"token": [1, 0, 1, 1, 0], "mean": [1, 0, 1, 1, 0], "product": [2, 0, 2, 1, 0]}[level]
    assert d.grad.tolist() == expected


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("level", LEVELS)
def test_dropped_tokens_and_other_responses_never_matter(level, junk) -> None:
    keep, offsets = torch.tensor([True, False, True, True, True]), torch.tensor([0, 3, 5])
    clean = flat([0.1, 9.0, 0.3, 0.2, 0.4])
    dirty = clean.clone()
    dirty[1] = junk  # dropped
    found = levelled(dirty.requires_grad_(), keep, offsets, level=level)
    assert torch.equal(found[keep], levelled(clean, keep, offsets, level=level)[keep])
    found[keep].sum().backward()
    assert dirty.grad.isfinite().all()
    for weight in (Weight(0, 2, level=level), Weight(0.5, 2, outside="zero", level=level)):
        assert torch.equal(weigh(dirty, keep, offsets, weight)[keep], weigh(clean, keep, offsets, weight)[keep])
    assert torch.equal(
        on_policy_enough(-dirty, keep, offsets, -torch.ones(5), bound=0.15)[keep],
        on_policy_enough(-clean, keep, offsets, -torch.ones(5), bound=0.15)[keep],
    )
    dirty = clean.clone()
    dirty[0] = junk  # kept
    for weight in (Weight(0, 2, level=level), Weight(0.5, 2, outside="zero", level=level)):
        assert torch.equal(weigh(dirty, keep, offsets, weight)[3:], weigh(clean, keep, offsets, weight)[3:])
        if math.isnan(junk):
            assert weigh(dirty, keep, offsets, weight)[0].isnan()


def test_a_response_without_kept_tokens_has_the_ratio_one() -> None:
    d, offsets = flat([0.5, 0.7]), torch.tensor([0, 0, 2])
    for level in ("mean", "product"):
        assert weigh(d, torch.tensor([False, False]), offsets, Weight(level=level)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("level", LEVELS)
def test_no_tokens_give_no_weights(level) -> None:
    nothing, keep = torch.zeros(0), torch.zeros(0, dtype=torch.bool)
    for offsets in (torch.tensor([0]), torch.tensor([0, 0, 0])):
        assert weigh(nothing, keep, offsets, Weight(level=level)).shape == (0,)
        assert on_policy_enough(nothing, keep, offsets, nothing, bound=0.5).shape == (0,)
    assert trusted(nothing, nothing, nothing, Trust(0.1, 0.1)).shape == (0,)


def test_weights_are_data_and_finite_at_any_distance() -> None:
    d = flat([1e4, -1e4, 0.0]).requires_grad_()
    keep, offsets = torch.ones(3, dtype=torch.bool), torch.tensor([0, 3])
    for level in LEVELS:
        w = weigh(d, keep, offsets, Weight(level=level))
        assert not w.requires_grad
        assert w.isfinite().all()


# mu = .9: the ratio .75 is a fall of .225, .9 one of .09. mu = .01: even a ratio of 6.5 is a rise of .055 only.
@pytest.mark.parametrize(
    ("mu", "advantage", "ratios", "expected"),
    [
        (0.9, -1.0, [0.3, 0.6, 0.75, 0.9, 1, 1.1], [False, False, False, True, True, True]),
        (0.01, 1.0, RATIOS, [True] * 9),
        (0.01, -1.0, RATIOS, [True] * 9),
        (0.5, 1.0, [0.3, 1, 1.2, 1.4], [True, True, True, False]),
        (0.5, 0.0, [0.3, 1.9], [True, True]),
    ],
)
def test_worked_trust_regions(mu, advantage, ratios, expected) -> None:
    then = torch.full((len(ratios),), math.log(mu), dtype=torch.float64)
    now = then + flat([math.log(r) for r in ratios])
    assert trusted(now, then, torch.full_like(now, advantage), Trust(0.15, 0.15)).tolist() == expected


@pytest.mark.parametrize("trust", TRUSTS, ids=repr)
@few
@given(seed=st.integers(0, 2**32 - 1))
def test_trust_regions_agree_with_the_formula(trust, seed) -> None:
    rng = np.random.default_rng(seed)
    now, then = np.log(rng.random(20)), np.log(rng.random(20))
    now[:3], then[1:4] = [0.0, -np.inf, 0.0], [0.0, -np.inf, -np.inf]  # certain and impossible tokens
    advantages = rng.integers(-1, 2, 20).astype(float)
    found = trusted(flat(now), flat(then), flat(advantages), trust)
    expected = [
        reference.trusted(*triple, low=trust.low, high=trust.high, kind=trust.kind)
        for triple in zip(now, then, advantages, strict=True)
    ]
    assert found.tolist() == expected


def test_a_distance_that_is_infinite_exceeds_every_finite_bound() -> None:
    now, then = torch.tensor([-math.inf, 0.0]), torch.tensor([0.5, 0.5]).log()
    signs = torch.tensor([-1.0, 1.0])
    assert trusted(now, then, signs, Trust(1e300, 1e300, "kl")).tolist() == [False, False]
    assert reference.bernoulli_kl(0.5, 0.0) == reference.bernoulli_kl(0.5, 1.0) == math.inf


@few
@given(case=ragged(), bound=st.sampled_from([0.05, 0.5]))
def test_the_off_policy_mask_agrees_with_the_formula(case, bound) -> None:
    d, keep, offsets = tokens(case)
    found = on_policy_enough(d, keep, offsets, flat(case.rewards), bound=bound)
    rows = zip(case.rows(case.values), case.rows(case.keep), case.rows(case.rewards), strict=True)
    expected = [k for row in rows for k in reference.on_policy_enough(*row, bound=bound)]
    assert found.tolist() == expected


def test_the_off_policy_mask_spares_right_answers_and_what_is_near() -> None:
    d, keep = flat([-0.6, -0.6, -0.3, -0.6]), torch.ones(4, dtype=torch.bool)
    offsets, advantages = torch.tensor([0, 2, 3, 4]), flat([-1, -1, -1, 1])
    assert on_policy_enough(d, keep, offsets, advantages, bound=0.5).tolist() == [False, False, True, True]


def test_zeroing_is_not_clamping() -> None:
    """SkyRL's remark that both have the same gradient is wrong: one has none."""
    d, keep, offsets = one([math.log(6.0)])
    assert weigh(d, keep, offsets, Weight(0, 5)).tolist() == [5.0]
    assert weigh(d, keep, offsets, Weight(0, 5, outside="zero")).tolist() == [0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, k, o: Weight(2, 1), "Weight: found low 2, high 1, expected 0 <= low <= high"),
        (lambda d, k, o: Weight(-1, 1), "Weight: found low -1"),
        (lambda d, k, o: Weight(0, math.nan), "Weight: found low 0, high nan"),
        (lambda d, k, o: Weight(outside="mask"), "outside: found 'mask', expected one of clamp, zero"),
        (lambda d, k, o: Weight(level="sum"), "level: found 'sum', expected one of token, mean, product"),
        (lambda d, k, o: Trust(1, 1, "js"), "kind: found 'js', expected one of tv, kl"),
        (lambda d, k, o: Trust(-0.1, 0.1), "Trust: found low -0.1, high 0.1, expected 0 or more"),
        (lambda d, k, o: Trust(0.1, math.nan), "Trust: found low 0.1, high nan"),
        (lambda d, k, o: levelled(d.view(1, 3), k, o, level="mean"), r"log_ratio_N: found shape \(1, 3\)"),
        (lambda d, k, o: levelled(d, k[:2], o, level="mean"), r"keep_N: found shape \(2,\), expected \[3\]"),
        (lambda d, k, o: levelled(d, k.long(), o, level="token"), "keep_N: found torch.int64, expected bool"),
        (lambda d, k, o: levelled(d, k, o + 1, level="mean"), "offsets: found first 1"),
        (lambda d, k, o: weigh(d, k, o[:1], Weight(level="product")), "offsets: found first 0, last 0"),
        (lambda d, k, o: trusted(d, d[:2], d, Trust(0, 0)), r"behaviour_N: found shape \(2,\), expected \[3\]"),
        (lambda d, k, o: trusted(d, d, d[:2], Trust(0, 0)), r"advantages_N: found shape \(2,\), expected \[3\]"),
        (lambda d, k, o: on_policy_enough(d, k, o, d, bound=0.0), "bound: found 0.0, expected a number above 0"),
        (lambda d, k, o: on_policy_enough(d, k, o, d[:1], bound=1.0), r"advantages_N: found shape \(1,\)"),
        (lambda d, k, o: levelled(d, k, o, level="geometric"), "level: found 'geometric', expected one of token"),
    ],
)
def test_malformed_arguments(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3), torch.ones(3, dtype=torch.bool), torch.tensor([0, 1, 3]))
