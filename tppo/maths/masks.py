"""Which tokens train the policy, and how their advantages are shaped.

Shapes: `_N` one entry per token, all responses end to end; `_S` one entry per response; `offsets` int64 [S+1] as in
`tppo.maths.ragged`. A mask `keep_N` is boolean, True for tokens that train.

The abstract of T-PPO (arXiv 2506.15050) says that prompt and truncated tokens are filtered. The rules below, and the
order mask, whiten, clamp, bias, are those of the authors' port; the paper's own are unconfirmed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tppo.maths.ragged import check_flags, check_like, segments


def window_mask(offsets: Tensor, finished_S: Tensor, *, ignore_last: int) -> Tensor:
    """Keeps tokens 0 <= t < l - m of an unfinished window of l tokens, and every token of a finished one.

    m = `ignore_last`. The advantage of the last m tokens before a cut rests on few temporal differences. The recursion
    of `egae` still runs through them; only their own gradient is dropped. m = 0 keeps all, m >= l keeps none. m = 8 in
    the authors' port; the paper's value is unconfirmed.

    Args:
        offsets: int64 [S+1], of the current windows.
        finished_S: bool.
        ignore_last: m >= 0.

    Raises:
        ValueError: on a wrong shape, a negative m or malformed offsets.

    >>> window_mask(torch.tensor([0, 3, 5]), torch.tensor([False, True]), ignore_last=1)
    tensor([ True,  True, False,  True,  True])
    """
    check_flags("finished_S", finished_S, max(offsets.numel() - 1, 0), what="response")
    if ignore_last < 0:
        raise ValueError(f"ignore_last: found {ignore_last}, expected a number of tokens, 0 or more")
    layout = segments(offsets)
    return layout.spread(finished_S) | (layout.left_N > ignore_last)


def _whitened(x_N: Tensor, keep_N: Tensor, eps: float) -> Tensor:
    """`whiten` without the checks."""
    if x_N.shape[0] == 0:
        return x_N
    count = keep_N.sum()
    mean = torch.where(keep_N, x_N, 0.0).sum() / count.clamp(min=1)
    centred_N = torch.where(keep_N, x_N - mean, 0.0)
    variance = centred_N.square().sum() / (count - 1).clamp(min=1)
    # Compared directly: rounding of the mean leaves the variance of a constant slightly above 0.
    highest = torch.where(keep_N, x_N, -torch.inf).max()
    lowest = torch.where(keep_N, x_N, torch.inf).min()
    return torch.where(highest <= lowest, 0.0, centred_N * (variance + eps).rsqrt())


def whiten(x_N: Tensor, keep_N: Tensor, *, eps: float = 1e-8) -> Tensor:
    """(x - mu) / sqrt(var + eps) over the kept entries, exactly 0 elsewhere.

        mu = sum_kept x / n,   var = sum_kept (x - mu)^2 / (n - 1)

    mu and var are taken over all kept tokens of the batch, finished and unfinished together. With n <= 1, or when all
    kept entries are equal, the result is 0. Entries outside the mask, NaN included, have no influence.

    Args:
        x_N: any floating dtype.
        keep_N: bool.
        eps: added to the variance.

    Raises:
        ValueError: on a wrong rank or a shape mismatch.

    >>> whiten(torch.tensor([1.0, 2.0, 3.0, 9.0]), torch.tensor([True, True, True, False]))
    tensor([-1.,  0.,  1.,  0.])
    """
    check_like("x_N", x_N, x_N.numel(), what="token")
    check_flags("keep_N", keep_N, x_N, what="token")
    return _whitened(x_N, keep_N, eps)


def shape_advantages(advantages_N: Tensor, keep_N: Tensor, *, whiten: bool, clamp: float | None, bias: float) -> Tensor:
    """Mask, whiten, clamp, bias, in this order; dropped tokens are exactly 0 at the end.

        A <- whiten(A)  if `whiten`;    A <- min(max(A, -c), c)  unless `clamp` is None;    A <- A + bias

    all on kept tokens only. A bias on dropped tokens would give them a gradient.

    Args:
        advantages_N: any floating dtype.
        keep_N: bool.
        whiten: whether to standardise over the kept tokens.
        clamp: c > 0, or None for none.
        bias: added last.

    Raises:
        ValueError: on a wrong rank, a shape mismatch or clamp <= 0.

    >>> keep = torch.tensor([True, True, False])
    >>> shape_advantages(torch.tensor([5.0, -0.5, 7.0]), keep, whiten=False, clamp=2.0, bias=0.25)
    tensor([ 2.2500, -0.2500,  0.0000])
    """
    check_like("advantages_N", advantages_N, advantages_N.numel(), what="token")
    check_flags("keep_N", keep_N, advantages_N, what="token")
    if clamp is not None and not clamp > 0:
        raise ValueError(f"clamp: found {clamp}, expected a number above 0, or None for none")
    shaped_N = _whitened(advantages_N, keep_N, 1e-8) if whiten else advantages_N
    if clamp is not None:
        shaped_N = shaped_N.clamp(-clamp, clamp)
    return torch.where(keep_N, shaped_N + bias, 0.0)
