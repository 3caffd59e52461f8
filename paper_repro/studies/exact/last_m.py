"""What dropping the last m tokens of an unfinished window costs in bias and buys in noise.

Exact, per m: the angle and length of the expected update against the true gradient, the share of tokens dropped, and
the root mean square error of the estimates that are kept, in units of the RMS true advantage.

Sampled, per m: E|G|^2 of the contribution G of one window to the update. Windows of one step are independent, so a step
of n windows has the mean n E[G] and the total variance n (E|G|^2 - |E[G]|^2). Both meet in the efficiency

    eta = cos^2 / (1 + (E|G|^2 / |E[G]|^2 - 1) / n),

the mean squared cosine between a step and the true gradient to first order in 1/n: the share of an exact gradient
step's progress that a step of the best size makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paper_repro.studies.exact.last_m_findings import KINDS, SLOTS, caption, draw, measure, say
from paper_repro.studies.exact.sampling import Shaping, estimates, sample, shaped
from paper_repro.studies.exact.tables import ESTIMATORS, Critic, Rows, critic, rms, short, tables, visits
from paper_repro.studies.exact.updates import angle, cosine, expected_update, row_squares, true_gradient
from paper_repro.studies.intervals import mean_interval
from sim import exact
from sim.exact.filtered import kept_moments
from sim.mdp.table import Floats
from tppo.studies.study import Study, StudyOptions, StudyResult, Ticks

CELL = ("table", "critic", "estimator", "window", "lam")
SAMPLED = ("noise", "eta")  # each also as a ratio to m = 0 of the same samples, with its interval
BOUNDARIES = ("EGAE, repeat", "EGAE, critic")
Squares = Mapping[tuple[Critic, int, float, int], float]  # (critic, window, lambda, m) to E|G|^2 of one window


@dataclass(frozen=True)
class Grid:
    """The values of everything that is varied."""

    windows: tuple[int, ...] = (16, 32)
    lams: tuple[float, ...] = (0.9, 0.95, 0.99)
    drops: tuple[int, ...] = (0, 1, 2, 4, 6, 8, 12)
    responses: int = 4_000  # a seed


FULL = Grid((8, 16, 32, 48), (0.8, 0.9, 0.95, 0.98, 0.99), (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 20, 24, 28), 20_000)


def exact_part(job: tuple[Grid, str, Critic]) -> Rows:
    """Compute the exact rows of one table and critic."""
    grid, name, kind = job
    table = tables()[name]
    critic_HS, truth_SA, weight_HSA = critic(table, kind, 1.0), true_gradient(table), visits(table)
    A_HSA = exact.evaluate(table.mdp, table.policy_SA).A_HSA
    alive_H = exact.occupancy(table.mdp, table.policy_SA).sum(axis=1)
    empty = [column + end for column in SAMPLED for end in ("", "_ratio", "_ratio_low", "_ratio_high")]
    rows: Rows = []
    for estimator in BOUNDARIES:
        boundary = ESTIMATORS[estimator][1]
        assert boundary is not None
        for window, lam, drop in cells(grid):
            kept = kept_moments(
                table.mdp, table.policy_SA, critic_HS, boundary=boundary, window=window, ignore_last=drop, lam=lam
            )
            g_SA = expected_update(table, critic_HS, estimator, window, lam, drop)
            error2_HSA = kept.second_HSA - 2 * A_HSA * kept.first_HSA + A_HSA**2 * kept.kept_HSA
            share = float((weight_HSA * kept.kept_HSA).sum())
            rows.append(
                {"table": name, "critic": kind, "estimator": estimator, "window": window, "lam": lam, "m": drop}
                | {"dropped": short(max(1.0 - share, 0.0)), "angle": short(angle(cosine(g_SA, truth_SA)))}
                | {"length": short(float(np.linalg.norm(g_SA) / np.linalg.norm(truth_SA)))}
                | {"error": short(float(np.sqrt((weight_HSA * error2_HSA).sum() / share)) / rms(A_HSA, weight_HSA))}
                | {"windows_per_response": short(float(alive_H[::window].sum()))}
                | dict.fromkeys(empty)
            )
    return rows


def cells(grid: Grid) -> list[tuple[int, float, int]]:
    """Every (window, lambda, m) with m below the window, for otherwise nothing of an unfinished one would train."""
    return [(w, lam, m) for w in grid.windows for lam in grid.lams for m in grid.drops if m < w]


def sampled_part(job: tuple[Grid, str, int]) -> Squares:
    """Sample E|G|^2 of one window for one table and seed, with the repeated value."""
    grid, name, seed = job
    table = tables()[name]
    found = {}
    for window in grid.windows:
        windows = sample(table, np.random.default_rng([seed, 2, window]), grid.responses, window)
        for kind in KINDS:
            critic_HS = critic(table, kind, 1.0)
            raw = {lam: estimates(windows, critic_HS, "EGAE, repeat", gamma=1.0, lam=lam) for lam in grid.lams}
            for _, lam, drop in (cell for cell in cells(grid) if cell[0] == window):
                advantages_N, _ = shaped(windows, raw[lam], Shaping(drop), slots=len(windows.finished_S))
                found[kind, window, lam, drop] = float(row_squares(table, windows, advantages_N).mean())
    return found


def efficiency(cos: float, square: float, length2: float, slots: int = SLOTS) -> float:
    """The eta of the module docstring; `square` is E|G|^2 and `length2` |E[G]|^2 of one window.

    >>> efficiency(1.0, square=3.0, length2=1.0, slots=2)
    0.5
    """
    return cos**2 / (1.0 + (square / length2 - 1.0) / slots)


def run(options: StudyOptions, progress: Ticks) -> StudyResult:
    """Compute the exact grid, sample the noise, and say what both show."""
    grid = FULL if options.full else Grid()
    names = list(tables())
    rows = [row for part in progress.map(exact_part, [(grid, n, k) for n in names for k in KINDS]) for row in part]
    jobs = [(grid, name, seed) for name in names for seed in range(options.seed, options.seed + options.seeds)]
    squares: dict[str, list[Squares]] = {name: [] for name in names}
    for (_, name, _), sampled in zip(jobs, progress.map(sampled_part, jobs), strict=True):
        squares[name].append(sampled)
    _add_sampled(rows, squares)
    found = measure(rows)
    answer, details = say(found)
    shown = caption(found, len(names), options.seeds, grid.responses)
    return StudyResult(rows, draw(rows, found), shown, answer, details, _limits(options.full))


def _add_sampled(rows: Rows, squares: Mapping[str, Sequence[Squares]]) -> None:
    """Fill in noise and efficiency of the repeated value. squares: of each table, one a seed."""
    for row in rows:
        if row["estimator"] == "EGAE, repeat":
            key = (row["critic"], row["window"], row["lam"])
            size = float(np.linalg.norm(true_gradient(tables()[row["table"]])))
            base = next(r for r in rows if r["m"] == 0 and all(r[k] == row[k] for k in CELL))
            here, there = (
                _noise_and_eta(r, size, np.array([found[(*key, r["m"])] for found in squares[row["table"]]]))
                for r in (row, base)
            )
            for column, own, first in zip(SAMPLED, here, there, strict=True):
                ratio = mean_interval(own / first)
                row[column] = short(float(own.mean()))
                row |= {f"{column}_ratio": short(ratio.mean)}
                row |= {f"{column}_ratio_low": short(ratio.low), f"{column}_ratio_high": short(ratio.high)}


def _noise_and_eta(row: dict[str, Any], size: float, square_seeds: Floats) -> tuple[Floats, Floats]:
    """The noise of a step as a multiple of the true update and the efficiency, one value a seed each."""
    length2 = (row["length"] * size / row["windows_per_response"]) ** 2
    true2 = (size / row["windows_per_response"]) ** 2
    square_seeds = np.maximum(square_seeds, length2)
    cos = float(np.cos(np.radians(row["angle"])))
    eta = np.array([efficiency(cos, float(square), length2) for square in square_seeds])
    return np.sqrt((square_seeds - length2) / (SLOTS * true2)), eta


def _limits(full: bool) -> list[str]:
    """Where the answer stops holding."""
    small = " Windows are 16 and 32 tokens long, not thousands: an m of some tokens is a larger share of them."
    return [
        "Four small tables, a softmax policy over a table and one gradient step, as in the study `gradient`."
        + ("" if full else small),
        f"Efficiency is to first order in 1/{SLOTS} and takes all directions of the table to be equally curved.",
        "Without whitening; the study `gradient` has the filter and whitening together.",
        "Noise is sampled for the repeated value only. Ranges are over tables, not confidence intervals; intervals "
        "are not corrected for the number of cells that are compared.",
    ]


STUDY = Study(
    name="last-m",
    chapter="exact",
    question="What does dropping the last m tokens of an unfinished window cost, and what does it buy?",
    run=run,
    seeds=8,
    full_seeds=16,
)
