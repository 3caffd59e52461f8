"""Distributions of response lengths: a probability for every length of 1, 2, ... tokens up to the cap.

A finite table serves the simulation and the exact expectations alike.

Shape suffixes: _L lengths, so that index 0 is one token; _N responses of a sample.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import erf, log, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

Z99 = 2.3263478740408408  # normal quantile of 0.99


@dataclass(frozen=True, eq=False)
class Lengths:
    """A distribution of response lengths.

    >>> Lengths.constant(3).prob_L.tolist()
    [0.0, 0.0, 1.0]
    """

    name: str  # says what the distribution is, in reports
    prob_L: Floats  # [L] probability of each length; sums to one

    def __post_init__(self) -> None:
        p = np.asarray(self.prob_L, dtype=np.float64)
        if p.ndim != 1 or not len(p) or (p < 0).any() or not np.isclose(p.sum(), 1.0, atol=1e-9):
            raise ValueError(f"Lengths.prob_L: found sum {p.sum()}; expected probabilities that sum to 1.")
        object.__setattr__(self, "prob_L", np.trim_zeros(p, "b"))

    @staticmethod
    def constant(tokens: int) -> "Lengths":
        """The distribution in which every response has this length [token]."""
        return Lengths.sample([tokens], name=f"constant {tokens}")

    @staticmethod
    def log_normal(median: float, sigma: float, cap: int) -> "Lengths":
        """A log-normal distribution, rounded up to whole tokens.

        Args:
            median: of the log-normal law [token].
            sigma: standard deviation of the logarithm.
            cap: longest response [token]. It ends a response (LENGTH), so all mass beyond it lies on it.
        """
        if not median > 0 or not sigma > 0 or cap < 1:
            raise ValueError(f"Lengths.log_normal: found {median}, {sigma}, {cap}; expected numbers above 0.")
        below_L = np.array([0.5 * (1 + erf((log(n) - log(median)) / (sigma * sqrt(2)))) for n in range(1, cap)])
        cdf_L = np.concatenate([[0.0], below_L, [1.0]])
        return Lengths(f"log-normal, median {median:g}, sigma {sigma:g}, cap {cap}", np.diff(cdf_L))

    @staticmethod
    def sample(lengths: Sequence[int] | Ints, *, weights: Sequence[float] | None = None, name: str = "") -> "Lengths":
        """The distribution of a sample [N] of lengths, each at least one token.

        Args:
            weights: [N] how often each length counts; once when left out.
        """
        l_N = np.asarray(lengths)
        if l_N.ndim != 1 or not len(l_N) or not np.issubdtype(l_N.dtype, np.integer) or l_N.min() < 1:
            raise ValueError("Lengths.sample: expected a list of whole numbers of tokens, each at least 1.")
        p = np.bincount(l_N - 1, weights=weights).astype(np.float64)
        return Lengths(name or f"sample of {len(l_N)}", p / p.sum())

    @staticmethod
    def from_metrics(path: str | Path) -> "Lengths":
        """The lengths of the responses that finished in a run, from its metrics.jsonl.

        A line holds median, 99th percentile and maximum of the responses that finished in its step: a log-normal
        through the first two, cut at the third, stands for them; lines are mixed by how many finished. The first
        lines of a run with windows hold short responses only (longer ones are still open) and the last ones leave
        long ones open: a long run matters. Raises ValueError for a file that cannot be read, with the line.
        """
        lines = _finished(Path(path))
        cap = max(int(line["length_max"]) for line in lines)
        mix_L = np.zeros(cap)
        for line in lines:
            median, longest = max(line["length_median"], 1.0), max(int(line["length_max"]), 1)
            sigma = max(log(max(line["length_p99"], median) / median) / Z99, 1e-6)
            part = Lengths.log_normal(median, sigma, longest).prob_L
            mix_L[: len(part)] += part * line["finished"]
        return Lengths(f"run {Path(path).parent.name}", mix_L / mix_L.sum())

    @property
    def cap(self) -> int:
        """The longest possible response [token]."""
        return len(self.prob_L)

    @cached_property
    def support_L(self) -> Ints:
        """[L] every length, 1 to the cap [token]."""
        return np.arange(1, self.cap + 1)

    @property
    def mean(self) -> float:
        """Expected length [token]."""
        return float(self.prob_L @ self.support_L)

    def quantile(self, q: float) -> int:
        """Smallest length that at least a share q of responses do not exceed [token]."""
        return int(np.searchsorted(np.cumsum(self.prob_L), q - 1e-12)) + 1

    def windows_L(self, window: int) -> Ints:
        """[L] steps that a response of each length takes: ceil(length / window)."""
        return -(-self.support_L // window)

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        """[count] lengths of new responses."""
        return rng.choice(self.cap, size=count, p=self.prob_L) + 1

    def draw_in_flight(self, rng: np.random.Generator, count: int, window: int) -> tuple[Ints, Ints]:
        """[count] length and tokens already there of each response in a slot, long after the start of a run.

        Slots are renewal processes with cycle ceil(L / window): in equilibrium a slot holds a response with
        probability proportional to its cycle, at each of its windows equally likely.
        """
        windows_L = self.windows_L(window)
        weight_L = self.prob_L * windows_L
        at = rng.choice(self.cap, size=count, p=weight_L / weight_L.sum())
        return at + 1, rng.integers(0, windows_L[at]) * window


def _finished(path: Path) -> list[dict[str, float]]:
    """Those lines of a run's metrics.jsonl in which at least one response finished."""
    names = ("finished", "length_median", "length_p99", "length_max")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a run's metrics.jsonl ({error}).") from None
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            if row["finished"]:
                lines.append({name: float(row[name]) for name in names})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: expected one JSON object with {', '.join(names)} ({error})."
            ) from None
    if not lines:
        raise ValueError(f"{path}: no response finished in it; expected the metrics of a run with finished responses.")
    return lines
