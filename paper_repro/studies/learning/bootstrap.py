"""Interquartile means over runs with percentile bootstrap intervals (Agarwal et al. 2021, arXiv 2108.13264).

Whole runs are drawn with replacement. A study has one task, hence one stratum.

Shape suffixes: _R runs (seeds), _X points of a curve, _B resamples.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paper_repro.studies.intervals import Interval

Floats = NDArray[np.float64]
RESAMPLES = 2000


def iqm(scores: ArrayLike, axis: int = 0) -> Floats:
    """Interquartile mean: the mean without the lowest and the highest quarter, each of floor(n / 4) scores.

    >>> float(iqm([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 99.0]))
    3.5
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=axis)
    n = ordered.shape[axis]
    return np.asarray(np.take(ordered, range(n // 4, n - n // 4), axis=axis).mean(axis=axis))


class Band(NamedTuple):
    """IQM over runs at each point of a grid and its 95% interval, [X] each."""

    mid_X: Floats
    low_X: Floats
    high_X: Floats


def band(scores_RX: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Band:
    """IQM over the first axis and its percentile bootstrap interval; whole runs are drawn."""
    scores_RX = np.asarray(scores_RX, dtype=np.float64)
    draws_BX = _resampled(scores_RX, np.random.default_rng([seed, 0]), resamples)
    return Band(iqm(scores_RX), *np.quantile(draws_BX, [0.025, 0.975], axis=0))


def interval(scores_R: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """`band` of one number a run."""
    return Interval(*(float(x) for x in band(scores_R, seed=seed, resamples=resamples)))


def interval_limit(seeds: int) -> str:
    """What to remember of intervals from few runs. A test measures the coverage."""
    return (
        f"Intervals are percentile bootstraps of {seeds} seeds. If runs were normal, such intervals would hold the "
        "truth in 90 of 100 cases with 6 seeds and in 93 with 10, not in 95; they are not corrected for the number of "
        "comparisons."
    )


def compare(a_R: ArrayLike, b_R: ArrayLike, how: Literal["minus", "over"], *, seed: int = 0) -> Interval:
    """IQM(a) - IQM(b), or their ratio, for two sets of independent runs; each set is drawn by itself."""
    combine = np.subtract if how == "minus" else np.divide
    a, b = np.asarray(a_R, dtype=np.float64), np.asarray(b_R, dtype=np.float64)
    draws = [_resampled(x, np.random.default_rng([seed, 1 + k]), RESAMPLES) for k, x in enumerate((a, b))]
    low, high = np.quantile(combine(*draws), [0.025, 0.975])
    return Interval(float(combine(iqm(a), iqm(b))), float(low), float(high))


def _resampled(scores_R: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    """IQM of every resample [B, ...]."""
    count = len(scores_R)
    return iqm(scores_R[rng.integers(0, count, (resamples, count))], axis=1)
