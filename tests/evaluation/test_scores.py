"""Scores against numbers worked by hand, brute-force enumeration, exact expectations and simulated coverage."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from tppo.evaluation.scores import Ballot, avg_at, maj_at, pass_at, pass_rates, student_quantile, wilson

HAND = np.array([[1, 1], [1, 0], [0, 0], [0, 0]], dtype=bool)


def test_avg_by_hand() -> None:
    """Rates 1, 1/2, 0, 0: V_s = (1/4) / 16, s^2 = (25 + 1 + 9 + 9) / 64 / 3 = 11/48, V_t = 11/192, V_p = 8/192."""
    score = avg_at(HAND)
    assert score.name == "avg@2"
    assert score.value == 3 / 8
    assert score.se_sampling == pytest.approx(1 / 8)
    assert score.se_total == pytest.approx(math.sqrt(11 / 192))
    assert score.se_problems == pytest.approx(math.sqrt(8 / 192))
    # Sampling: variance (1/4 + 1/8) / 5 / 4 = 3/160, so 12.5 effective trials. Total: 15/64 / (11/192) = 45/11.
    assert score.interval_sampling == pytest.approx(wilson(3 / 8, 12.5))
    assert score.interval_total == pytest.approx(wilson(3 / 8, 45 / 11, student_quantile(3)))


def test_pass_by_hand() -> None:
    """One right of four: 1 - C(3,2)/C(4,2) = 1/2; Var = (1/2)^2 - 0 as q_4 = 0. Three right of four: 1."""
    table = np.array([[1, 0, 0, 0], [1, 1, 1, 0]], dtype=bool)
    assert pass_rates(table, 2).tolist() == [0.5, 1.0]
    score = pass_at(table, 2)
    assert score.value == 0.75
    assert score.se_sampling == pytest.approx(math.sqrt(0.25 / 4))
    assert score.se_total == pytest.approx(0.25)


def test_majority_by_hand() -> None:
    """Votes 7, 7, 3 with 7 right. Two of them: {7,7} wins, {7,3} twice is a tie: (1 + 1/2 + 1/2) / 3."""
    table = np.array([[1, 1, 0]], dtype=bool)
    answers = [["7", "7.0", "3"]]
    assert maj_at(table, answers, 2).value == pytest.approx(2 / 3)
    assert maj_at(table, answers, 3).value == 1
    # An abstention does not vote: 7 against 3 and nothing is a tie.
    assert maj_at(np.array([[1, 0, 0]], dtype=bool), [["7", "3", None]], 3).value == 0.5
    assert maj_at(np.zeros((1, 3), dtype=bool), [[None, None, None]], 2).value == 0


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_is_the_mean_over_all_subsets(samples: int) -> None:
    for right, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        row = [i < right for i in range(samples)]
        subsets = list(itertools.combinations(row, k))
        expected = Fraction(sum(any(s) for s in subsets), len(subsets))
        assert pass_rates(np.array([row]), k)[0] == pytest.approx(float(expected), abs=1e-15)


def test_pass_of_all_samples_is_exact() -> None:
    """No round-off where the answer is 0 or 1, even for many samples."""
    table = np.zeros((2, 256), dtype=bool)
    table[1, 0] = True
    assert pass_rates(table, 256).tolist() == [0.0, 1.0]
    assert pass_rates(table, 1).tolist() == pytest.approx([0.0, 1 / 256])


def brute_majority(correct: list[bool], answers: list[str | None], k: int) -> Fraction:
    total, subsets = Fraction(0), list(itertools.combinations(range(len(correct)), k))
    right = {a for a, c in zip(answers, correct, strict=True) if c}
    for subset in subsets:
        votes = Counter(answers[i] for i in subset if answers[i] is not None)
        top = [a for a, n in votes.items() if n == max(votes.values())]
        total += Fraction(sum(a in right for a in top), max(1, len(top)))
    return total / len(subsets)


@pytest.mark.parametrize("seed", range(40))
def test_majority_is_the_mean_over_all_subsets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = int(rng.integers(1, 9))
    answers = [None if a == 0 else str(a) for a in rng.integers(0, 2 + seed % 4, samples)]
    correct = [a in ("1", "3") for a in answers]  # two right answers are possible: spellings the grader joins
    for k in range(1, samples + 1):
        expected = float(brute_majority(correct, answers, k))
        assert Ballot.of(correct, answers).expected(k) == pytest.approx(expected, abs=1e-12)


def test_one_sample_identities() -> None:
    rng = np.random.default_rng(0)
    table = rng.random((20, 6)) < rng.random((20, 1))
    answers = [["1" if right else str(2 + i % 3) for i, right in enumerate(row)] for row in table]
    average, one = avg_at(table), pass_at(table, 1)
    assert one.value == pytest.approx(average.value, abs=1e-15)
    for field in ("se_sampling", "se_problems", "se_total", "interval_sampling", "interval_total"):
        assert getattr(one, field) == pytest.approx(getattr(average, field), abs=1e-12)
    majority = maj_at(table, answers, 1, resamples=20_000)
    assert majority.value == pytest.approx(average.value, abs=1e-12)
    assert majority.se_total == pytest.approx(average.se_total)
    # 20,000 resamples of 20 problems: the bootstrap's relative error is below 1%; 3% is over 3 standard errors.
    assert majority.se_sampling == pytest.approx(average.se_sampling, rel=0.03)


@pytest.mark.parametrize(("samples", "k"), [(2, 1), (4, 2), (9, 3), (16, 8)])
def test_sampling_variance_of_pass_is_unbiased(samples: int, k: int) -> None:
    """Its exact expectation over Binomial(N, p) is the exact variance of the estimate."""
    for p in (0.03, 0.3, 0.5, 0.9):
        chance = stats.binom.pmf(np.arange(samples + 1), samples, p)
        tables = [np.array([[i < c for i in range(samples)]]) for c in range(samples + 1)]
        u = np.array([pass_rates(t, k)[0] for t in tables])
        variances = np.array([pass_at(t, k).se_sampling ** 2 for t in tables])
        assert chance @ u == pytest.approx(1 - (1 - p) ** k)
        assert chance @ variances == pytest.approx(chance @ u**2 - (chance @ u) ** 2)


def test_bootstrapped_variance_of_pass_where_nothing_is_unbiased() -> None:
    """Two samples, pass@2: with one right, resampled pairs hold a right one with probability 3/4; times N/(N-1) = 2."""
    assert pass_at(np.array([[1, 0]], dtype=bool), 2).se_sampling ** 2 == pytest.approx(2 * 3 / 16)


def test_majority_variance_is_the_bootstrap() -> None:
    """Votes right: wrong = 2: 1. Resampled majority of three is Binomial(3, 2/3) >= 2: 20/27; times 3/2."""
    table = np.array([[1, 1, 0]] * 2, dtype=bool)
    answers = [["1", "1", "2"]] * 2
    score = maj_at(table, answers, 3, resamples=40_000)
    # Relative error of a variance from 40,000 draws is below 0.6%: 2.5% is over 4 standard errors.
    assert score.se_sampling**2 == pytest.approx(1.5 * 20 / 27 * 7 / 27 / 2, rel=0.025)
    assert maj_at(table, answers, 3, resamples=40_000) == score
    assert maj_at(table, answers, 3, seed=1, resamples=40_000) != score


def test_majority_variance_of_fewer_votes_is_an_upper_bound() -> None:
    """Many independent sets of eight votes, three counted: the estimates vary less than stated, on average.

    The mean of 300 stated variances against the variance of 300 estimates, whose relative error is below 10%; the
    bound holds by a wide margin here, a false alarm would be over four standard errors.
    """
    rng = np.random.default_rng(5)
    ballots = []
    for _ in range(300):
        votes = rng.choice(["1", "2", "3"], 8, p=[0.45, 0.35, 0.2])
        ballots.append(Ballot.of(votes == "1", votes.tolist()))
    stated = float(np.mean([b.variance(3, rng, 400) for b in ballots]))
    found = float(np.var([b.expected(3) for b in ballots]))
    assert found < stated < 4 * found


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("k", [1, 2])
def test_all_right_and_all_wrong_have_a_width(value: bool, k: int) -> None:
    table = np.full((30, 2), value)
    answers = [["1", "1"]] * 30
    scores = [avg_at(table), pass_at(table, 2), maj_at(table, answers, 2)] if k == 2 else [pass_at(table, 1)]
    for score in scores:
        low, high = score.interval_total
        assert (low, high) == pytest.approx(wilson(float(value), 30, student_quantile(29)))
        assert 0.1 < high - low < 0.15
        narrow = score.interval_sampling
        assert low <= narrow[0] < narrow[1] <= high
        assert (low == 0) is not value
        assert (high == 1) is value


def test_agreeing_samples_do_not_pass_for_certainty() -> None:
    """Half the problems all right, half all wrong: the sampling SE is 0, its interval is not."""
    score = avg_at(np.repeat([[True, True], [False, False]], 10, axis=0))
    assert score.se_sampling == 0
    assert score.interval_sampling[1] - score.interval_sampling[0] > 0.01


def test_what_cannot_be_identified_is_nan() -> None:
    one_sample = avg_at(np.array([[True], [False], [False]]))
    assert math.isnan(one_sample.se_sampling)
    assert math.isnan(one_sample.se_problems)
    assert all(map(math.isnan, one_sample.interval_sampling))
    assert one_sample.se_total == pytest.approx(1 / 3)  # s^2 = 1/3, over three problems
    assert one_sample.interval_total[0] > 0
    answers = [["1"], ["2"], [None]]
    assert math.isnan(maj_at(np.array([[True], [False], [False]]), answers, 1).se_sampling)
    one_problem = avg_at(np.array([[True, False, True]]))
    assert one_problem.se_sampling == pytest.approx(1 / 3)
    assert math.isnan(one_problem.se_total)
    assert math.isnan(one_problem.se_problems)
    assert all(map(math.isnan, one_problem.interval_total))


def test_problem_variance_is_never_negative() -> None:
    """Rates more alike than sampling noise explains: nothing is left for the problems, and total is sampling."""
    score = avg_at(np.array([[True, False], [False, True], [True, False]]))
    assert score.se_problems == 0
    assert score.se_total == score.se_sampling > 0


@pytest.mark.parametrize(
    ("table", "k", "message"),
    [
        (np.zeros((2, 3), dtype=bool), 4, "k = 4: expected 1 to 3"),
        (np.zeros((2, 3), dtype=bool), 0, "k = 0"),
        (np.zeros((0, 3), dtype=bool), 1, "shape"),
        (np.zeros(3, dtype=bool), 1, "shape"),
        (np.full((2, 2), 0.5), 1, "float64"),
    ],
)
def test_bad_tables_are_refused(table: np.ndarray, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pass_at(table, k)


def test_a_right_sample_has_an_answer() -> None:
    with pytest.raises(ValueError, match="without an answer is graded right"):
        maj_at(np.array([[True]]), [[None]], 1)


def test_quantiles_and_intervals_agree_with_scipy() -> None:
    for freedom in (1, 2, 3, 4, 7, 29, 30, 499, 1318, 5001):
        tolerance = 5e-4 if freedom > 5000 else 1e-9
        for level in (0.6, 0.95, 0.975, 0.995):
            assert student_quantile(freedom, level) == pytest.approx(stats.t.ppf(level, freedom), rel=tolerance)
        assert student_quantile(freedom) == student_quantile(freedom, 0.975)
    for right, trials in ((0, 30), (1, 2), (7, 60), (60, 60)):
        expected = stats.binomtest(right, trials).proportion_ci(method="wilson")
        assert wilson(right / trials, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


RUNS = 1000


def coverage(score: str, field: str, *, problems: int, samples: int, fixed: bool, shape: float, runs: int) -> float:
    """Share of simulated evaluations whose interval holds the truth. Rates are Beta(shape, 2 shape)."""
    rng = np.random.default_rng(20_240_613)
    p_P = rng.beta(shape, 2 * shape, problems)
    both_wrong = 2 / 3 * (2 * shape + 1) / (3 * shape + 1)  # E[(1 - p)^2]
    truth = {"avg": 1 / 3, "pass": 1 - both_wrong}[score]
    if fixed:
        truth = float(np.mean(p_P if score == "avg" else 1 - (1 - p_P) ** 2))
    hits = 0
    for _ in range(runs):
        rates = p_P if fixed else rng.beta(shape, 2 * shape, problems)
        table = rng.random((problems, samples)) < rates[:, None]
        low, high = getattr(avg_at(table) if score == "avg" else pass_at(table, 2), field)
        hits += low <= truth <= high
    return hits / runs


# Intervals are approximate: required is a true coverage of 93.5%, of which 1,000 runs show less than 90.5% with
# probability 6e-5.
@pytest.mark.parametrize("shape", [0.2, 1.0])
@pytest.mark.parametrize(("problems", "samples"), [(30, 4), (30, 1), (8, 8), (200, 2)])
def test_intervals_for_new_problems_cover(problems: int, samples: int, shape: float) -> None:
    for score in ("avg", "pass")[: min(samples, 2)]:
        found = coverage(
            score, "interval_total", problems=problems, samples=samples, fixed=False, shape=shape, runs=RUNS
        )
        assert found >= 0.905, score


@pytest.mark.parametrize("shape", [0.2, 1.0])
@pytest.mark.parametrize(("problems", "samples"), [(30, 2), (30, 4), (8, 8), (1, 32), (200, 2)])
def test_intervals_for_new_samples_cover(problems: int, samples: int, shape: float) -> None:
    for score in ("avg", "pass")[: samples // 2]:  # pass@2 of two samples is rough: see the next test
        found = coverage(
            score, "interval_sampling", problems=problems, samples=samples, fixed=True, shape=shape, runs=RUNS
        )
        assert found >= 0.905, score


def test_rough_intervals_are_not_too_rough() -> None:
    """pass@2 of two samples has no unbiased sampling variance: 85% instead of 95%; 1,000 runs, false alarm as above."""
    for shape in (0.2, 1.0):
        found = coverage("pass", "interval_sampling", problems=200, samples=2, fixed=True, shape=shape, runs=RUNS)
        assert found >= 0.85


def test_the_two_intervals_answer_different_questions() -> None:
    """Problems that differ much, many samples of each: the sampling interval must fail for new problems."""
    both = [
        coverage("avg", field, problems=30, samples=16, fixed=False, shape=0.2, runs=400)
        for field in ("interval_sampling", "interval_total")
    ]
    assert both[0] < 0.6 < 0.9 < both[1]
