"""Exact bias, variance and error of advantage estimators, by critic, window, lambda, gamma and place in the window.

All numbers are in units of the RMS of the true advantage of the same table, policy and gamma, weighted by how often a
token is generated. With b(t, s, a) the bias and v(t, s, a) the variance given the token:

    bias = rms(b),   spread = sqrt(mean v),   error = sqrt(mean(b^2 + v)),   task_bias = rms(b against gamma = 1)
    steering_bias = rms(b - E_a b)

The last is the part that differs between the tokens of a state. The rest cancels in an expected policy gradient.
Nothing is sampled, but for the errors of the noisy critic, over which squares are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from paper_repro.studies.exact.bias_findings import GAMMA, LAM, WINDOW, caption, draw, measure, say
from paper_repro.studies.exact.tables import (
    CRITICS,
    HORIZON,
    Critic,
    Rows,
    choices,
    critic,
    moments,
    rms,
    short,
    tables,
    visits,
)
from sim import exact
from sim.mdp.table import Floats
from tppo.studies.study import Study, StudyOptions, StudyResult, Ticks


@dataclass(frozen=True)
class Grid:
    """The values of everything that is varied."""

    horizon: int = HORIZON
    windows: tuple[int, ...] = (8, 16, 32)
    lams: tuple[float, ...] = (0.0, 0.9, 0.95, 1.0)
    gammas: tuple[float, ...] = (0.99, 1.0)
    draws: int = 8  # of the noisy critic


FULL = Grid(128, (4, 8, 16, 32, 64), (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0), (0.95, 0.99, 1.0), 32)


def part(job: tuple[Grid, str, Critic, float, int]) -> Rows:
    """Compute all rows of one table, critic and gamma."""
    grid, name, kind, gamma, seed = job
    table = tables(grid.horizon)[name]
    truth_HSA = exact.evaluate(table.mdp, table.policy_SA, gamma).A_HSA
    task_HSA = exact.evaluate(table.mdp, table.policy_SA).A_HSA
    weight_HSA = visits(table)
    unit, task_unit = rms(truth_HSA, weight_HSA), rms(task_HSA, weight_HSA)
    draws = range(seed, seed + grid.draws) if kind == "noisy" else [0]
    critics = [critic(table, kind, gamma, draw) for draw in draws]
    rows: Rows = []
    for estimator, window, lam in choices(grid.windows, grid.lams):
        found = [moments(table, c_HS, estimator, window=window, gamma=gamma, lam=lam) for c_HS in critics]
        biases = [m.mean_HSA - truth_HSA for m in found]
        squares = {
            "bias": np.mean([b_HSA**2 for b_HSA in biases], axis=0),
            "steering_bias": np.mean([_centred(b_HSA, table.policy_SA) ** 2 for b_HSA in biases], axis=0),
            "spread": np.mean([m.variance_HSA for m in found], axis=0),
        }
        squares["error"] = squares["bias"] + squares["spread"]
        task2_HSA = np.mean([(m.mean_HSA - task_HSA) ** 2 for m in found], axis=0)
        cell = {"table": name, "critic": kind, "estimator": estimator, "window": window, "gamma": gamma, "lam": lam}
        sizes = {column: _root(x_HSA, weight_HSA, unit) for column, x_HSA in squares.items()}
        task = {"task_bias": _root(task2_HSA, weight_HSA, task_unit)}
        rows.append(cell | {"tokens_before_cut": None} | sizes | task)
        if (window, lam, gamma) == (WINDOW, LAM, GAMMA) and kind in ("exact", "stale"):
            for left, at_H in _places(grid.horizon, WINDOW):
                here_HSA = weight_HSA * at_H[:, None, None]
                sizes = {column: _root(x_HSA, here_HSA, unit) for column, x_HSA in squares.items()}
                rows.append(cell | {"tokens_before_cut": left} | sizes)
    return rows


def _root(square_HSA: Floats, weight_HSA: Floats, unit: float) -> float:
    """The root of the weighted mean of squares, in `unit`."""
    return short(float(np.sqrt((weight_HSA * square_HSA).sum() / weight_HSA.sum())) / unit)


def _centred(x_HSA: Floats, policy_SA: Floats) -> Floats:
    """Subtract from x its mean over the tokens of each state."""
    return x_HSA - np.einsum("hsa,sa->hs", x_HSA, policy_SA)[..., None]


def _places(horizon: int, window: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield how many tokens are left before the cut and a mask of the times that have as many, [H].

    The last window is never cut.
    """
    t_H = np.arange(horizon)
    last_window = (horizon - 1) // window
    for left in range(window):
        yield left, ((window - 1 - t_H % window) == left) & (t_H // window < last_window)


def run(options: StudyOptions, progress: Ticks) -> StudyResult:
    """Compute the grid, and say what it shows."""
    grid = FULL if options.full else Grid()
    names = list(tables(grid.horizon))
    jobs = [(grid, name, kind, gamma, options.seed) for name in names for kind in CRITICS for gamma in grid.gammas]
    rows = [row for rows in progress.map(part, jobs) for row in rows]
    found = measure(rows)
    answer, details = say(found)
    return StudyResult(rows, draw(rows, found), caption(len(names)), answer, details, _limits(grid))


def _limits(grid: Grid) -> list[str]:
    """Where the answer stops holding."""
    return [
        f"Four small tables of at most {grid.horizon} tokens; a range is over them, not a confidence interval.",
        "The critic's error is chosen, not learned; how large it is at scale is another question.",
        "A bias per token says little about the update, in which biases of many tokens add up or cancel; the study "
        "`gradient` asks that.",
        f"Squares for the noisy critic are averaged over {grid.draws} draws of its error.",
    ]


STUDY = Study(
    name="bias",
    chapter="exact",
    question="How biased are the advantages of a truncated window, and where in the window?",
    run=run,
)
