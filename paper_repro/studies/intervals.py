"""Numbers with a range, and how findings write them: means with confidence intervals, medians with extremes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tppo.evaluation.scores import student_quantile


class Interval(NamedTuple):
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float

    def text(self, form: str = ".3f") -> str:
        """Mean and interval as findings write them.

        >>> Interval(0.5, 0.4, 0.6).text(".1f")
        '0.5 (0.4 to 0.6)'
        """
        return f"{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})"


class Spread(NamedTuple):
    """Median and extremes of one number a table. This is a range over cases, not a confidence interval."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of some numbers.

        >>> Spread.of([1.0, 2.0, 4.0])
        Spread(median=2.0, lowest=1.0, highest=4.0)
        """
        array = np.asarray(list(values), dtype=np.float64)
        return cls(float(np.median(array)), float(array.min()), float(array.max()))

    def text(self, form: str = ".2f") -> str:
        """Median and extremes as findings write them.

        >>> Spread(2.0, 1.0, 4.0).text()
        '2.00 (1.00 to 4.00)'
        """
        return f"{self.median:{form}} ({self.lowest:{form}} to {self.highest:{form}})"


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's interval of the mean of independent and roughly normal values, such as one a seed.

    Exactly equal values give an interval of no width. Raises ValueError for fewer than two values.

    >>> mean_interval([1.0, 2.0, 3.0]).text(".2f")
    '2.00 (-0.48 to 4.48)'
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"values: found shape {array.shape}; expected at least two numbers; run more seeds.")
    mean = float(array.mean())
    half = student_quantile(len(array) - 1, 0.5 + level / 2) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return Interval(mean, mean - half, mean + half)
