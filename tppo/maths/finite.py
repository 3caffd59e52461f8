"""NaN and infinities stop the run with the culprit's name; they are never skipped."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tppo.errors import NonFiniteError


def check_finite(name: str, x: torch.Tensor, *, uids: Sequence[int] = (), row_N: torch.Tensor | None = None) -> None:
    """Raises unless every entry of `x` is finite.

    A finite tensor costs one reduction and one transfer to the host. Which entries are at fault, and of which
    responses, is found out only after a failure.

    Args:
        name: what the error calls `x`.
        x: any shape, any real dtype.
        uids: response ids.
        row_N: int, index into `uids` of each entry of `x`; None where entries belong to no single response.

    Raises:
        NonFiniteError: on a NaN or an infinity.

    >>> check_finite("values", torch.tensor([0.5, torch.nan]), uids=[7, 8], row_N=torch.tensor([0, 1]))
    Traceback (most recent call last):
    ...
    tppo.errors.NonFiniteError: values has 1 non-finite value(s) in responses [8]; nothing was updated with it. \
Usual causes: a learning rate that is too high, a reward that is not finite, or a half-precision overflow
    """
    x = x.detach()
    # A NaN anywhere makes both extremes NaN.
    if not x.numel() or all(map(math.isfinite, torch.stack(torch.aminmax(x)).tolist())):
        return
    bad = ~torch.isfinite(x)
    rows = row_N[bad.cpu().reshape(-1)].unique().tolist() if row_N is not None else []
    raise NonFiniteError(name, [uids[row] for row in rows], int(bad.sum()))
