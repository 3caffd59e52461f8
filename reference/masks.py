"""Token filter and advantage shaping, written as on paper, over lists of responses (rows)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = Sequence[Sequence[float] | NDArray[np.float64]]
Flags = Sequence[Sequence[bool]]


def window_mask(length: int, finished: bool, *, ignore_last: int) -> list[bool]:
    """keep_t = finished or t < l - m.

    >>> window_mask(4, False, ignore_last=1)
    [True, True, True, False]
    """
    return [finished or t < length - ignore_last for t in range(length)]


def kept(rows: Rows, keep: Flags) -> list[float]:
    """The kept entries, one after another.

    >>> kept([[1.0, 2.0], [3.0]], [[True, False], [True]])
    [1.0, 3.0]
    """
    return [float(x) for row, flags in zip(rows, keep, strict=True) for x, k in zip(row, flags, strict=True) if k]


def moments(entries: Sequence[float]) -> tuple[float, float]:
    """mu = sum x / n and var = sum (x - mu)^2 / (n - 1); var = 0 for n <= 1 or equal entries.

    >>> moments([1.0, 2.0, 3.0])
    (2.0, 1.0)
    """
    n = len(entries)
    if n == 0:
        return 0.0, 0.0
    mean = math.fsum(entries) / n
    if n == 1 or min(entries) == max(entries):
        return mean, 0.0
    return mean, math.fsum((x - mean) ** 2 for x in entries) / (n - 1)


def whiten(rows: Rows, keep: Flags, *, eps: float = 1e-8) -> list[NDArray[np.float64]]:
    """(x - mu) / sqrt(var + eps) over the kept entries of all rows; 0 where dropped and where var = 0.

    >>> [row.round(3).tolist() for row in whiten([[1.0, 2.0], [3.0, 99.0]], [[True, True], [True, False]])]
    [[-1.0, 0.0], [1.0, 0.0]]
    """
    mean, variance = moments(kept(rows, keep))
    result = []
    for row, flags in zip(rows, keep, strict=True):
        out = np.zeros(len(row))
        for t in range(len(row)):
            if flags[t] and variance > 0:
                out[t] = (row[t] - mean) / math.sqrt(variance + eps)
        result.append(out)
    return result


def clamp(x: float, limit: float) -> float:
    """min(max(x, -c), c).

    >>> clamp(12.0, 10.0)
    10.0
    """
    return min(max(x, -limit), limit)


def shape_advantages(
    rows: Rows, keep: Flags, *, whiten_them: bool, limit: float | None, bias: float
) -> list[NDArray[np.float64]]:
    """Mask, whiten, clamp, add the bias, in this order, on kept tokens only.

    >>> shape_advantages([[12.0, 3.0]], [[True, False]], whiten_them=False, limit=10.0, bias=0.5)[0].tolist()
    [10.5, 0.0]
    """
    shaped = whiten(rows, keep) if whiten_them else rows
    result = []
    for row, flags in zip(shaped, keep, strict=True):
        out = np.zeros(len(row))
        for t in range(len(row)):
            if flags[t]:
                x = float(row[t])
                out[t] = (x if limit is None else clamp(x, limit)) + bias
        result.append(out)
    return result
