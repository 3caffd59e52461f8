"""Window mask, whitening, clamp and bias."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from tests.support.ragged_cases import Ragged, flat, ragged
from tppo.maths.advantages import egae
from tppo.maths.masks import shape_advantages, whiten, window_mask

few = settings(derandomize=True, deadline=None, max_examples=40)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


# lengths 4 (cut), 3 (finished), 0, 2 (cut)
@pytest.mark.parametrize(
    ("ignore_last", "expected"),
    [
        (0, [1, 1, 1, 1, 1, 1, 1, 1, 1]),  # a slice [-m:] would drop everything here
        (1, [1, 1, 1, 0, 1, 1, 1, 1, 0]),
        (2, [1, 1, 0, 0, 1, 1, 1, 0, 0]),
        (3, [1, 0, 0, 0, 1, 1, 1, 0, 0]),  # m beyond the length keeps none
        (4, [0, 0, 0, 0, 1, 1, 1, 0, 0]),
        (9, [0, 0, 0, 0, 1, 1, 1, 0, 0]),
    ],
)
def test_last_tokens_before_a_cut_are_dropped(device, ignore_last, expected) -> None:
    offsets, finished = torch.tensor([0, 4, 7, 7, 9]), torch.tensor([False, True, False, False])
    found = window_mask(offsets.to(device), finished.to(device), ignore_last=ignore_last)
    assert found.dtype == torch.bool
    assert found.int().tolist() == expected
    rows = [reference.window_mask(n, f, ignore_last=ignore_last) for n, f in zip([4, 3, 0, 2], finished, strict=True)]
    assert [int(k) for row in rows for k in row] == expected


@few
@given(ragged(), st.integers(0, 45))
def test_window_mask_agrees_with_the_rule(case: Ragged, m: int) -> None:
    found = window_mask(case.offsets, torch.tensor(case.finished), ignore_last=m)
    rows = [reference.window_mask(n, f, ignore_last=m) for n, f in zip(case.lengths, case.finished, strict=True)]
    assert found.tolist() == [k for row in rows for k in row]


def worked_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """A finished and a cut window with V = [.2, .4, .5, .7] each, the last token of the cut one dropped (m = 1)."""
    offsets, finished = torch.tensor([0, 4, 8]), torch.tensor([True, False])
    advantages = egae(
        flat([0, 0, 0, 1] + [0] * 4), flat([0.2, 0.4, 0.5, 0.7] * 2), offsets, finished, gamma=1.0, lam=0.95
    )
    return advantages, window_mask(offsets, finished, ignore_last=1)


# Seven kept entries .7327125, .56075, .485, .3, .4755, .29, .2: sum 3.0439625, mu = .4348518, var = .0338435,
# sd = .1839661; (.7327125 - .4348518) / .1839661 = 1.6191.
WHITE = [1.6191073, 0.6843559, 0.272595, -0.7330256, 0.220955, -0.7873834, -1.2766042, 0.0]


def test_whitening_of_a_finished_and_a_cut_window(device) -> None:
    advantages, keep = worked_batch()
    np.testing.assert_allclose(whiten(advantages.to(device), keep.to(device)).cpu(), WHITE, atol=6e-8)
    rows, flags = advantages.view(2, 4).numpy(), keep.view(2, 4).tolist()
    assert reference.moments(reference.kept(rows, flags)) == pytest.approx((0.4348518, 0.0338435), abs=6e-8)
    np.testing.assert_allclose(np.concatenate(reference.whiten(rows, flags)), WHITE, atol=6e-8)


def test_dropped_tokens_are_put_back_to_zero() -> None:
    advantages, keep = worked_batch()
    # Left alone, the dropped 0 would become -.4348518 / .1839661 = -2.3637616.
    assert whiten(advantages, keep)[7] == 0
    mean, variance = reference.moments(advantages[keep].tolist())
    assert -mean / (variance + 1e-8) ** 0.5 == pytest.approx(-2.3637616, abs=6e-8)
    # The bias is for kept tokens only.
    shaped = shape_advantages(advantages, keep, whiten=True, clamp=10.0, bias=0.25)
    np.testing.assert_allclose(shaped[:7], np.array(WHITE[:7]) + 0.25, atol=6e-8)
    assert shaped[7] == 0


@few
@given(ragged(), st.booleans(), st.sampled_from([None, 0.5, 10.0]), st.sampled_from([0.0, -0.3]))
def test_shaping_agrees_with_the_rule(device, case: Ragged, white, clamp, bias) -> None:
    rows, keep = case.rows(case.rewards), [k.tolist() for k in case.rows(case.keep)]
    expected = reference.shape_advantages(rows, keep, whiten_them=white, limit=clamp, bias=bias)
    x, mask = flat(case.rewards, device=device), torch.tensor(case.keep, device=device)
    found = shape_advantages(x, mask, whiten=white, clamp=clamp, bias=bias)
    np.testing.assert_allclose(found.cpu(), np.concatenate(expected), rtol=1e-12, atol=1e-12)
    assert not found[~mask].any()


@few
@given(ragged())
def test_whitened_tokens_have_mean_0_and_variance_1(case: Ragged) -> None:
    keep = torch.tensor(case.keep)
    white = whiten(flat(case.rewards), keep)[keep]
    if len(white) > 3:  # eps 1e-8 shifts the variance by about as much.
        assert abs(float(white.mean())) < 1e-12
        assert float(white.var()) == pytest.approx(1, abs=1e-5)
    once = whiten(flat(case.rewards), keep)
    torch.testing.assert_close(whiten(7 * flat(case.rewards) - 3, keep), once, rtol=1e-5, atol=1e-5)


def test_clamp_follows_whitening_and_bias_follows_clamp() -> None:
    # Whitened [.5774, .5774, -1.1547] -> clamped at 1: [.5774, .5774, -1] -> bias .1: last -.9.
    x, keep = torch.tensor([10.0, 10.0, 7.0]).double(), torch.ones(3, dtype=torch.bool)
    shaped = shape_advantages(x, keep, whiten=True, clamp=1.0, bias=0.1)
    assert shaped.tolist() == pytest.approx([3**-0.5 + 0.1, 3**-0.5 + 0.1, -0.9], abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("entries", "keep"),
    [
        ([], []),
        ([3.0, 5.0], [0, 0]),  # nothing kept
        ([3.0, 5.0], [0, 1]),  # one kept: no variance
        ([0.1, 0.1, 0.1, 9.0], [1, 1, 1, 0]),  # no variance, though the mean of three 0.1 is rounded
    ],
)
def test_whitening_without_variance_is_zero(device, entries, keep, dtype) -> None:
    x, mask = flat(entries, dtype, device), torch.tensor(keep, dtype=torch.bool, device=device)
    assert whiten(x, mask).tolist() == [0.0] * len(entries)
    rows = reference.whiten([entries], [[bool(k) for k in keep]])
    assert rows[0].tolist() == [0.0] * len(entries)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_dropped_entries_have_no_influence(device, poison) -> None:
    advantages, keep = worked_batch()
    advantages[7] = poison
    advantages, keep = advantages.to(device), keep.to(device)
    np.testing.assert_allclose(whiten(advantages, keep).cpu(), WHITE, atol=6e-8)
    for white in (True, False):
        assert shape_advantages(advantages, keep, whiten=white, clamp=10.0, bias=1.0)[7] == 0
    # A kept NaN must be seen.
    assert whiten(advantages, torch.ones_like(keep)).isnan().any()


def test_float32_whitening_to_1e_6() -> None:
    advantages, keep = worked_batch()
    np.testing.assert_allclose(whiten(advantages.float(), keep), WHITE, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, k: window_mask(torch.tensor([0, 3]), k[:1], ignore_last=-1), "ignore_last: found -1"),
        (lambda x, k: window_mask(torch.tensor([0, 3]), k, ignore_last=1), "finished_S: found shape"),
        (lambda x, k: whiten(x, k[:2]), "keep_N: found shape"),
        (lambda x, k: whiten(x, k.int()), "keep_N: found torch.int32, expected bool"),
        (lambda x, k: whiten(x.view(1, 3), k), "x_N: found shape"),
        (lambda x, k: shape_advantages(x, k, whiten=False, clamp=0.0, bias=0.0), "clamp: found 0.0"),
        (lambda x, k: shape_advantages(x, k[:1], whiten=False, clamp=1.0, bias=0.0), "keep_N: found shape"),
    ],
)
def test_malformed_arguments(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3), torch.ones(3, dtype=torch.bool))
