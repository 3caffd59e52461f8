"""What the study `gradient` finds in its rows: numbers, a figure and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paper_repro.studies.exact.tables import COLOURS, CRITICS, ESTIMATORS, Critic, Rows, bars_by_critic, finish
from paper_repro.studies.exact.updates import angle
from paper_repro.studies.intervals import Interval, Spread
from tppo.figures import PALETTE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The cell that findings quote, and the m of the filter.
WINDOW, LAM, IGNORE_LAST = 16, 0.95, 4


@dataclass(frozen=True)
class Findings:
    """Angles between update and true gradient [degrees], at the quoted window and lambda.

    Estimators, critics and steps of shaping go by the names in data.csv.
    """

    angles: Mapping[tuple[str, str], Spread]  # (estimator, critic) to the exact angle, as estimated
    by_window: Mapping[int, Spread]  # the same for EGAE, repeat, with a stale critic
    length: Spread  # length of that update over the true gradient's, at the quoted window
    as_trained: Mapping[str, Interval]  # table to its cosine after all shaping, EGAE, repeat, stale critic
    filter_change: tuple[float, float]  # least and most by which the filter changes the angle, all tables and critics
    filter_alone: Spread  # angle of the filter where nothing else is biased: EGAE, critic, exact critic
    whitening_change: tuple[float, float]  # least and most by which whitening changes the sampled angle
    clamped_at_10: float  # largest share of tokens
    clamped_at_2: Spread  # share of tokens


def measure(rows: Rows) -> Findings:
    """Compute the findings from the rows of data.csv."""
    windows = dict.fromkeys(row["window"] for row in rows if row["window"] is not None)
    filtered = [
        after - before
        for kind in CRITICS
        for before, after in zip(
            angles(rows, "EGAE, repeat", kind), angles(rows, "EGAE, repeat", kind, step="filtered"), strict=True
        )
    ]
    whitened = [
        angle(after["cosine"]) - angle(before["cosine"])
        for before, after in zip(_sampled(rows, "filtered"), _sampled(rows, "filtered, whitened"), strict=True)
    ]
    as_trained = {
        row["table"]: Interval(row["cosine"], row["cosine_low"], row["cosine_high"])
        for row in _sampled(rows, "and clamped at 10")
        if (row["estimator"], row["critic"]) == ("EGAE, repeat", "stale")
    }
    return Findings(
        angles={(name, kind): Spread.of(angles(rows, name, kind)) for name in ESTIMATORS for kind in CRITICS},
        by_window={w: Spread.of(angles(rows, "EGAE, repeat", "stale", window=w)) for w in windows},
        length=Spread.of(cell(rows, "EGAE, repeat", "stale", "length")),
        as_trained=as_trained,
        filter_change=(min(filtered), max(filtered)),
        filter_alone=Spread.of(angles(rows, "EGAE, critic", "exact", step="filtered")),
        whitening_change=(min(whitened), max(whitened)),
        clamped_at_10=max(row["clamped_share"] for row in _sampled(rows, "and clamped at 10")),
        clamped_at_2=Spread.of(row["clamped_share"] for row in _sampled(rows, "and clamped at 2")),
    )


def cell(rows: Rows, estimator: str, kind: str, column: str = "cosine", **where: Any) -> list[float]:
    """Exact values, one a table, at the quoted window and lambda unless told otherwise."""
    at = {"estimator": estimator, "critic": kind, "step": "as estimated", "sampled": False, "lam": LAM} | where
    at["window"] = at.get("window", WINDOW) if ESTIMATORS[estimator][0] == "egae" else None
    if estimator == "Monte Carlo":
        at["lam"] = None
    return [row[column] for row in rows if all(row[key] == value for key, value in at.items())]


def angles(rows: Rows, estimator: str, kind: str, **where: Any) -> list[float]:
    """Exact angles to the true gradient [degrees], one a table."""
    return [angle(cos) for cos in cell(rows, estimator, kind, **where)]


def _sampled(rows: Rows, step: str) -> Rows:
    """The sampled rows of one step of shaping."""
    return [row for row in rows if row["sampled"] and row["step"] == step]


def say(found: Findings) -> tuple[str, list[str]]:
    """The answer, and further findings."""
    degrees = {key: spread.text(".1f") for key, spread in found.angles.items()}
    as_trained = "; ".join(f"{name} {cosine.text('.4f')}" for name, cosine in found.as_trained.items())
    answer = (
        f"With a window of {WINDOW}, λ = {LAM:g} and an exact critic, the expected update of EGAE with the repeated "
        f"value is **{degrees['EGAE, repeat', 'exact']}** degrees off the true gradient (median and range of four "
        f"tables); with a stale critic {degrees['EGAE, repeat', 'stale']}, against "
        f"{degrees['EGAE, critic', 'stale']} with the critic's own V at the cut, {degrees['GAE', 'stale']} for GAE on "
        f"whole responses and {degrees['EGAE, terminal', 'stale']} if the cut is taken for an end. Filtered "
        f"(m = {IGNORE_LAST}), whitened and clamped at 10 as in a run, with the stale critic, its cosine with the true "
        f"gradient is {as_trained} (95% intervals)."
    )
    by_critic = "; ".join(
        f"{kind}: " + ", ".join(f"{degrees[name, kind]} {name}" for name in ESTIMATORS)
        for kind in ("zero", "optimistic", "noisy")
    )
    by_window = ", ".join(f"{spread.text('.1f')} at {window}" for window, spread in found.by_window.items())
    least, most = found.filter_change
    down, up = found.whitening_change
    tight = Spread(*(100 * share for share in found.clamped_at_2)).text(".1f")
    return answer, [
        f"Degrees by critic, window {WINDOW}, λ = {LAM:g}: {by_critic}. With a zero critic and γ = 1 "
        "an unfinished window without rewards has no advantage at all.",
        f"EGAE, repeated value, stale critic, by window: {by_window}. The length of its update is "
        f"{found.length.text()} of the true one at {WINDOW}.",
        f"Dropping the last {IGNORE_LAST} tokens of unfinished windows changes the angle of EGAE with the repeated "
        f"value by {least:+.1f} to {most:+.1f} degrees, over all tables and critics. The filter looks "
        f"ahead: with an exact critic and the critic's V at the cut, where nothing else is biased, it alone costs "
        f"{found.filter_alone.text('.1f')} degrees.",
        f"Whitening after the filter moves the angle by {down:+.1f} to {up:+.1f} degrees.",
        f"Clamping at 10 standard deviations meets at most {100 * found.clamped_at_10:.2g}% of tokens; clamping at 2 "
        f"meets {tight}%.",
    ]


def caption(tables: int, slots: int, seeds: int, responses: int) -> str:
    """What the figure shows. slots: windows of a sampled batch. responses: of each seed."""
    return (
        f"Angle between expected update and true gradient. Top left: by critic, window {WINDOW}, λ = {LAM:g}; "
        f"median of {tables} tables, whiskers lowest to highest. Top right: by λ with a stale critic. "
        "Bottom left: length of the update, same lines. "
        f"Bottom right: EGAE with the repeated value after each step of shaping, sampled in batches of {slots} "
        f"windows, {seeds} seeds of {responses:,} responses, 95% jackknife intervals; crosses are exact."
    )


def draw(rows: Rows, found: Findings) -> Figure:
    """Draw the four panels that `caption` describes."""
    figure = new_figure(10.5, 8.4)
    kinds, by_lam, lengths, steps = figure.subplots(2, 2).flat
    bars_by_critic(kinds, lambda estimator, kind: angles(rows, estimator, kind))
    kinds.set(ylabel="angle to the true gradient [degrees]", title="By critic")
    _draw_lams(by_lam, rows, "cosine")
    _draw_lams(lengths, rows, "length")
    by_lam.set(ylabel="angle to the true gradient [degrees]", ylim=(0, None))
    lengths.set(ylabel="length / length of the true gradient", ylim=(0, None))
    lengths.legend(fontsize=8, loc="lower left")
    _draw_steps(steps, rows, list(found.as_trained))
    finish((kinds, by_lam, lengths, steps))
    return figure


def _draw_lams(ax: Any, rows: Rows, column: str) -> None:
    """Draw angle or length by lambda with a stale critic, one line an estimator."""
    lams = list(dict.fromkeys(row["lam"] for row in rows if row["lam"] is not None))
    for estimator in ESTIMATORS:
        values = np.array([cell(rows, estimator, "stale", column, lam=lam) for lam in lams])
        values = np.vectorize(angle)(values) if column == "cosine" else values
        ax.plot(range(len(lams)), np.median(values, axis=1), "o-", ms=4, color=COLOURS[estimator], label=estimator)
        low, high = values.min(axis=1), values.max(axis=1)
        ax.fill_between(range(len(lams)), low, high, color=COLOURS[estimator], alpha=0.1)
    ax.set_xticks(np.arange(len(lams)), [f"{lam:g}" for lam in lams])
    ax.set(xlabel="λ", title="Stale critic, by λ")


def _draw_steps(ax: Any, rows: Rows, names: Sequence[str]) -> None:
    """Draw the cosines of the sampled steps with their intervals, the exact ones beside them."""
    kinds: tuple[tuple[Critic, str], ...] = (("exact", "o"), ("stale", "s"))
    for i, name in enumerate(names):
        for kind, marker in kinds:
            at = {"table": name, "critic": kind, "estimator": "EGAE, repeat", "window": WINDOW, "lam": LAM}
            mine = [row for row in rows if all(row[key] == value for key, value in at.items())]
            sampled = {row["step"]: row for row in mine if row["sampled"]}
            x = np.arange(len(sampled)) + 0.09 * (2 * i + (kind == "stale") - 3.5)
            y, low, high = (
                np.array([row["cosine" + end] for row in sampled.values()]) for end in ("", "_low", "_high")
            )
            ax.errorbar(
                x, y, yerr=[y - low, high - y], fmt=marker, ms=4, lw=1, capsize=2, color=PALETTE[i],
                mfc="white" if kind == "stale" else PALETTE[i], label=f"{name}, {kind} critic",
            )  # fmt: skip
            known = [row["cosine"] for row in mine if not row["sampled"]]  # the first steps, in the same order
            ax.plot(x[: len(known)], known, "kx", ms=6, zorder=3)
    ax.set_xticks(range(len(sampled)), [step.replace(" ", "\n") for step in sampled], fontsize=8)
    ax.set(ylabel="cosine with the true gradient", title="EGAE, repeat, after each step of shaping")
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.35 * (high - low), high)  # room for the legend
    ax.legend(fontsize=7, ncols=2, loc="lower left")
