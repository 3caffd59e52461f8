"""The layout of ragged batches, and the checks that all equations share.

Shapes: `_N` one entry per token, all responses end to end; `_S` one entry per response. `offsets` is an int64 tensor
[S+1]: response i holds the tokens offsets[i] <= t < offsets[i+1]. A response may be empty.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Segments(NamedTuple):
    """Where the responses of a ragged batch lie, checked once."""

    lengths_S: Tensor  # int64, tokens of each response
    left_N: Tensor  # int, tokens from this one to the end of its response, itself included
    longest: int

    def spread(self, per_response_S: Tensor) -> Tensor:
        """Repeats one entry per response for each of its tokens: [S] -> [N]."""
        return torch.repeat_interleave(per_response_S, self.lengths_S, output_size=self.left_N.shape[0])


def offsets_of(lengths_S: Tensor) -> Tensor:
    """Where each response begins and ends when they lie end to end: int64 [S+1], 0 and the running sums.

    Lengths are integers, or flags that count as 0 and 1.

    >>> offsets_of(torch.tensor([2, 0, 3])).tolist()
    [0, 2, 2, 5]
    """
    offsets = torch.zeros(lengths_S.shape[0] + 1, dtype=torch.int64, device=lengths_S.device)
    torch.cumsum(lengths_S, 0, dtype=torch.int64, out=offsets[1:])
    return offsets


def segments(offsets: Tensor, like_N: Tensor | None = None, *, lam_S: Tensor | None = None) -> Segments:
    """Checks `offsets`, against the length and device of `like_N` where given, and lays the responses out.

    `lam_S` rides along so that a single transfer to the host checks both.

    >>> segments(torch.tensor([0, 2, 2, 5])).left_N.tolist()
    [2, 1, 3, 2, 1]
    """
    if offsets.ndim != 1 or offsets.shape[0] == 0 or offsets.dtype != torch.int64:
        raise ValueError(
            f"offsets: found shape {tuple(offsets.shape)} and {offsets.dtype}, expected int64 [S+1] that starts with 0"
        )
    if like_N is not None and like_N.device != offsets.device:
        raise ValueError(f"offsets: found on {offsets.device}, expected on {like_N.device} like the tokens")
    lengths_S = offsets.diff()
    facts = torch.stack((offsets[0], offsets[-1], *torch.aminmax(torch.cat((lengths_S, lengths_S.new_zeros(1))))))
    if lam_S is not None and lam_S.numel():
        facts = torch.cat((facts.double(), torch.stack(torch.aminmax(lam_S)).double()))
    first, last, shortest, longest, *lam_range = facts.tolist()
    if first != 0 or shortest < 0 or (like_N is not None and last != like_N.shape[0]):
        end = "the number of tokens" if like_N is None else f"{like_N.shape[0]} tokens"
        raise ValueError(
            f"offsets: found first {first:.0f}, last {last:.0f}, smallest step {shortest:.0f}; "
            f"expected 0 first, {end} last, never decreasing"
        )
    if lam_range and not (lam_range[0] >= 0 and lam_range[1] <= 1):
        raise ValueError(f"lam: found entries from {lam_range[0]} to {lam_range[1]}, expected all within [0, 1]")
    count = int(last)
    index = torch.int32 if count < 2**31 else torch.int64  # Half the memory traffic of the recursion's comparisons.
    ends_N = torch.repeat_interleave(offsets[1:].to(index), lengths_S, output_size=count)
    return Segments(lengths_S, ends_N.sub_(torch.arange(count, dtype=index, device=offsets.device)), int(longest))


def decayed_suffix_sums(x_N: Tensor, decay: float | Tensor, layout: Segments) -> Tensor:
    """S_t = x_t + c_i S_{t+1} inside each response i, with S = 0 past its end. Overwrites and returns `x_N`.

    c_i is constant along a response, so sums over spans of 2^k tokens double:
    S_t over 2^(k+1) tokens = S_t over 2^k tokens + c_i^(2^k) S_{t+2^k} over 2^k tokens.
    ceil(log2(longest)) passes over N entries replace one step per token.
    """
    span = 1
    while span < layout.longest:
        # A copy, selected and not multiplied: a NaN of the next response stays there.
        ahead_N = torch.where(layout.left_N[:-span] > span, x_N[span:], 0.0)
        if isinstance(decay, Tensor):
            # From float64 each time; squaring float32 weights would double their rounding error every pass.
            x_N[:-span].addcmul_(ahead_N, layout.spread((decay**span).to(x_N.dtype))[:-span])
        else:
            x_N[:-span].add_(ahead_N, alpha=decay**span)
        span *= 2
    return x_N


def check_like(name: str, found: Tensor, expected: Tensor | int, *, what: str) -> None:
    """Raises unless `found` is flat and has the length (and the device) of `expected`, which is called `what`."""
    length = expected if isinstance(expected, int) else expected.shape[0]
    if found.ndim != 1 or found.shape[0] != length:
        raise ValueError(f"{name}: found shape {tuple(found.shape)}, expected [{length}], one entry per {what}")
    if isinstance(expected, Tensor) and found.device != expected.device:
        raise ValueError(f"{name}: found on {found.device}, expected on {expected.device} like the entry per {what}")


def check_flat_float(name: str, found: Tensor) -> None:
    """Raises unless `found` is a flat float32 or float64 tensor."""
    if found.ndim != 1:
        raise ValueError(f"{name}: found rank {found.ndim}, shape {tuple(found.shape)}, expected a flat tensor [N]")
    if found.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name}: found {found.dtype}, expected float32 or float64; cast it first")


def check_flags(name: str, found: Tensor, expected: Tensor | int, *, what: str) -> None:
    """Raises unless `found` is a boolean tensor with one entry per `what`."""
    check_like(name, found, expected, what=what)
    if found.dtype != torch.bool:
        # An integer flag invites `~flag`, which is -1 or -2 and not a condition.
        raise ValueError(f"{name}: found {found.dtype}, expected bool")


def check_unit(name: str, found: float) -> None:
    """Raises unless 0 <= found <= 1."""
    if not 0 <= found <= 1:
        raise ValueError(f"{name}: found {found}, expected a number within [0, 1]")


def check_width(name: str, found: float | None) -> None:
    """Raises unless `found`, how far a clip range reaches to one side, is 0 or more, or None for an open side."""
    if found is not None and not found >= 0:
        raise ValueError(f"{name}: found {found}, expected the width of the range on its side, 0 or more")
