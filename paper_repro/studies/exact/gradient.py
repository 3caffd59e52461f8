"""Where the expected policy update points: exact for each estimator, sampled for the whitened and clamped one.

With d_t(s) the chance that a response is alive in s at time t, the update of one step, per response, expects

    g = sum_{t,s,a} d_t(s) pi(a|s) E[K A | t, s, a] grad log pi(a|s)

where A is the estimate and K is 1 where the filter keeps the token. The true gradient has the true advantage in the
place of E[K A]. `cosine` is that of the angle between the two, `length` the ratio of their lengths. Filtering is exact
(`sim.exact.filtered`). Whitening and clamping depend on the batch, so they are sampled, by the library's own functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paper_repro.studies.exact.sampling import Shaping, estimates, sample, shaped
from paper_repro.studies.exact.tables import (
    COLOURS,
    CRITICS,
    ESTIMATORS,
    Critic,
    bars_by_critic,
    choices,
    critic,
    finish,
    short,
    spread_text,
    tables,
)
from paper_repro.studies.exact.updates import angle, cosine, direction, expected_update, true_gradient, update
from sim.mdp.table import Floats
from tppo.figures import PALETTE, new_figure
from tppo.studies.study import Progress, Study, StudyOptions, StudyResult

Rows = list[dict[str, Any]]
WINDOW, LAM, IGNORE_LAST, SLOTS = 16, 0.95, 4, 256
DRAWS = 8  # of the noisy critic; its update is linear in the error, so each draw has a direction of its own
STEPS = {
    "as estimated": Shaping(),
    "filtered": Shaping(IGNORE_LAST),
    "whitened": Shaping(whiten=True),
    "filtered, whitened": Shaping(IGNORE_LAST, whiten=True),
    "and clamped at 10": Shaping(IGNORE_LAST, whiten=True, clamp=10.0),
    "and clamped at 2": Shaping(IGNORE_LAST, whiten=True, clamp=2.0),
}
SAMPLED = ("EGAE, repeat", "EGAE, critic")
SAMPLED_CRITICS: tuple[Critic, ...] = ("exact", "stale")


@dataclass(frozen=True)
class Grid:
    """What is varied."""

    windows: tuple[int, ...] = (8, 16, 32)
    lams: tuple[float, ...] = (0.0, 0.9, 0.95, 1.0)
    responses: int = 20_000  # a seed


FULL = Grid((4, 8, 16, 32, 48), (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0), 100_000)


def exact_part(job: tuple[Grid, str, Critic, int]) -> Rows:
    """Exact rows of one table and critic."""
    grid, name, kind, seed = job
    table = tables()[name]
    truth_SA = true_gradient(table)
    draws = range(seed, seed + DRAWS) if kind == "noisy" else [0]
    critics = [critic(table, kind, 1.0, draw) for draw in draws]
    rows: Rows = []
    for estimator, window, lam in choices(grid.windows, grid.lams):
        for ignore_last in (0,) if window is None else (0, IGNORE_LAST):
            updates = [expected_update(table, c_HS, estimator, window, lam, ignore_last) for c_HS in critics]
            rows.append(
                _row(name, kind, estimator, window, lam, "filtered" if ignore_last else "as estimated")
                | {"cosine": short(float(np.mean([cosine(u, truth_SA) for u in updates])))}
                | {"length": short(float(np.mean([np.linalg.norm(u) for u in updates]) / np.linalg.norm(truth_SA)))}
            )
    return rows


def sampled_part(job: tuple[Grid, str, int]) -> dict[tuple[str, Critic, str], tuple[Floats, float]]:
    """Updates of one table and seed: (estimator, critic, step) to (update [S, A], share of tokens clamped)."""
    grid, name, seed = job
    table = tables()[name]
    windows = sample(table, np.random.default_rng([seed, 1]), grid.responses, WINDOW)
    found = {}
    for kind in SAMPLED_CRITICS:
        critic_HS = critic(table, kind, 1.0)
        for estimator in SAMPLED:
            raw_N = estimates(windows, critic_HS, estimator, gamma=1.0, lam=LAM)
            for step, shaping in STEPS.items():
                advantages_N, clamped = shaped(windows, raw_N, shaping, SLOTS)
                found[estimator, kind, step] = update(table, windows, advantages_N, grid.responses), clamped
    return found


def _row(name: str, kind: str, estimator: str, window: int | None, lam: float | None, step: str) -> dict[str, Any]:
    head = {"table": name, "critic": kind, "estimator": estimator, "window": window, "lam": lam, "step": step}
    rest = ("cosine_low", "cosine_high", "length_low", "length_high", "clamped_share")
    return head | {"sampled": False, "cosine": None, "length": None} | dict.fromkeys(rest)


def run(options: StudyOptions, progress: Progress) -> StudyResult:
    """Exact grid, sampled steps, figure, findings."""
    grid = FULL if options.full else Grid()
    names = list(tables())
    parts = progress.map(exact_part, [(grid, name, kind, options.seed) for name in names for kind in CRITICS])
    rows = [row for part in parts for row in part]
    seeds = range(options.seed, options.seed + options.seeds)
    jobs = [(grid, name, seed) for name in names for seed in seeds]
    sampled = dict(zip([(name, seed) for _, name, seed in jobs], progress.map(sampled_part, jobs), strict=True))
    for name in names:
        truth_SA = true_gradient(tables()[name])
        for key in sampled[name, options.seed]:
            cos, length = direction([sampled[name, seed][key][0] for seed in seeds], truth_SA)
            estimator, kind, step = key
            clamped = float(np.mean([sampled[name, seed][key][1] for seed in seeds]))
            rows.append(
                _row(name, kind, estimator, WINDOW, LAM, step)
                | {"sampled": True, "cosine": short(cos.mean), "length": short(length.mean)}
                | {"cosine_low": short(cos.low), "cosine_high": short(cos.high)}
                | {"length_low": short(length.low), "length_high": short(length.high), "clamped_share": short(clamped)}
            )
    return StudyResult(
        rows=rows,
        figure=draw(rows, grid),
        caption=(
            f"Angle between expected update and true gradient. Top left: by critic, window {WINDOW}, λ = {LAM:g}; "
            f"median of {len(names)} tables, whiskers lowest to highest. Top right: by λ with a stale critic. "
            "Bottom left: length of the update, same lines. "
            f"Bottom right: EGAE with the repeated value after each step of shaping, sampled in batches of {SLOTS} "
            f"windows, {options.seeds} seeds of {grid.responses:,} responses, 95% jackknife intervals; crosses are "
            "exact."
        ),
        answer=_answer(rows),
        details=_details(rows, grid),
        limits=[
            "A softmax policy over a table: tokens of one state share their logits and no other state does. In a "
            "network, states share parameters, and biases of different states can add up or cancel.",
            "The policy stands still and the update is that of the first gradient step, where the ratio is 1; clipping "
            "never acts.",
            "Four small tables; a range is over them, not a confidence interval. The critic's error is chosen, not "
            "learned.",
            "A length other than 1 is a change of the learning rate. After whitening it has no meaning across tables.",
        ],
    )


def _cell(rows: Rows, estimator: str, kind: str, column: str = "cosine", **where: Any) -> list[float]:
    """Exact values, one a table, at the quoted window and lambda unless told otherwise."""
    at = {"estimator": estimator, "critic": kind, "step": "as estimated", "sampled": False, "lam": LAM} | where
    at["window"] = at.get("window", WINDOW) if ESTIMATORS[estimator][0] == "egae" else None
    if estimator == "Monte Carlo":
        at["lam"] = None
    return [row[column] for row in rows if all(row[key] == value for key, value in at.items())]


def _angles(rows: Rows, estimator: str, kind: str, **where: Any) -> list[float]:
    return [angle(cos) for cos in _cell(rows, estimator, kind, **where)]


def _answer(rows: Rows) -> str:
    degrees = {
        (name, kind): spread_text(_angles(rows, name, kind), ".1f")
        for name in ESTIMATORS
        for kind in ("exact", "stale")
    }
    steps = [row for row in rows if row["sampled"] and row["estimator"] == "EGAE, repeat" and row["critic"] == "stale"]
    last = [row for row in steps if row["step"] == "and clamped at 10"]
    text = "; ".join(
        f"{row['table']} {row['cosine']:.4f} ({row['cosine_low']:.4f} to {row['cosine_high']:.4f})" for row in last
    )
    return (
        f"With a window of {WINDOW}, λ = {LAM:g} and an exact critic, the expected update of EGAE with the repeated "
        f"value is **{degrees['EGAE, repeat', 'exact']}** degrees off the true gradient (median and range of four "
        f"tables); with a stale critic {degrees['EGAE, repeat', 'stale']}, against "
        f"{degrees['EGAE, critic', 'stale']} with the critic's own V at the cut, {degrees['GAE', 'stale']} for GAE on "
        f"whole responses and {degrees['EGAE, terminal', 'stale']} if the cut is taken for an end. Filtered "
        f"(m = {IGNORE_LAST}), whitened and clamped at 10 as in a run, with the stale critic, its cosine with the true "
        f"gradient is {text} (95% intervals)."
    )


def _details(rows: Rows, grid: Grid) -> list[str]:
    by_critic = "; ".join(
        f"{kind}: " + ", ".join(f"{spread_text(_angles(rows, name, kind), '.1f')} {name}" for name in ESTIMATORS)
        for kind in ("zero", "optimistic", "noisy")
    )
    by_window = ", ".join(
        f"{spread_text(_angles(rows, 'EGAE, repeat', 'stale', window=window), '.1f')} at {window}"
        for window in grid.windows
    )
    filtered = [
        b - a
        for kind in CRITICS
        for a, b in zip(
            _angles(rows, "EGAE, repeat", kind), _angles(rows, "EGAE, repeat", kind, step="filtered"), strict=True
        )
    ]
    exact_filter = spread_text(_angles(rows, "EGAE, critic", "exact", step="filtered"), ".1f")
    whitening = [
        angle(after["cosine"]) - angle(before["cosine"])
        for before, after in zip(_sampled(rows, "filtered"), _sampled(rows, "filtered, whitened"), strict=True)
    ]
    share = max(row["clamped_share"] for row in _sampled(rows, "and clamped at 10"))
    tight = spread_text([100 * row["clamped_share"] for row in _sampled(rows, "and clamped at 2")], ".1f")
    lengths = spread_text(_cell(rows, "EGAE, repeat", "stale", "length"))
    return [
        f"Degrees by critic, window {WINDOW}, λ = {LAM:g}: {by_critic}. With a zero critic and γ = 1 "
        "an unfinished window without rewards has no advantage at all.",
        f"EGAE, repeated value, stale critic, by window: {by_window}. The length of its update is {lengths} of the "
        f"true one at {WINDOW}.",
        f"Dropping the last {IGNORE_LAST} tokens of unfinished windows changes the angle of EGAE with the repeated "
        f"value by {min(filtered):+.1f} to {max(filtered):+.1f} degrees, over all tables and critics. The filter looks "
        f"ahead: with an exact critic and the critic's V at the cut, where nothing else is biased, it alone costs "
        f"{exact_filter} degrees.",
        f"Whitening after the filter moves the angle by {min(whitening):+.1f} to {max(whitening):+.1f} degrees.",
        f"Clamping at 10 standard deviations meets at most {100 * share:.2g}% of tokens; clamping at 2 meets {tight}%.",
    ]


def _sampled(rows: Rows, step: str) -> Rows:
    return [row for row in rows if row["sampled"] and row["step"] == step]


def draw(rows: Rows, grid: Grid) -> Any:
    """Four panels; the caption in `run` says what they show."""
    figure = new_figure(10.5, 8.4)
    kinds, by_lam, lengths, steps = figure.subplots(2, 2).flat
    bars_by_critic(kinds, lambda estimator, kind: _angles(rows, estimator, kind))
    kinds.set(ylabel="angle to the true gradient [degrees]", title="By critic")
    for ax, column in ((by_lam, "cosine"), (lengths, "length")):
        for estimator in ESTIMATORS:
            values = np.array([_cell(rows, estimator, "stale", column, lam=lam) for lam in grid.lams])
            values = np.vectorize(angle)(values) if column == "cosine" else values
            x = range(len(grid.lams))
            ax.plot(x, np.median(values, axis=1), "o-", ms=4, color=COLOURS[estimator], label=estimator)
            ax.fill_between(x, values.min(axis=1), values.max(axis=1), color=COLOURS[estimator], alpha=0.1)
        ax.set_xticks(np.arange(len(grid.lams)), [f"{lam:g}" for lam in grid.lams])
        ax.set(xlabel="λ", title="Stale critic, by λ")
    by_lam.set(ylabel="angle to the true gradient [degrees]", ylim=(0, None))
    lengths.set(ylabel="length / length of the true gradient", ylim=(0, None))
    lengths.legend(fontsize=8, loc="lower left")
    _draw_steps(steps, rows)
    finish((kinds, by_lam, lengths, steps))
    return figure


def _draw_steps(ax: Any, rows: Rows) -> None:
    """Cosines of the sampled steps with their intervals, the exact ones beside them."""
    names: Sequence[str] = list(dict.fromkeys(row["table"] for row in rows))
    for i, name in enumerate(names):
        for kind, marker in (("exact", "o"), ("stale", "s")):
            mine = [
                row
                for row in rows
                if (row["table"], row["critic"], row["estimator"]) == (name, kind, "EGAE, repeat")
                and (row["window"], row["lam"]) == (WINDOW, LAM)
            ]
            sampled = {row["step"]: row for row in mine if row["sampled"]}
            x = np.arange(len(STEPS)) + 0.09 * (2 * i + (kind == "stale") - 3.5)
            y = np.array([sampled[step]["cosine"] for step in STEPS])
            low = np.array([sampled[step]["cosine_low"] for step in STEPS])
            high = np.array([sampled[step]["cosine_high"] for step in STEPS])
            ax.errorbar(
                x, y, yerr=[y - low, high - y], fmt=marker, ms=4, lw=1, capsize=2, color=PALETTE[i],
                mfc="white" if kind == "stale" else PALETTE[i], label=f"{name}, {kind} critic",
            )  # fmt: skip
            known = {row["step"]: row["cosine"] for row in mine if not row["sampled"]}
            ax.plot(x[: len(known)], [known[step] for step in list(STEPS)[: len(known)]], "kx", ms=6, zorder=3)
    ax.set_xticks(range(len(STEPS)), [step.replace(" ", "\n") for step in STEPS], fontsize=8)
    ax.set(ylabel="cosine with the true gradient", title="EGAE, repeat, after each step of shaping")
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.35 * (high - low), high)  # room for the legend
    ax.legend(fontsize=7, ncols=2, loc="lower left")


STUDY = Study(
    name="gradient",
    chapter="exact",
    question="Where does the policy update of a truncated window point?",
    run=run,
    seeds=8,
    full_seeds=16,
)
