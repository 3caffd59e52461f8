"""Scores of repeated sampling on fixed problems: avg@k, pass@k, maj@k, and the paired comparison of two runs.

Shape suffixes: ``_P`` problems, ``_N`` samples of a problem, ``_C`` distinct answers of a problem. NumPy only.

Every score is a mean over problems, U = (1/P) sum_i u_i, where u_i is computed from the N samples of problem i. Two
different things vary, and each score carries a standard error and a 95% interval for either question:

- *sampling*: the same problems, new samples. V_s = (1/P^2) sum_i Var(u_i | problem i). Needs N >= 2.
- *total*: new problems from the same population, and new samples. By the law of total variance the sample variance of
  the u_i already contains the sampling noise: E[s^2(u)] = Var_i(E[u_i | i]) + E_i[Var(u_i | i)], so V_t = s^2(u) / P
  (never less than V_s). Needs P >= 2.
- *problems*: what is left without the sampling noise, V_p = max(0, s^2(u) / P - V_s).

What cannot be identified from the data is NaN, never 0. Var(u_i | i) is unbiased for avg@k, c (N - c) / (N^2 (N - 1)),
and for pass@k with N >= 2k; otherwise it is that of a bootstrap of the samples times N / (N - 1), an approximation that
is rough where k is near a small N. Problems are not bootstrapped: the variance of a mean is s^2(u) / P in closed form,
and to resample samples within resampled problems would count the sampling noise twice.

Intervals are Wilson's with the effective sample size U (1 - U) / V, so they stay in [0, 1] and have a width when all
is right or wrong: there the size is P (total) or the P N / k independent blocks of k samples (sampling). So that a
handful of agreeing samples does not pass for certainty, the sampling variance inside intervals counts one more problem
of rate 1/2. Total intervals take Student's quantile with P - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from tppo.grading.answers import vote_key

NAN = float("nan")
Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Score:
    """A score with its errors, as the top of the file defines them. NaN is 'not identifiable'."""

    name: str
    """Such as 'avg@32'."""
    value: float
    """In [0, 1]."""
    se_sampling: float
    """Standard error for the same problems and new samples."""
    se_problems: float
    """Standard error of the choice of problems alone."""
    se_total: float
    """Standard error for new problems and new samples."""
    interval_sampling: tuple[float, float]
    """95%, for the same problems and new samples."""
    interval_total: tuple[float, float]
    """95%, for new problems and new samples."""


def wilson(value: float, size: float, quantile: float = Z) -> tuple[float, float]:
    """Wilson's score interval of a proportion ``value`` seen in ``size`` (perhaps effective) trials.

    >>> [round(x, 4) for x in wilson(0.0, 30)]
    [0.0, 0.1135]
    """
    if not (size > 0 and math.isfinite(value)):
        return NAN, NAN
    z2 = quantile**2 / size
    centre = (value + z2 / 2) / (1 + z2)
    half = math.sqrt(value * (1 - value) * z2 + z2**2 / 4) / (1 + z2)
    return max(0.0, centre - half) if value > 0 else 0.0, min(1.0, centre + half) if value < 1 else 1.0


def student_quantile(freedom: int, level: float = 0.975) -> float:
    """A quantile of Student's t above the median, from its finite series (Abramowitz and Stegun, 26.7.3 and 26.7.4).

    >>> [round(student_quantile(f), 3) for f in (1, 2, 5, 29)]
    [12.706, 4.303, 2.571, 2.045]
    """
    if not 0.5 <= level < 1.0 or freedom < 1:
        raise ValueError(f"freedom, level: found {freedom}, {level}; expected at least 1 and 0.5 <= level < 1")
    if freedom > 5000:
        return NormalDist().inv_cdf(level)
    odd = freedom % 2
    steps = np.arange(2 + odd, freedom - 1, 2)  # the j-th term is the one before times (j - 1) / j cos^2
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        cos2 = math.cos(angle) ** 2
        series = float(np.cumprod(np.r_[1.0, (steps - 1) / steps * cos2]).sum()) if freedom > 1 else 0.0
        inside = math.sin(angle) * series
        if odd:
            inside = 2 / math.pi * (angle + math.cos(angle) * inside)
        low, high = (angle, high) if inside < 2 * level - 1 else (low, angle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _table(correct: np.ndarray) -> np.ndarray:
    correct_PN = np.asarray(correct)
    if correct_PN.ndim != 2 or not correct_PN.size or correct_PN.dtype != bool:
        raise ValueError(f"correct has shape {correct_PN.shape} and type {correct_PN.dtype}: expected bool [P, N]")
    return correct_PN


def _check_k(k: int, samples: int) -> None:
    if not 1 <= k <= samples:
        raise ValueError(f"k = {k}: expected 1 to {samples}, the samples of each problem")


def smoothed(variance_P: np.ndarray, blocks: float) -> float:
    """V_s for intervals: with one more problem of rate 1/2."""
    problems = len(variance_P)
    return float(variance_P.sum() + 0.25 / blocks) / ((problems + 1) * problems)


def _score(name: str, u_P: np.ndarray, variance_P: np.ndarray, blocks: float) -> Score:
    """blocks: independent groups of k samples a problem. variance_P: Var(u_i | i), NaN where not identifiable."""
    problems, value = len(u_P), float(u_P.mean())
    sampling = float(variance_P.sum()) / problems**2
    total = float(u_P.var(ddof=1)) / problems if problems > 1 else NAN
    cautious = smoothed(variance_P, blocks)
    certain = value in (0.0, 1.0)
    spread = value * (1 - value)
    interval_sampling = interval_total = (NAN, NAN)
    if not math.isnan(sampling):
        interval_sampling = wilson(value, problems * blocks if certain else spread / cautious)
    if problems > 1:
        widest = float(np.fmax(total, cautious))
        size = problems if certain or widest == 0 else spread / widest
        interval_total = wilson(value, size, student_quantile(problems - 1))
    return Score(
        name=name,
        value=value,
        se_sampling=math.sqrt(sampling),
        se_problems=math.sqrt(float(np.maximum(total - sampling, 0.0))),
        se_total=math.sqrt(float(np.fmax(total, sampling))) if problems > 1 else NAN,
        interval_sampling=interval_sampling,
        interval_total=interval_total,
    )


def rate_variance(correct_PN: np.ndarray) -> np.ndarray:
    """Unbiased Var(c / N) of each problem [P], NaN for N = 1."""
    samples = correct_PN.shape[1]
    p_P = correct_PN.mean(axis=1)
    return p_P * (1 - p_P) / (samples - 1) if samples > 1 else np.full(len(p_P), NAN)


def avg_at(correct: np.ndarray) -> Score:
    """avg@N of a table of bools [P, N]: the mean share of right samples."""
    correct_PN = _table(correct)
    samples = correct_PN.shape[1]
    return _score(f"avg@{samples}", correct_PN.mean(axis=1), rate_variance(correct_PN), samples)


def _all_wrong(samples: int, draws: int) -> np.ndarray:
    """Probability that ``draws`` of N samples without replacement are all wrong, for c = 0 ... N right ones [N + 1].

    The product form, prod_{i=N-c+1..N} (1 - draws / i): exact, and without large binomial coefficients.
    """
    factors = 1 - draws / np.arange(samples, 0, -1)
    factors[samples - draws + 1 :] = 0.0  # behind the factor that is zero
    return np.r_[1.0, np.cumprod(factors)]


def pass_rates(correct: np.ndarray, k: int) -> np.ndarray:
    """Unbiased pass@k of each problem [P]: 1 - C(N - c, k) / C(N, k) (Chen et al. 2021, arXiv 2107.03374)."""
    correct_PN = _table(correct)
    _check_k(k, correct_PN.shape[1])
    return 1 - _all_wrong(correct_PN.shape[1], k)[correct_PN.sum(axis=1)]


def pass_at(correct: np.ndarray, k: int) -> Score:
    """pass@k of a table of bools [P, N].

    With q_m = C(N - c, m) / C(N, m), Var(u_i | i) is q_k^2 - q_2k, unbiased, for N >= 2k. For k <= N < 2k nothing
    unbiased exists; it is the exact variance of u_i under Binomial(N, c / N), the bootstrap of the samples, times
    N / (N - 1).
    """
    correct_PN = _table(correct)
    u_P, samples = pass_rates(correct_PN, k), correct_PN.shape[1]
    right_P = correct_PN.sum(axis=1)
    wrong = _all_wrong(samples, k)
    if samples == 1:
        variance_P = np.full(len(u_P), NAN)
    elif samples >= 2 * k:
        variance_P = np.maximum(wrong**2 - _all_wrong(samples, 2 * k), 0.0)[right_P]
    else:
        share = np.arange(samples + 1)[:, None] / samples
        c = np.arange(samples + 1)
        ways = np.array([float(math.comb(samples, int(i))) for i in c])
        chance = ways * share**c * (1 - share) ** (samples - c)
        variance = np.maximum(chance @ wrong**2 - (chance @ wrong) ** 2, 0.0) * samples / (samples - 1)
        variance_P = variance[right_P]
    return _score(f"pass@{k}", u_P, variance_P, samples / k)


@dataclass(frozen=True)
class Ballot:
    """The votes on one problem."""

    keys: tuple[str, ...]
    """The answers, as ``vote_key`` writes them, in order of appearance."""
    counts_C: np.ndarray
    """Votes for each."""
    right_C: np.ndarray
    """Share of each answer's samples that are graded right."""
    abstentions: int
    """Samples without an answer."""

    @staticmethod
    def of(correct_N: Sequence[bool] | np.ndarray, answers: Sequence[str | None]) -> Ballot:
        """Count votes; a sample without an answer abstains. Raises ValueError when such a sample is graded right."""
        votes: dict[str, list[bool]] = {}
        for right, answer in zip(correct_N, answers, strict=True):
            if answer is not None:
                votes.setdefault(vote_key(answer), []).append(bool(right))
            elif right:
                raise ValueError("a sample without an answer is graded right")
        counts_C = np.array([len(v) for v in votes.values()], dtype=np.int64)
        right_C = np.array([float(np.mean(v)) for v in votes.values()])
        return Ballot(tuple(votes), counts_C, right_C, len(answers) - int(counts_C.sum()))

    def winners(self) -> list[str]:
        """The answers with most votes, in order of appearance; several in a tie, none when all abstain."""
        return [key for key, n in zip(self.keys, self.counts_C, strict=True) if n == self.counts_C.max()]

    def expected(self, k: int) -> float:
        """Expected credit of the majority among k votes drawn without replacement; a tie is shared equally. Exact.

        Sums over how many votes v the right answer gets, and how many rivals get v as well: a polynomial product over
        the rivals, truncated at v.
        """
        samples = int(self.counts_C.sum()) + self.abstentions
        _check_k(k, samples)
        if samples > 1000:
            raise ValueError(f"{samples} samples of a problem: expected at most 1000 votes")
        credit = 0.0
        for j in np.flatnonzero(self.right_C):
            rivals = np.delete(self.counts_C, j)
            for v in range(1, min(int(self.counts_C[j]), k) + 1):
                ways = np.zeros((k - v + 1, k // v + 1))  # [other votes, tied rivals]
                ways[:, 0] = [float(math.comb(self.abstentions, a)) for a in range(k - v + 1)]
                for size in rivals:
                    ways = _with_rival(ways, int(size), v)
                shared = float((ways[-1] / (1 + np.arange(ways.shape[1]))).sum())
                credit += float(self.right_C[j]) * float(math.comb(int(self.counts_C[j]), v)) * shared
        return credit / float(math.comb(samples, k))

    def variance(self, k: int, rng: np.random.Generator, resamples: int) -> float:
        """Sampling variance of ``expected(k)``: majorities of k votes resampled with replacement, over N // k blocks.

        Blocks make it an upper bound for k < N: averaging over all subsets varies less (Hoeffding 1948).
        """
        samples = int(self.counts_C.sum()) + self.abstentions
        if samples == 1 or not len(self.keys):
            return NAN if samples == 1 else 0.0
        drawn = rng.multinomial(k, np.r_[self.counts_C, self.abstentions] / samples, size=resamples)[:, :-1]
        top = (drawn == drawn.max(axis=1, keepdims=True)) & (drawn > 0)
        credit = (top * self.right_C).sum(axis=1) / np.maximum(top.sum(axis=1), 1)
        return float(credit.var()) / (samples // k) * samples / (samples - 1)


def _with_rival(ways: np.ndarray, size: int, v: int) -> np.ndarray:
    """One more rival of ``size`` votes: at most v of them drawn, exactly v is a tie."""
    out = ways.copy()
    for drawn in range(1, min(size, v, len(ways) - 1) + 1):
        rest = ways[: len(ways) - drawn] * float(math.comb(size, drawn))
        if drawn < v:
            out[drawn:] += rest
        else:
            out[drawn:, 1:] += rest[:, :-1]
    return out


def maj_at(
    correct: np.ndarray, answers: Sequence[Sequence[str | None]], k: int, *, seed: int = 0, resamples: int = 1000
) -> Score:
    """maj@k: expected credit of the most frequent answer among k of the N samples, exactly; ties are shared.

    answers [P, N], None where there is none. Var(u_i | i) is bootstrapped with ``resamples`` draws from ``seed``.
    """
    correct_PN = _table(correct)
    _check_k(k, correct_PN.shape[1])
    ballots = [Ballot.of(c, a) for c, a in zip(correct_PN, answers, strict=True)]
    u_P = np.array([ballot.expected(k) for ballot in ballots])
    variance_P = np.array([b.variance(k, np.random.default_rng([seed, i]), resamples) for i, b in enumerate(ballots)])
    return _score(f"maj@{k}", u_P, variance_P, correct_PN.shape[1] / k)
