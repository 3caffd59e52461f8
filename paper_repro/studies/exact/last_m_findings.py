"""What the study `last-m` finds in its rows: numbers, a figure and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paper_repro.studies.exact.tables import Critic, Rows, finish
from paper_repro.studies.intervals import Spread
from paper_repro.studies.port import Port, authors_port
from tppo.figures import PALETTE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOW, LAM = 16, 0.95  # of the cell that findings quote
SLOTS = 256  # windows of a step
KINDS: tuple[Critic, ...] = ("exact", "stale")
ByDrop = Mapping[int, Spread]  # m to one number a table


@dataclass(frozen=True)
class Findings:
    """Bias and noise by m, of EGAE with the repeated value at the quoted window and lambda unless said otherwise."""

    port: Port
    angles: Mapping[str, ByDrop]  # critic to the angle to the true gradient [degrees]
    angles_at_critic: ByDrop  # the same with the critic's own V at the cut and an exact critic
    errors: ByDrop  # RMS error of the kept estimates over the RMS advantage, exact critic
    lengths: ByDrop  # length of the update over the true gradient's, exact critic
    dropped: ByDrop  # share of tokens, exact critic
    noise: Mapping[str, ByDrop]  # critic to the noise of a step over that at m = 0
    worth: Mapping[str, ByDrop]  # critic to the efficiency of a step over that at m = 0
    worth_error: float  # half the widest 95% interval of a table's worth at the port's m
    worth_range: tuple[float, float]  # least and most of all cells and m
    cells: Mapping[str, int]  # critic to how many cells of table, window and lambda there are
    paying: Mapping[str, Mapping[str, int]]  # critic to table to the cells in which some m > 0 surely is worth more


def measure(rows: Rows) -> Findings:
    """Compute the findings from the rows of data.csv."""
    port = authors_port()
    windows, lams, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("window", "lam", "table"))
    drops = sorted(set(pick(rows, "m")))

    def by_drop(column: str, **where: Any) -> ByDrop:
        return {m: Spread.of(pick(rows, column, m=m, **where)) for m in drops}

    ratios = [row["eta_ratio"] for row in rows if row["eta_ratio"] is not None]
    ends = [
        [pick(rows, f"eta_ratio_{end}", m=port.ignore_last, critic=kind) for kind in KINDS] for end in ("low", "high")
    ]
    paying: dict[str, dict[str, int]] = {kind: dict.fromkeys(names, 0) for kind in KINDS}
    for kind in KINDS:
        for window in windows:
            for lam in lams:
                for name, m in zip(names, best(rows, critic=kind, window=window, lam=lam), strict=True):
                    paying[kind][name] += m > 0
    return Findings(
        port=port,
        angles={kind: by_drop("angle", critic=kind) for kind in KINDS},
        angles_at_critic=by_drop("angle", estimator="EGAE, critic"),
        errors=by_drop("error"),
        lengths=by_drop("length"),
        dropped=by_drop("dropped"),
        noise={kind: by_drop("noise_ratio", critic=kind) for kind in KINDS},
        worth={kind: by_drop("eta_ratio", critic=kind) for kind in KINDS},
        worth_error=float(np.subtract(ends[1], ends[0]).max()) / 2,
        worth_range=(min(ratios), max(ratios)),
        cells=dict.fromkeys(KINDS, len(names) * len(windows) * len(lams)),
        paying=paying,
    )


def pick(rows: Rows, column: str, **where: Any) -> list[Any]:
    """One column, one value a table, at the quoted cell unless told otherwise."""
    at = {"estimator": "EGAE, repeat", "critic": "exact", "window": WINDOW, "lam": LAM} | where
    return [row[column] for row in rows if all(row[key] == value for key, value in at.items())]


def best(rows: Rows, **where: Any) -> list[int]:
    """For each table the m of the largest efficiency among those whose interval lies above m = 0; otherwise 0."""
    drops = sorted(set(pick(rows, "m", **where)))
    ratios = np.array([pick(rows, "eta_ratio", m=m, **where) for m in drops])
    surely = np.array([pick(rows, "eta_ratio_low", m=m, **where) for m in drops]) > 1.0
    return [int(drops[i]) for i in np.argmax(np.where(surely, ratios, 1.0), axis=0)]


def say(found: Findings) -> tuple[str, list[str]]:
    """The answer, and further findings."""
    port, m = found.port, found.port.ignore_last
    at_floor, adaptive = port.memory_shares()
    angles = {kind: {drop: spread.text(".1f") for drop, spread in found.angles[kind].items()} for kind in KINDS}
    noise, worth = ({kind: of[kind][m].text() for kind in KINDS} for of in (found.noise, found.worth))
    answer = (
        f"Window {WINDOW}, λ = {LAM:g}, repeated value: dropping the last {m} tokens takes the angle to the true "
        f"gradient from {angles['exact'][0]} to **{angles['exact'][m]}** degrees with an exact critic and "
        f"from {angles['stale'][0]} to {angles['stale'][m]} with a stale "
        f"one, and a step's noise to {noise['exact']} and {noise['stale']} of what it was; bias and noise together, a "
        f"step of {SLOTS} windows is worth **{worth['exact']}** and {worth['stale']} of one that drops nothing (median "
        f"and range of four tables; 95% intervals of a table's ratio within ±{found.worth_error:.3f}). The port's "
        f"m = {m} is {100 * m / port.window:.1g}% of its window of {port.window:,}, {at_floor:.2g} of the memory "
        f"1/(1-λ) at its smallest λ of {port.floor:g} and {adaptive:.2g} of it at the λ = {port.adaptive:.4f} that it "
        "gives a response cut by its first window."
    )
    few, most = min(drop for drop in found.errors if drop), max(found.errors)
    error = ", ".join(f"{found.errors[drop].text()} at m = {drop}" for drop in dict.fromkeys((0, m, most)))
    at_critic = {drop: spread.text(".1f") for drop, spread in found.angles_at_critic.items()}
    return answer, [
        _paying(found),
        f"Tokens dropped at window {WINDOW}: {found.dropped[m].text()} of all with m = {m}.",
        f"RMS error of the estimates that are kept, exact critic, in RMS advantages: {error}. An estimate with few "
        "temporal differences left has little variance, so dropping it need not make the rest better.",
        "With the critic's own V at the cut and an exact critic only the filter is biased, for it looks ahead: "
        f"{at_critic[few]} degrees at m = {few}, {at_critic[m]} at m = {m}.",
        f"At m = {m} and with an exact critic the expected update is {found.lengths[m].text()} as long as the true "
        "gradient.",
    ]


def _paying(found: Findings) -> str:
    """In how many cells dropping pays."""
    total = {kind: sum(found.paying[kind].values()) for kind in KINDS}
    where = ", ".join(f"{count} on the {name}" for name, count in found.paying["stale"].items() if count)
    least, most = found.worth_range
    return (
        "Some m > 0 is worth more than m = 0 beyond the 95% interval of their ratio (same samples; over tables, "
        f"windows and λ) in {total['exact']} of {found.cells['exact']} cells with an exact critic and in "
        f"{total['stale']} of {found.cells['stale']} with a stale one"
        + (f" ({where})" if where else "")
        + f". Over all cells and m the worth is between {least:.2f} and {most:.2f}."
    )


def caption(found: Findings, tables: int, seeds: int, responses: int) -> str:
    """What the figure shows. responses: of each seed."""
    return (
        f"EGAE with the repeated value; median of {tables} tables, bands lowest to highest. "
        "Top left: angle of the expected update to the true gradient (exact). Top right: error of the estimates "
        f"that are kept (exact). Bottom left: noise of a step of {SLOTS} windows against that at m = 0 "
        f"(sampled, {seeds} seeds of {responses:,} responses; bars are the widest 95% interval of a "
        "table). Bottom right: efficiency, bias and noise together, relative to m = 0, against m as a share of the "
        f"memory 1/(1-λ), critic stale; dotted: where m = {found.port.ignore_last} stands in the authors' port."
    )


def draw(rows: Rows, found: Findings) -> Figure:
    """Draw the four panels that `caption` describes."""
    windows, lams = (list(dict.fromkeys(row[key] for row in rows)) for key in ("window", "lam"))
    figure = new_figure(10.5, 8.2)
    angles, errors, noises, worth = figure.subplots(2, 2).flat
    for kind, style in zip(KINDS, ("-", "--"), strict=True):
        for window, colour in zip(windows, PALETTE, strict=False):
            for ax, column in ((angles, "angle"), (errors, "error"), (noises, "noise_ratio")):
                _draw_drops(ax, rows, column, kind, window, style, colour)
    _draw_worth(worth, rows, windows, lams, found.port)
    angles.set(ylabel="angle to the true gradient [degrees]", ylim=(0, None), title=f"Bias, λ = {LAM:g}")
    errors.set(ylabel="RMS error / RMS advantage", title=f"Error of the kept estimates, λ = {LAM:g}")
    noises.set(ylabel="noise / noise at m = 0", title=f"Noise of a step of {SLOTS} windows, λ = {LAM:g}")
    for ax in (angles, errors, noises):
        ax.set_xlabel("m, tokens dropped before the cut")
    finish((angles, errors, noises, worth), fontsize=7)
    return figure


def _draw_drops(ax: Any, rows: Rows, column: str, kind: str, window: int, style: str, colour: str) -> None:
    """Draw one column by m for one critic and window."""
    where = {"critic": kind, "window": window}
    drops = sorted(set(pick(rows, "m", **where)))
    values = np.array([pick(rows, column, m=m, **where) for m in drops])
    middle, label = np.median(values, axis=1), f"window {window}, {kind} critic"
    if column == "noise_ratio":
        low, high = (np.array([pick(rows, column + end, m=m, **where) for m in drops]) for end in ("_low", "_high"))
        half = (high - low).max(axis=1) / 2
        ax.errorbar(drops, middle, yerr=half, fmt=style, marker="o", ms=3, capsize=2, color=colour, label=label)
    else:
        ax.plot(drops, middle, style, marker="o", ms=3, color=colour, label=label)
    ax.fill_between(drops, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.07)


def _draw_worth(ax: Any, rows: Rows, windows: Sequence[int], lams: Sequence[float], port: Port) -> None:
    """Draw the efficiency against m as a share of the estimator's memory, and where the port stands."""
    for window, marker in zip(windows, "osD^v", strict=False):
        for colour, lam in zip(PALETTE[2:], lams, strict=False):
            where = {"critic": "stale", "window": window, "lam": lam}
            drops = sorted(set(pick(rows, "m", **where)))
            values = np.array([pick(rows, "eta_ratio", m=m, **where) for m in drops])
            x, middle, label = np.array(drops) * (1 - lam), np.median(values, axis=1), f"window {window}, λ = {lam:g}"
            ax.plot(x, middle, "-" if window == windows[0] else ":", marker=marker, ms=3, color=colour, label=label)
            ax.fill_between(x, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.06)
    for share, why in zip(port.memory_shares(), (f"λ = {port.floor:g}", "adaptive λ"), strict=True):
        ax.axvline(share, color="k", lw=0.8, ls=":")
        ax.annotate(f"port, {why}", (share, 1.0), xycoords=("data", "axes fraction"), rotation=90, fontsize=7,
                    va="top", ha="right")  # fmt: skip
    ax.set(ylabel="efficiency / efficiency at m = 0", title="Bias and noise together, stale critic")
    ax.set_xlabel("m (1-λ): share of the estimator's memory")
