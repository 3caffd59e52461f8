"""Two runs over the same problems: the difference of their mean rates, and how sure it is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tppo.errors import DataError
from tppo.evaluation.scores import Z, rate_variance, smoothed, student_quantile

EXACT = 12
"""Up to so many problems that differ, all sign patterns are tried instead of random ones."""


@dataclass(frozen=True)
class Paired:
    """Run A minus run B over the problems both were asked."""

    problems: tuple[str, ...]
    """Their ids."""
    mean_a: float
    mean_b: float
    difference: float
    """mean_a - mean_b."""
    rates_a: tuple[float, ...]
    """Of each problem, in the order of ``problems``."""
    rates_b: tuple[float, ...]
    """Likewise."""
    differences: tuple[float, ...]
    """Likewise."""
    se_sampling: float
    """Standard error for these problems and new samples. It takes the samples of the two runs as independent, which
    errs on the wide side when they share random numbers."""
    se_total: float
    """Standard error for new problems and new samples, from the differences: s(d) / sqrt(P)."""
    interval_sampling: tuple[float, float]
    """95%, for these problems and new samples."""
    interval_total: tuple[float, float]
    """95%, for new problems and new samples."""
    p_value: float
    """Two-sided, of the hypothesis that swapping the runs on any problem changes nothing."""
    patterns: int
    """Sign patterns that were tried."""
    exact: bool
    """Whether these are all there are."""


def compare(
    run_a: Mapping[str, Sequence[bool]], run_b: Mapping[str, Sequence[bool]], *, seed: int = 0, patterns: int = 20_000
) -> Paired:
    """Compare two runs: problem id to whether each sample is right. The runs may have different numbers of samples.

    95% intervals: total is Agresti and Min's (2005) for matched pairs, with Student's quantile: it adds two problems at
    which both runs have rate 1/2 (for single samples that is half a pair of each kind), so no two runs are ever known
    to be equal. Sampling is normal, with the smoothed variance of ``tppo.evaluation.scores``. Raises DataError when the
    problems are not the same.
    """
    if set(run_a) != set(run_b) or not run_a:
        only = [sorted(set(x) - set(y)) for x, y in ((run_a, run_b), (run_b, run_a))]
        shown = [f"{len(ids)} only in run {name}: {', '.join(ids[:5])}" for name, ids in zip("AB", only, strict=True)]
        raise DataError(f"the runs have different problems ({'; '.join(shown)}): expected the same in both")
    problems = tuple(run_a)
    tables = [_table(run, problems, name) for run, name in ((run_a, "A"), (run_b, "B"))]
    rates = [table.mean(axis=1) for table in tables]
    d_P = rates[0] - rates[1]
    count, difference = len(d_P), float(d_P.mean())
    variances = [rate_variance(table) for table in tables]
    sampling = math.sqrt(sum(float(v.sum()) for v in variances)) / count
    cautious = math.sqrt(sum(smoothed(v, t.shape[1]) for v, t in zip(variances, tables, strict=True)))
    total, interval_total = math.nan, (math.nan, math.nan)
    if count > 1:
        total = float(d_P.std(ddof=1)) / math.sqrt(count)
        centre = float(d_P.sum()) / (count + 2)
        added = sum(2 * 0.25 / table.shape[1] for table in tables)
        spread = (float((d_P**2).sum()) + added) / (count + 2) - centre**2
        half = student_quantile(count - 1) * math.sqrt(spread / (count + 2))
        interval_total = _inside(centre - half, centre + half)
    p_value, tried, exact = _sign_flips(d_P, seed, patterns)
    return Paired(
        problems=problems,
        mean_a=float(rates[0].mean()),
        mean_b=float(rates[1].mean()),
        difference=difference,
        rates_a=tuple(rates[0].tolist()),
        rates_b=tuple(rates[1].tolist()),
        differences=tuple(d_P.tolist()),
        se_sampling=sampling,
        se_total=total,
        interval_sampling=_inside(difference - Z * cautious, difference + Z * cautious),
        interval_total=interval_total,
        p_value=p_value,
        patterns=tried,
        exact=exact,
    )


def _table(run: Mapping[str, Sequence[bool]], problems: Sequence[str], name: str) -> np.ndarray:
    counts = {len(run[problem]) for problem in problems}
    if len(counts) != 1 or 0 in counts:
        raise DataError(f"run {name} has {sorted(counts)} samples: expected equally many for each problem")
    return np.array([run[problem] for problem in problems], dtype=bool)


def _inside(low: float, high: float) -> tuple[float, float]:
    return (low, high) if math.isnan(low) else (max(-1.0, low), min(1.0, high))


def _sign_flips(d_P: np.ndarray, seed: int, patterns: int) -> tuple[float, int, bool]:
    """(p-value, patterns tried, whether these are all)."""
    d_P = d_P[d_P != 0]  # a sign before zero changes nothing
    bound = abs(float(d_P.sum())) * (1 - 1e-12)  # equal sums in another order count as equal
    if len(d_P) <= EXACT:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(d_P))))
        return float((abs(signs @ d_P) >= bound).mean()), len(signs), True
    rng = np.random.default_rng(seed)
    hits = 0
    for first in range(0, patterns, 1000):
        rows = min(1000, patterns - first)
        signs = rng.integers(0, 2, (rows, len(d_P))) * 2.0 - 1
        hits += int((abs(signs @ d_P) >= bound).sum())
    return (hits + 1) / (patterns + 1), patterns, False
