"""Exact bias, variance and error of advantage estimators, by critic, window, lambda, gamma and place in the window.

All numbers are in units of the RMS of the true advantage of the same table, policy and gamma, weighted by how often a
token is generated. With b(t, s, a) the bias and v(t, s, a) the variance given the token:

    bias = rms(b),   spread = sqrt(mean v),   error = sqrt(mean(b^2 + v)),   task_bias = rms(b against gamma = 1)
    steering_bias = rms(b - E_a b)

The last is the part that differs between the tokens of a state. The rest cancels in an expected policy gradient.
Nothing is sampled, but for the errors of the noisy critic, over which squares are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paper_repro.studies.exact.tables import (
    COLOURS,
    CRITICS,
    ESTIMATORS,
    HORIZON,
    Critic,
    bars_by_critic,
    choices,
    critic,
    finish,
    moments,
    rms,
    short,
    spread_text,
    tables,
    visits,
)
from sim import exact
from sim.mdp.table import Floats
from tppo.figures import PALETTE, new_figure
from tppo.studies.study import Progress, Study, StudyOptions, StudyResult

Rows = list[dict[str, Any]]
# The cell that findings quote: half-way in every list.
WINDOW, LAM, GAMMA = 16, 0.95, 1.0


@dataclass(frozen=True)
class Grid:
    """What is varied."""

    horizon: int = HORIZON
    windows: tuple[int, ...] = (8, 16, 32)
    lams: tuple[float, ...] = (0.0, 0.9, 0.95, 1.0)
    gammas: tuple[float, ...] = (0.99, 1.0)
    draws: int = 8  # of the noisy critic


FULL = Grid(128, (4, 8, 16, 32, 64), (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0), (0.95, 0.99, 1.0), 32)


def part(job: tuple[Grid, str, Critic, float, int]) -> Rows:
    """All rows of one table, critic and gamma."""
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
    return short(float(np.sqrt((weight_HSA * square_HSA).sum() / weight_HSA.sum())) / unit)


def _centred(x_HSA: Floats, policy_SA: Floats) -> Floats:
    """What is left of x after the mean over the tokens of each state."""
    return x_HSA - np.einsum("hsa,sa->hs", x_HSA, policy_SA)[..., None]


def _places(horizon: int, window: int) -> Iterator[tuple[int, np.ndarray]]:
    """Tokens left before the cut, and which times have as many; the last window is never cut."""
    t_H = np.arange(horizon)
    last_window = (horizon - 1) // window
    for left in range(window):
        yield left, ((window - 1 - t_H % window) == left) & (t_H // window < last_window)


def run(options: StudyOptions, progress: Progress) -> StudyResult:
    """The grid, its figure and its findings."""
    grid = FULL if options.full else Grid()
    names = list(tables(grid.horizon))
    jobs = [(grid, name, kind, gamma, options.seed) for name in names for kind in CRITICS for gamma in grid.gammas]
    rows = [row for rows in progress.map(part, jobs) for row in rows]
    return StudyResult(
        rows=rows,
        figure=draw(rows, grid),
        caption=(
            f"Bias in units of the RMS true advantage, γ = {GAMMA:g}. Lines and bars: median of {len(names)} tables; "
            f"bands and whiskers: lowest to highest. Top left: by distance from the cut, window {WINDOW}, λ = {LAM:g}. "
            "Top right: the part that differs between the tokens of a state, by critic, same window and λ. "
            "Bottom left: repeated value and exact critic, by window and λ. "
            f"Bottom right: that part against the spread with a stale critic, one point a λ, window {WINDOW}."
        ),
        answer=_answer(rows),
        details=_details(rows, grid),
        limits=[
            f"Four small tables of at most {grid.horizon} tokens; a range is over them, not a confidence interval.",
            "The critic's error is chosen, not learned; how large it is at scale is another question.",
            "A bias per token says little about the update, in which biases of many tokens add up or cancel; the study "
            "`gradient` asks that.",
            f"Squares for the noisy critic are averaged over {grid.draws} draws of its error.",
        ],
    )


def pick(rows: Rows, column: str = "bias", **where: Any) -> list[float]:
    """One column of the rows that match, in order; whole-window rows unless tokens_before_cut is asked for."""
    where = {"tokens_before_cut": None} | where
    return [row[column] for row in rows if all(row[key] == value for key, value in where.items())]


def _cell(rows: Rows, estimator: str, kind: str, column: str = "bias", **where: Any) -> list[float]:
    """The quoted cell: window and lambda where the estimator has them, one value a table."""
    lam = None if estimator == "Monte Carlo" else where.pop("lam", LAM)
    window = where.pop("window", WINDOW) if ESTIMATORS[estimator][0] == "egae" else None
    at = {"critic": kind, "estimator": estimator, "window": window, "lam": lam, "gamma": GAMMA}
    return pick(rows, column, **(at | where))


def _answer(rows: Rows) -> str:
    exactly = {name: spread_text(_cell(rows, name, "exact")) for name in ("EGAE, repeat", "EGAE, terminal")}
    of_critic = max(_cell(rows, "EGAE, critic", "exact"))
    stale = {name: spread_text(_cell(rows, name, "stale", "steering_bias")) for name in ESTIMATORS}
    ratio = np.divide(_cell(rows, "EGAE, repeat", "stale", "spread"), _cell(rows, "Monte Carlo", "stale", "spread"))
    return (
        f"With an exact critic, a window of {WINDOW} and λ = {LAM:g}, EGAE with the repeated value has a bias of "
        f"**{exactly['EGAE, repeat']}** of the RMS true advantage, at most {of_critic:.0e} with the critic's own V at "
        f"the cut, and {exactly['EGAE, terminal']} if the cut is taken for an end (median and range of four tables). "
        f"With a stale critic, the part of the bias that steers the policy is **{stale['EGAE, repeat']}** repeated, "
        f"{stale['EGAE, critic']} with the critic's V and {stale['GAE']} for GAE on whole responses, while the spread "
        f"of EGAE is {spread_text(ratio)} of that of Monte Carlo."
    )


def _details(rows: Rows, grid: Grid) -> list[str]:
    by_window = ", ".join(
        f"{spread_text(_cell(rows, 'EGAE, repeat', 'exact', window=window))} at {window}" for window in grid.windows
    )
    by_lam = ", ".join(f"{spread_text(_cell(rows, 'EGAE, repeat', 'exact', lam=lam))} at {lam:g}" for lam in grid.lams)
    by_place = ", ".join(
        f"{spread_text(_cell(rows, 'EGAE, repeat', 'exact', tokens_before_cut=left))} with {left} left"
        for left in (0, 1, WINDOW // 2, WINDOW - 1)
    )
    whole = {name: spread_text(_cell(rows, name, "stale")) for name in ("EGAE, repeat", "EGAE, critic", "GAE")}
    errors = {
        kind: {name: float(np.median(_cell(rows, name, kind, "error"))) for name in ESTIMATORS} for kind in CRITICS
    }
    least = {kind: min(by_name, key=by_name.__getitem__) for kind, by_name in errors.items()}
    smallest = "; ".join(f"{kind}: {name}" for kind, name in least.items())
    discount = max(g for g in grid.gammas if g < 1.0)
    task = pick(rows, "task_bias", critic="exact", estimator="GAE", lam=LAM, gamma=discount)
    return [
        f"Repeated value, exact critic, λ = {LAM:g}, by window: {by_window}.",
        f"The same, window {WINDOW}, by λ: {by_lam}. At λ = 0 the last token before the cut carries all of it.",
        f"By tokens left before the cut, exact critic: {by_place}.",
        f"The whole bias with a stale critic: {whole['EGAE, repeat']} repeated, {whole['EGAE, critic']} critic, "
        f"{whole['GAE']} GAE. What exceeds the steering part is the same for all tokens of a state.",
        f"Smallest error per token (bias and variance together), λ = {LAM:g}, window {WINDOW}, by critic: {smallest}.",
        f"A discount of {discount:g} alone, with an exact critic and GAE, is a bias of {spread_text(task)} against the "
        "undiscounted objective.",
    ]


def draw(rows: Rows, grid: Grid) -> Any:
    """Four panels; the caption in `run` says what they show."""
    figure = new_figure(10.5, 8)
    place, kinds, by_window, plane = figure.subplots(2, 2).flat
    lefts = range(WINDOW)
    for estimator in ("EGAE, terminal", "EGAE, repeat", "EGAE, critic"):
        for kind, style in (("exact", "-"), ("stale", "--")):
            values = np.array([_cell(rows, estimator, kind, tokens_before_cut=left) for left in lefts])
            if values.max() < 1e-9:  # zero but for round-off: nowhere on a log scale
                place.plot([], [], style, color=COLOURS[estimator], label=f"{estimator}, {kind} critic: zero")
                continue
            place.plot(
                lefts, np.median(values, axis=1), style, color=COLOURS[estimator], label=f"{estimator}, {kind} critic"
            )
            if kind == "exact":
                place.fill_between(lefts, values.min(axis=1), values.max(axis=1), color=COLOURS[estimator], alpha=0.12)
    place.set(
        xlabel="tokens left before the cut", ylabel="bias / RMS advantage", yscale="log", title="By place in the window"
    )
    place.invert_xaxis()
    place.legend(fontsize=7, ncols=2, loc="upper left")
    place.set_ylim(top=place.get_ylim()[1] * 6)
    bars_by_critic(kinds, lambda estimator, kind: _cell(rows, estimator, kind, "steering_bias"))
    kinds.set(ylabel="steering bias / RMS advantage", title=f"By critic, window {WINDOW}, λ = {LAM:g}")
    for colour, lam in zip(PALETTE, grid.lams, strict=False):
        values = np.array([_cell(rows, "EGAE, repeat", "exact", window=window, lam=lam) for window in grid.windows])
        by_window.plot(grid.windows, np.median(values, axis=1), "o-", color=colour, label=f"λ = {lam:g}")
        by_window.fill_between(grid.windows, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.1)
    by_window.set_xscale("log", base=2)
    by_window.set_xticks(grid.windows, [str(w) for w in grid.windows])
    by_window.set(
        xlabel="window [tokens]", ylabel="bias / RMS advantage", ylim=(0, None), title="Repeated value, exact critic"
    )
    for estimator in ESTIMATORS:
        lams: Sequence[float | None] = [None] if estimator == "Monte Carlo" else grid.lams
        points = [
            [
                float(np.median(_cell(rows, estimator, "stale", column, lam=lam)))
                for column in ("spread", "steering_bias")
            ]
            for lam in lams
        ]
        x, y = np.array(points).T
        plane.plot(x, y, "o-", color=COLOURS[estimator], label=estimator, ms=4)
        if estimator == "GAE":
            for known, (at_x, at_y) in zip(grid.lams, points, strict=True):
                plane.annotate(
                    f"λ = {known:g}", (at_x, at_y), fontsize=7, xytext=(-3, -11), ha="right", textcoords="offset points"
                )
    plane.set(xlabel="spread / RMS advantage", ylabel="steering bias / RMS advantage", title="Stale critic")
    finish((place, kinds, by_window, plane))
    return figure


STUDY = Study(
    name="bias",
    chapter="exact",
    question="How biased are the advantages of a truncated window, and where in the window?",
    run=run,
)
