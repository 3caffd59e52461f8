"""NaN and infinities stop the run with the culprit's name; they are never skipped."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tppo.errors import NonFiniteError


def check_finite(
    name: str, x: torch.Tensor, *, uids: Sequence[int] = (), row_N: torch.Tensor | None = None
) -> None:
    """Raise NonFiniteError when ``x`` has a NaN or an infinity.

    uids: response ids. row_N: index into uids of each entry of ``x``.
    """
    bad = ~torch.isfinite(x.detach())
    if not bool(bad.any()):
        return
    rows = row_N[bad.cpu().reshape(-1)].unique().tolist() if row_N is not None else []
    raise NonFiniteError(name, [uids[row] for row in rows], int(bad.sum()))
