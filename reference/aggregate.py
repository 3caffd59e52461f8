"""How losses of tokens become the loss of a batch, over lists of responses (rows)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reference.masks import Flags, Rows


def token_mean(losses: Rows, keep: Flags) -> float:
    """sum_{i,t} m l / sum_{i,t} m.

    >>> token_mean([[1.0, 1.0], [0.0] * 8], [[True] * 2, [True] * 8])
    0.2
    """
    total, count = 0.0, 0
    for row, flags in zip(losses, keep, strict=True):
        for x, k in zip(row, flags, strict=True):
            if k:
                total, count = total + x, count + 1
    return total / max(count, 1)


def row_sum(row: Sequence[float] | NDArray[np.float64], flags: Sequence[bool]) -> float:
    """sum_t m l of one response.

    >>> row_sum([1.0, 2.0, 4.0], [True, False, True])
    5.0
    """
    total = 0.0
    for x, k in zip(row, flags, strict=True):
        if k:
            total += float(x)
    return total


def seq_mean_token_mean(losses: Rows, keep: Flags) -> float:
    """(1/B) sum_i (1/n_i) sum_t m l, over the B responses with n_i > 0.

    >>> seq_mean_token_mean([[1.0, 1.0], [0.0] * 8], [[True] * 2, [True] * 8])
    0.5
    """
    total, responses = 0.0, 0
    for row, flags in zip(losses, keep, strict=True):
        if any(flags):
            total, responses = total + row_sum(row, flags) / sum(flags), responses + 1
    return total / max(responses, 1)


def seq_mean_token_sum(losses: Rows, keep: Flags) -> float:
    """(1/B) sum_i sum_t m l, over the B responses with n_i > 0.

    >>> seq_mean_token_sum([[1.0, 1.0], [0.0] * 8], [[True] * 2, [True] * 8])
    1.0
    """
    total, responses = 0.0, 0
    for row, flags in zip(losses, keep, strict=True):
        if any(flags):
            total, responses = total + row_sum(row, flags), responses + 1
    return total / max(responses, 1)


def constant_normaliser(losses: Rows, keep: Flags, *, length: float) -> float:
    """(1 / (B L)) sum_{i,t} m l with a fixed length L.

    >>> constant_normaliser([[1.0, 1.0], [0.0] * 8], [[True] * 2, [True] * 8], length=10)
    0.1
    """
    return seq_mean_token_sum(losses, keep) / length
