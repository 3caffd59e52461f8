"""The sums and counts that make one batch loss of token losses.

Shapes: `_N` one entry per token, all responses end to end; `_S` one entry per response; `offsets` int64 [S+1] as in
`tppo.maths.ragged`. A mask `keep_N` is boolean, True for tokens that train.

A batch loss is  sum of `aggregate_sum` / max(sum of `aggregate_count`, 1),  both sums over all micro-batches and
ranks. The caller divides once, so how the responses were split changes neither loss nor gradient.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from tppo.maths.ragged import check_flags, check_like, offsets_of, segments

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"]
AGGREGATIONS: tuple[str, ...] = get_args(Aggregation)


def _kept_S(keep_N: Tensor, offsets: Tensor) -> Tensor:
    """n_i, the kept tokens of each response."""
    return offsets_of(keep_N)[offsets].diff()


def _check_mode(mode: str) -> None:
    if mode not in AGGREGATIONS:
        raise ValueError(f"mode: found {mode!r}, expected one of {', '.join(AGGREGATIONS)}")


def aggregate_sum(loss_N: Tensor, keep_N: Tensor, offsets: Tensor, *, mode: Aggregation) -> Tensor:
    """The numerator of the batch loss; see `aggregate_count` for the whole.

    A dropped token adds exactly 0 to the sum and to the gradient, whatever its entry is.

    Raises:
        ValueError: on a wrong rank, a shape mismatch, malformed offsets or an unknown mode.

    >>> loss, keep = torch.tensor([1.0, 3.0, 10.0]), torch.tensor([True, True, True])
    >>> aggregate_sum(loss, keep, torch.tensor([0, 2, 3]), mode="seq-mean-token-mean")
    tensor(12.)
    """
    _check_mode(mode)
    check_like("loss_N", loss_N, loss_N.numel(), what="token")
    check_flags("keep_N", keep_N, loss_N, what="token")
    layout = segments(offsets, loss_N)
    if mode == "seq-mean-token-mean":
        loss_N = loss_N / layout.spread(_kept_S(keep_N, offsets).clamp(min=1))
    return torch.where(keep_N, loss_N, 0.0).sum()


def aggregate_count(
    keep_N: Tensor, offsets: Tensor, *, mode: Aggregation, constant_length: float | None = None
) -> Tensor:
    """The denominator of the batch loss, additive over micro-batches. loss = sum / max(count, 1).

    With n_i kept tokens in response i, and B the number of responses with n_i > 0:

        mode                   aggregate_sum                       count
        token-mean             sum over kept tokens                sum_i n_i
        seq-mean-token-mean    sum_i (1/n_i) sum over its tokens   B
        seq-mean-token-sum     sum over kept tokens                B
        constant               sum over kept tokens                B constant_length

    A response without a kept token is in neither. Count 0 goes with sum 0, so the loss is 0 and its gradient zero.
    T-PPO (arXiv 2506.15050) averages its loss over the batch; over tokens or over responses is unconfirmed.

    Returns:
        A float64 scalar: float32 cannot count beyond 2^24 tokens.

    Raises:
        ValueError: on a shape mismatch, malformed offsets, an unknown mode, or "constant" without a positive length.

    >>> keep = torch.tensor([True, True, False])
    >>> aggregate_count(keep, torch.tensor([0, 2, 3]), mode="seq-mean-token-mean")
    tensor(1., dtype=torch.float64)
    """
    _check_mode(mode)
    check_flags("keep_N", keep_N, keep_N.numel(), what="token")
    if mode == "constant" and not (constant_length is not None and constant_length > 0):
        raise ValueError(
            f'constant_length: found {constant_length}, expected a length above 0; mode="constant" reads it'
        )
    segments(offsets, keep_N)  # Checks them.
    if mode == "token-mean":
        return keep_N.sum().double()
    responses = (_kept_S(keep_N, offsets) > 0).sum().double()
    return responses * constant_length if mode == "constant" and constant_length else responses
