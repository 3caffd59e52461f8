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

from dataclasses import dataclass
from typing import Any

import numpy as np

from paper_repro.studies.exact.sampling import Shaping, estimates, sample, shaped
from paper_repro.studies.exact.tables import ESTIMATORS, Critic, critic, finish, rms, short, spread_text, tables, visits
from paper_repro.studies.exact.updates import angle, cosine, expected_update, row_squares, true_gradient
from paper_repro.studies.intervals import mean_interval
from paper_repro.studies.port import Port, authors_port
from sim import exact
from sim.exact.filtered import kept_moments
from sim.mdp.table import Floats
from tppo.figures import PALETTE, new_figure
from tppo.studies.study import Progress, Study, StudyOptions, StudyResult

Rows = list[dict[str, Any]]
WINDOW, LAM, SLOTS = 16, 0.95, 256
KINDS: tuple[Critic, ...] = ("exact", "stale")
CELL = ("table", "critic", "estimator", "window", "lam")
SAMPLED = ("noise", "eta")  # each also as a ratio to m = 0 of the same samples, with its interval
BOUNDARIES = ("EGAE, repeat", "EGAE, critic")


@dataclass(frozen=True)
class Grid:
    """What is varied."""

    windows: tuple[int, ...] = (16, 32)
    lams: tuple[float, ...] = (0.9, 0.95, 0.99)
    drops: tuple[int, ...] = (0, 1, 2, 4, 6, 8, 12)
    responses: int = 4_000  # a seed


FULL = Grid((8, 16, 32, 48), (0.8, 0.9, 0.95, 0.98, 0.99), (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 20, 24, 28), 20_000)


def exact_part(job: tuple[Grid, str, Critic]) -> Rows:
    """Exact rows of one table and critic."""
    grid, name, kind = job
    table = tables()[name]
    critic_HS, truth_SA, weight_HSA = critic(table, kind, 1.0), true_gradient(table), visits(table)
    A_HSA = exact.evaluate(table.mdp, table.policy_SA).A_HSA
    alive_H = exact.occupancy(table.mdp, table.policy_SA).sum(axis=1)
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
                | dict.fromkeys(
                    column + end for column in SAMPLED for end in ("", "_ratio", "_ratio_low", "_ratio_high")
                )
            )
    return rows


def cells(grid: Grid) -> list[tuple[int, float, int]]:
    """(window, lambda, m): m below the window, or nothing of an unfinished one would train."""
    return [(w, lam, m) for w in grid.windows for lam in grid.lams for m in grid.drops if m < w]


def sampled_part(job: tuple[Grid, str, int]) -> dict[tuple[Critic, int, float, int], float]:
    """E|G|^2 of one window by one seed, for the repeated value: (critic, window, lambda, m) to the mean."""
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
    """eta of the module docstring; `square` is E|G|^2 and `length2` |E[G]|^2 of one window.

    >>> efficiency(1.0, square=3.0, length2=1.0, slots=2)
    0.5
    """
    return cos**2 / (1.0 + (square / length2 - 1.0) / slots)


def run(options: StudyOptions, progress: Progress) -> StudyResult:
    """Exact grid, sampled noise, figure, findings."""
    grid = FULL if options.full else Grid()
    names = list(tables())
    rows = [row for part in progress.map(exact_part, [(grid, n, k) for n in names for k in KINDS]) for row in part]
    jobs = [(grid, name, seed) for name in names for seed in range(options.seed, options.seed + options.seeds)]
    squares: dict[str, list[dict[tuple[Critic, int, float, int], float]]] = {name: [] for name in names}
    for (_, name, _), found in zip(jobs, progress.map(sampled_part, jobs), strict=True):
        squares[name].append(found)
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
    port = authors_port()
    return StudyResult(
        rows=rows,
        figure=draw(rows, grid, port),
        caption=(
            f"EGAE with the repeated value; median of {len(names)} tables, bands lowest to highest. "
            "Top left: angle of the expected update to the true gradient (exact). Top right: error of the estimates "
            f"that are kept (exact). Bottom left: noise of a step of {SLOTS} windows against that at m = 0 "
            f"(sampled, {options.seeds} seeds of {grid.responses:,} responses; bars are the widest 95% interval of a "
            "table). Bottom right: efficiency, bias and noise together, relative to m = 0, against m as a share of the "
            f"memory 1/(1-λ), critic stale; dotted: where m = {port.ignore_last} stands in the authors' port."
        ),
        answer=_answer(rows, port),
        details=_details(rows, grid, port),
        limits=[
            "Four small tables, a softmax policy over a table and one gradient step, as in the study `gradient`. "
            "Windows are 16 and 32 tokens long, not thousands: an m of some tokens is a larger share of them."
            if not options.full
            else "Four small tables, a softmax policy over a table and one gradient step, as in the study `gradient`.",
            f"Efficiency is to first order in 1/{SLOTS} and takes all directions of the table to be equally curved.",
            "Without whitening; the study `gradient` has the filter and whitening together.",
            "Noise is sampled for the repeated value only. Ranges are over tables, not confidence intervals; intervals "
            "are not corrected for the number of cells that are compared.",
        ],
    )


def _noise_and_eta(row: dict[str, Any], size: float, square_seeds: Floats) -> tuple[Floats, Floats]:
    """Noise of a step as a multiple of the true update, and efficiency, one value a seed."""
    length2 = (row["length"] * size / row["windows_per_response"]) ** 2
    true2 = (size / row["windows_per_response"]) ** 2
    square_seeds = np.maximum(square_seeds, length2)
    cos = float(np.cos(np.radians(row["angle"])))
    eta = np.array([efficiency(cos, float(square), length2) for square in square_seeds])
    return np.sqrt((square_seeds - length2) / (SLOTS * true2)), eta


def pick(rows: Rows, column: str, **where: Any) -> list[float]:
    """One column, one value a table, at the quoted cell unless told otherwise."""
    at = {"estimator": "EGAE, repeat", "critic": "exact", "window": WINDOW, "lam": LAM} | where
    return [row[column] for row in rows if all(row[key] == value for key, value in at.items())]


def best(rows: Rows, **where: Any) -> list[int]:
    """One value a table: the m of the largest efficiency among those whose interval lies above m = 0; else 0."""
    drops = sorted(set(pick(rows, "m", **where)))
    ratios = np.array([pick(rows, "eta_ratio", m=m, **where) for m in drops])
    surely = np.array([pick(rows, "eta_ratio_low", m=m, **where) for m in drops]) > 1.0
    return [int(drops[i]) for i in np.argmax(np.where(surely, ratios, 1.0), axis=0)]


def _text(rows: Rows, column: str, m: int, **where: Any) -> str:
    form = ".1f" if column == "angle" else ".2f"
    return spread_text(pick(rows, column, m=m, **where), form)


def _widest(rows: Rows, m: int) -> float:
    """Half the widest interval of an efficiency ratio that is quoted."""
    ends = [[pick(rows, f"eta_ratio_{end}", m=m, critic=kind) for kind in KINDS] for end in ("low", "high")]
    return float(np.subtract(ends[1], ends[0]).max()) / 2


def _answer(rows: Rows, port: Port) -> str:
    m = port.ignore_last
    at_floor, adaptive = port.memory_shares()
    noise, worth = (
        {kind: spread_text(pick(rows, column, m=m, critic=kind)) for kind in KINDS}
        for column in ("noise_ratio", "eta_ratio")
    )
    return (
        f"Window {WINDOW}, λ = {LAM:g}, repeated value: dropping the last {m} tokens takes the angle to the true "
        f"gradient from {_text(rows, 'angle', 0)} to **{_text(rows, 'angle', m)}** degrees with an exact critic and "
        f"from {_text(rows, 'angle', 0, critic='stale')} to {_text(rows, 'angle', m, critic='stale')} with a stale "
        f"one, and a step's noise to {noise['exact']} and {noise['stale']} of what it was; bias and noise together, a "
        f"step of {SLOTS} windows is worth **{worth['exact']}** and {worth['stale']} of one that drops nothing (median "
        f"and range of four tables; 95% intervals of a table's ratio within ±{_widest(rows, m):.3f}). The port's "
        f"m = {m} is {100 * m / port.window:.1g}% of its window of {port.window:,}, {at_floor:.2g} of the memory "
        f"1/(1-λ) at its smallest λ of {port.floor:g} and {adaptive:.2g} of it at the λ = {port.adaptive:.4f} that it "
        "gives a response cut by its first window."
    )


def _details(rows: Rows, grid: Grid, port: Port) -> list[str]:
    names, m = list(tables()), port.ignore_last
    found = {
        (kind, window, lam): best(rows, critic=kind, window=window, lam=lam)
        for kind in KINDS
        for window in grid.windows
        for lam in grid.lams
    }
    cells_of = {kind: sum(len(drops) for (k, _, _), drops in found.items() if k == kind) for kind in KINDS}
    paying = {
        kind: [
            name for (k, _, _), drops in found.items() if k == kind for name, d in zip(names, drops, strict=True) if d
        ]
        for kind in KINDS
    }
    where = ", ".join(f"{paying['stale'].count(name)} on the {name}" for name in names if name in paying["stale"])
    gain = max(ratio for row in rows if (ratio := row["eta_ratio"]) is not None)
    loss = min(ratio for row in rows if (ratio := row["eta_ratio"]) is not None)
    most = max(drop for drop in grid.drops if drop < WINDOW)
    few = min(drop for drop in grid.drops if drop)
    error = {drop: _text(rows, "error", drop) for drop in (0, m, most)}
    return [
        "Some m > 0 is worth more than m = 0 beyond the 95% interval of their ratio (same samples; over tables, "
        f"windows and λ) in {len(paying['exact'])} of {cells_of['exact']} cells with an exact critic and in "
        f"{len(paying['stale'])} of {cells_of['stale']} with a stale one"
        + (f" ({where})" if where else "")
        + f". Over all cells and m the worth is between {loss:.2f} and {gain:.2f}.",
        f"Tokens dropped at window {WINDOW}: {spread_text(pick(rows, 'dropped', m=m))} of all with m = {m}.",
        "RMS error of the estimates that are kept, exact critic, in RMS advantages: "
        + ", ".join(f"{text} at m = {drop}" for drop, text in error.items())
        + ". An estimate with few temporal differences left has little variance, so dropping it need not make the rest "
        "better.",
        "With the critic's own V at the cut and an exact critic only the filter is biased, for it looks ahead: "
        f"{_text(rows, 'angle', few, estimator='EGAE, critic')} degrees at m = {few}, "
        f"{_text(rows, 'angle', m, estimator='EGAE, critic')} at m = {m}.",
        f"At m = {m} and with an exact critic the expected update is {_text(rows, 'length', m)} as long as the true "
        "gradient.",
    ]


def draw(rows: Rows, grid: Grid, port: Port) -> Any:
    """Four panels; the caption in `run` says what they show."""
    figure = new_figure(10.5, 8.2)
    angles, errors, noises, worth = figure.subplots(2, 2).flat
    styles = {("exact", w): ("-", PALETTE[i]) for i, w in enumerate(grid.windows)}
    styles |= {("stale", w): ("--", PALETTE[i]) for i, w in enumerate(grid.windows)}
    for (kind, window), (style, colour) in styles.items():
        where = {"critic": kind, "window": window}
        drops = sorted(set(pick(rows, "m", **where)))
        for ax, column in ((angles, "angle"), (errors, "error"), (noises, "noise_ratio")):
            values = np.array([pick(rows, column, m=m, **where) for m in drops])
            middle = np.median(values, axis=1)
            label = f"window {window}, {kind} critic"
            if column == "noise_ratio":
                ends = [np.array([pick(rows, column + end, m=m, **where) for m in drops]) for end in ("_low", "_high")]
                half = (ends[1] - ends[0]).max(axis=1) / 2
                ax.errorbar(drops, middle, yerr=half, fmt=style, marker="o", ms=3, capsize=2, color=colour, label=label)
            else:
                ax.plot(drops, middle, style, marker="o", ms=3, color=colour, label=label)
            ax.fill_between(drops, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.07)
    for window, marker in zip(grid.windows, "osD^v", strict=False):
        for colour, lam in zip(PALETTE[2:], grid.lams, strict=False):
            where = {"critic": "stale", "window": window, "lam": lam}
            drops = sorted(set(pick(rows, "m", **where)))
            values = np.array([pick(rows, "eta_ratio", m=m, **where) for m in drops])
            x = np.array(drops) * (1 - lam)
            line = "-" if window == grid.windows[0] else ":"
            worth.plot(
                x,
                np.median(values, axis=1),
                line,
                marker=marker,
                ms=3,
                color=colour,
                label=f"window {window}, λ = {lam:g}",
            )
            worth.fill_between(x, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.06)
    for share, why in zip(port.memory_shares(), (f"λ = {port.floor:g}", "adaptive λ"), strict=True):
        worth.axvline(share, color="k", lw=0.8, ls=":")
        worth.annotate(f"port, {why}", (share, 1.0), xycoords=("data", "axes fraction"), rotation=90, fontsize=7,
                       va="top", ha="right")  # fmt: skip
    angles.set(ylabel="angle to the true gradient [degrees]", ylim=(0, None), title=f"Bias, λ = {LAM:g}")
    errors.set(ylabel="RMS error / RMS advantage", title=f"Error of the kept estimates, λ = {LAM:g}")
    noises.set(ylabel="noise / noise at m = 0", title=f"Noise of a step of {SLOTS} windows, λ = {LAM:g}")
    worth.set(ylabel="efficiency / efficiency at m = 0", title="Bias and noise together, stale critic")
    for ax in (angles, errors, noises):
        ax.set_xlabel("m, tokens dropped before the cut")
    worth.set_xlabel("m (1-λ): share of the estimator's memory")
    finish((angles, errors, noises, worth), fontsize=7)
    return figure


STUDY = Study(
    name="last-m",
    chapter="exact",
    question="What does dropping the last m tokens of an unfinished window cost, and what does it buy?",
    run=run,
    seeds=8,
    full_seeds=16,
)
