"""Sums and counts that make a batch loss: values, split invariance, masks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from tests.support.ragged_cases import Ragged, flat, make, ragged
from tppo.maths.aggregate import AGGREGATIONS, aggregate_count, aggregate_sum
from tppo.maths.objectives import ppo_loss
from tppo.maths.values import value_loss

few = settings(derandomize=True, deadline=None, max_examples=40)
MODES = st.sampled_from(AGGREGATIONS)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def batch_loss(
    loss: torch.Tensor, keep: torch.Tensor, offsets: torch.Tensor, mode: str, length: float = 10
) -> torch.Tensor:
    count = aggregate_count(keep, offsets, mode=mode, constant_length=length)
    return aggregate_sum(loss, keep, offsets, mode=mode) / count.clamp(min=1)


def on_paper(rows: list, keep: list, mode: str, length: float = 10) -> float:
    if mode == "constant":
        return reference.constant_normaliser(rows, keep, length=length)
    functions = [reference.token_mean, reference.seq_mean_token_mean, reference.seq_mean_token_sum]
    return functions[AGGREGATIONS.index(mode)](rows, keep)


# Lengths 2 and 8, loss 1 on the first: 2/10; (1 + 0)/2; (2 + 0)/2; 2/(2 * 10).
@pytest.mark.parametrize(("mode", "expected"), list(zip(AGGREGATIONS, [0.2, 0.5, 1.0, 0.1], strict=True)))
def test_worked_aggregation(device, mode, expected) -> None:
    loss, keep = flat([1.0] * 2 + [0.0] * 8, device=device), torch.ones(10, dtype=torch.bool, device=device)
    assert batch_loss(loss, keep, torch.tensor([0, 2, 10], device=device), mode).item() == pytest.approx(expected)
    rows = [[1.0] * 2, [0.0] * 8]
    assert on_paper(rows, [[True] * 2, [True] * 8], mode) == pytest.approx(expected)


@few
@given(ragged(), MODES)
def test_agrees_with_the_formula(device, case: Ragged, mode) -> None:
    found = batch_loss(
        flat(case.rewards, device=device), torch.tensor(case.keep, device=device), case.offsets.to(device), mode
    )
    rows, keep = case.rows(case.rewards), [k.tolist() for k in case.rows(case.keep)]
    assert found.item() == pytest.approx(on_paper(rows, keep, mode), rel=1e-12, abs=1e-12)


@few
@given(ragged(), MODES, st.randoms(use_true_random=False))
def test_any_split_and_order_gives_the_same_loss_and_gradient(case: Ragged, mode, random) -> None:
    x, keep, advantages = flat(case.rewards), torch.tensor(case.keep), flat(case.values)

    def losses(y: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return ppo_loss(y, torch.zeros_like(y), a, clip_low=0.2, clip_high=0.28, dual_clip=3.0).loss_N

    whole = x.clone().requires_grad_()
    expected = batch_loss(losses(whole, advantages), keep, case.offsets, mode)
    expected.backward()

    # Shuffle the responses and deal them to micro-batches, some of which may be empty or fully masked.
    parts = x.clone().requires_grad_()
    order = list(range(len(case.lengths)))
    random.shuffle(order)
    micro: list[list[int]] = [[] for _ in range(3)]
    for i in order:
        micro[random.randrange(3)].append(i)
    sums, counts = [], []
    for responses in micro:
        index = torch.tensor(
            [t for i in responses for t in range(int(case.offsets[i]), int(case.offsets[i + 1]))], dtype=torch.int64
        )
        offsets = torch.tensor([0, *np.cumsum([case.lengths[i] for i in responses])], dtype=torch.int64)
        sums.append(aggregate_sum(losses(parts[index], advantages[index]), keep[index], offsets, mode=mode))
        counts.append(aggregate_count(keep[index], offsets, mode=mode, constant_length=10))
    found = torch.stack(sums).sum() / torch.stack(counts).sum().clamp(min=1)
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-12, atol=1e-12)


@few
@given(ragged(), MODES, st.integers(1, 5), st.sampled_from([torch.nan, torch.inf, 1e30]))
def test_masked_padding_changes_nothing(case: Ragged, mode, width, poison) -> None:
    loss, keep = flat(case.rewards), torch.tensor(case.keep)
    expected = batch_loss(loss, keep, case.offsets, mode)
    # Every response padded by `width` masked tokens, and one masked response more.
    rows = [torch.cat((row, torch.full((width,), poison).double())) for row in loss.split(case.lengths)]
    flags = [torch.cat((row, torch.zeros(width, dtype=torch.bool))) for row in keep.split(case.lengths)]
    rows.append(torch.full((3,), poison).double())
    flags.append(torch.zeros(3, dtype=torch.bool))
    offsets = torch.tensor([0, *np.cumsum([len(r) for r in rows])])
    padded = torch.cat(rows).requires_grad_()
    found = batch_loss(padded, torch.cat(flags), offsets, mode)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (g,) = torch.autograd.grad(found, padded)
    assert not g[~torch.cat(flags)].any()


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("which", ["advantage", "old", "return"])
def test_nan_of_a_filtered_token_reaches_no_gradient(device, mode, which) -> None:
    case = make([3, 4], seed=0)
    x = flat(case.rewards, device=device).requires_grad_()
    other, third = torch.zeros_like(x), torch.ones_like(x)
    (other if which == "old" else third).detach()[2] = torch.nan
    keep = torch.ones(7, dtype=torch.bool, device=device)
    keep[2] = False
    if which == "return":
        loss = value_loss(x, other, third, clip_low=0.5, clip_high=0.6).loss_N
    else:
        loss = ppo_loss(x, other, third, clip_low=0.2, clip_high=0.28).loss_N
    total = batch_loss(loss, keep, case.offsets.to(device), mode)
    (g,) = torch.autograd.grad(total, x)
    assert total.isfinite()
    assert g.isfinite().all()
    assert g[2] == 0


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0], [2, 0, 1]])
def test_nothing_kept_gives_loss_0_and_zero_gradient(device, mode, lengths) -> None:
    n = sum(lengths)
    loss = torch.full((n,), torch.nan, device=device, requires_grad=True)
    keep = torch.zeros(n, dtype=torch.bool, device=device)
    offsets = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64, device=device)
    assert aggregate_count(keep, offsets, mode=mode, constant_length=10).item() == 0
    total = batch_loss(loss, keep, offsets, mode)
    total.backward()
    assert total.item() == 0
    assert not loss.grad.any()


@pytest.mark.parametrize("mode", ["seq-mean-token-mean", "seq-mean-token-sum", "constant"])
def test_masked_and_empty_responses_leave_the_count(mode) -> None:
    keep = torch.tensor([True, False, False, False, True])
    count = aggregate_count(keep, torch.tensor([0, 2, 2, 4, 5]), mode=mode, constant_length=7)
    assert count.shape == ()
    assert count.item() == (14 if mode == "constant" else 2)


def test_counts_beyond_float32() -> None:
    # 2^24 + 1 tokens: float32 would lose the last one.
    keep = torch.ones(2**24 + 1, dtype=torch.bool)
    assert aggregate_count(keep, torch.tensor([0, 2**24 + 1]), mode="token-mean").item() == 2**24 + 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, k, o: aggregate_sum(x, k, o, mode="mean"), "mode: found 'mean', expected one of token-mean"),
        (lambda x, k, o: aggregate_count(k, o, mode="batch"), "mode: found 'batch'"),
        (lambda x, k, o: aggregate_count(k, o, mode="constant"), "constant_length: found None"),
        (lambda x, k, o: aggregate_count(k, o, mode="constant", constant_length=0), "constant_length: found 0"),
        (lambda x, k, o: aggregate_sum(x.view(1, 3), k, o, mode="constant"), "loss_N: found shape"),
        (lambda x, k, o: aggregate_sum(x, k[:2], o, mode="constant"), "keep_N: found shape"),
        (lambda x, k, o: aggregate_sum(x, k.float(), o, mode="constant"), "keep_N: found torch.float32"),
        (lambda x, k, o: aggregate_sum(x, k, o[:1], mode="token-mean"), "offsets: .*expected 0 first, 3 tokens last"),
        (lambda x, k, o: aggregate_count(k, o.flip(0), mode="token-mean"), "offsets: found first 3"),
    ],
)
def test_malformed_arguments(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3), torch.ones(3, dtype=torch.bool), torch.tensor([0, 1, 3]))
