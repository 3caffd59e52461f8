"""What the study `bias` finds in its rows: numbers, a figure and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paper_repro.studies.exact.tables import COLOURS, CRITICS, ESTIMATORS, Rows, bars_by_critic, finish
from paper_repro.studies.intervals import Spread
from tppo.figures import PALETTE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The cell that findings quote: half-way in every list.
WINDOW, LAM, GAMMA = 16, 0.95, 1.0


@dataclass(frozen=True)
class Findings:
    """Biases over the tables, at the quoted window, lambda and gamma unless a name says otherwise.

    The unit is the RMS true advantage. Estimators and critics go by the names in data.csv.
    """

    exact: Mapping[str, Spread]  # estimator to its bias with an exact critic
    stale: Mapping[str, Spread]  # estimator to its bias with a stale critic
    steering: Mapping[str, Spread]  # estimator to the part of it that steers the policy
    spread_ratio: Spread  # spread of EGAE, repeat, over that of Monte Carlo, stale critic
    by_window: Mapping[int, Spread]  # of EGAE, repeat, with an exact critic
    by_lam: Mapping[float, Spread]  # the same
    by_place: Mapping[int, Spread]  # the same, by tokens left before the cut
    least_error: Mapping[str, str]  # critic to the estimator of the smallest median error
    discount: float  # the largest gamma below one
    discount_bias: Spread  # of GAE with that gamma and an exact critic, against the undiscounted objective


def measure(rows: Rows) -> Findings:
    """Compute the findings from the rows of data.csv."""
    windows, lams = _levels(rows, "window"), _levels(rows, "lam")
    discount = max(gamma for gamma in _levels(rows, "gamma") if gamma < 1.0)
    ratio = np.divide(cell(rows, "EGAE, repeat", "stale", "spread"), cell(rows, "Monte Carlo", "stale", "spread"))
    errors = {
        kind: {name: float(np.median(cell(rows, name, kind, "error"))) for name in ESTIMATORS} for kind in CRITICS
    }
    return Findings(
        exact={name: Spread.of(cell(rows, name, "exact")) for name in ESTIMATORS},
        stale={name: Spread.of(cell(rows, name, "stale")) for name in ESTIMATORS},
        steering={name: Spread.of(cell(rows, name, "stale", "steering_bias")) for name in ESTIMATORS},
        spread_ratio=Spread.of(ratio),
        by_window={w: Spread.of(cell(rows, "EGAE, repeat", "exact", window=w)) for w in windows},
        by_lam={lam: Spread.of(cell(rows, "EGAE, repeat", "exact", lam=lam)) for lam in lams},
        by_place={
            left: Spread.of(cell(rows, "EGAE, repeat", "exact", tokens_before_cut=left))
            for left in sorted(_levels(rows, "tokens_before_cut"))
        },
        least_error={kind: min(by_name, key=by_name.__getitem__) for kind, by_name in errors.items()},
        discount=discount,
        discount_bias=Spread.of(pick(rows, "task_bias", critic="exact", estimator="GAE", lam=LAM, gamma=discount)),
    )


def pick(rows: Rows, column: str = "bias", **where: Any) -> list[float]:
    """One column of the rows that match, in order; whole-window rows unless tokens_before_cut is asked for."""
    where = {"tokens_before_cut": None} | where
    return [row[column] for row in rows if all(row[key] == value for key, value in where.items())]


def cell(rows: Rows, estimator: str, kind: str, column: str = "bias", **where: Any) -> list[float]:
    """One value a table at the quoted cell: window and lambda where the estimator has them."""
    lam = None if estimator == "Monte Carlo" else where.pop("lam", LAM)
    window = where.pop("window", WINDOW) if ESTIMATORS[estimator][0] == "egae" else None
    at = {"critic": kind, "estimator": estimator, "window": window, "lam": lam, "gamma": GAMMA}
    return pick(rows, column, **(at | where))


def _levels(rows: Rows, column: str) -> list[Any]:
    """The values of a column that was varied, in the order of the grid."""
    return list(dict.fromkeys(row[column] for row in rows if row[column] is not None))


def say(found: Findings) -> tuple[str, list[str]]:
    """The answer, and further findings."""
    answer = (
        f"With an exact critic, a window of {WINDOW} and λ = {LAM:g}, EGAE with the repeated value has a bias of "
        f"**{found.exact['EGAE, repeat'].text()}** of the RMS true advantage, at most "
        f"{found.exact['EGAE, critic'].highest:.0e} with the critic's own V at the cut, and "
        f"{found.exact['EGAE, terminal'].text()} if the cut is taken for an end (median and range of four tables). "
        f"With a stale critic, the part of the bias that steers the policy is "
        f"**{found.steering['EGAE, repeat'].text()}** repeated, {found.steering['EGAE, critic'].text()} with the "
        f"critic's V and {found.steering['GAE'].text()} for GAE on whole responses, while the spread of EGAE is "
        f"{found.spread_ratio.text()} of that of Monte Carlo."
    )
    by_window = ", ".join(f"{spread.text()} at {window}" for window, spread in found.by_window.items())
    by_lam = ", ".join(f"{spread.text()} at {lam:g}" for lam, spread in found.by_lam.items())
    places = (0, 1, WINDOW // 2, WINDOW - 1)
    by_place = ", ".join(f"{found.by_place[left].text()} with {left} left" for left in places)
    smallest = "; ".join(f"{kind}: {name}" for kind, name in found.least_error.items())
    return answer, [
        f"Repeated value, exact critic, λ = {LAM:g}, by window: {by_window}.",
        f"The same, window {WINDOW}, by λ: {by_lam}. At λ = 0 the last token before the cut carries all of it.",
        f"By tokens left before the cut, exact critic: {by_place}.",
        f"The whole bias with a stale critic: {found.stale['EGAE, repeat'].text()} repeated, "
        f"{found.stale['EGAE, critic'].text()} critic, {found.stale['GAE'].text()} GAE. What exceeds the steering part "
        "is the same for all tokens of a state.",
        f"Smallest error per token (bias and variance together), λ = {LAM:g}, window {WINDOW}, by critic: {smallest}.",
        f"A discount of {found.discount:g} alone, with an exact critic and GAE, is a bias of "
        f"{found.discount_bias.text()} against the undiscounted objective.",
    ]


def caption(tables: int) -> str:
    """What the figure shows."""
    return (
        f"Bias in units of the RMS true advantage, γ = {GAMMA:g}. Lines and bars: median of {tables} tables; "
        f"bands and whiskers: lowest to highest. Top left: by distance from the cut, window {WINDOW}, λ = {LAM:g}. "
        "Top right: the part that differs between the tokens of a state, by critic, same window and λ. "
        "Bottom left: repeated value and exact critic, by window and λ. "
        f"Bottom right: that part against the spread with a stale critic, one point a λ, window {WINDOW}."
    )


def draw(rows: Rows, found: Findings) -> Figure:
    """Draw the four panels that `caption` describes."""
    figure = new_figure(10.5, 8)
    place, kinds, by_window, plane = figure.subplots(2, 2).flat
    _draw_places(place, rows)
    bars_by_critic(kinds, lambda estimator, kind: cell(rows, estimator, kind, "steering_bias"))
    kinds.set(ylabel="steering bias / RMS advantage", title=f"By critic, window {WINDOW}, λ = {LAM:g}")
    _draw_windows(by_window, rows, list(found.by_window), list(found.by_lam))
    _draw_plane(plane, rows, list(found.by_lam))
    finish((place, kinds, by_window, plane))
    return figure


def _draw_places(ax: Any, rows: Rows) -> None:
    """Draw the bias by tokens left before the cut."""
    lefts = range(WINDOW)
    for estimator in ("EGAE, terminal", "EGAE, repeat", "EGAE, critic"):
        for kind, style in (("exact", "-"), ("stale", "--")):
            colour, label = COLOURS[estimator], f"{estimator}, {kind} critic"
            values = np.array([cell(rows, estimator, kind, tokens_before_cut=left) for left in lefts])
            if values.max() < 1e-9:  # zero but for round-off: nowhere on a log scale
                ax.plot([], [], style, color=colour, label=f"{label}: zero")
                continue
            ax.plot(lefts, np.median(values, axis=1), style, color=colour, label=label)
            if kind == "exact":
                ax.fill_between(lefts, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.12)
    ax.set(
        xlabel="tokens left before the cut", ylabel="bias / RMS advantage", yscale="log", title="By place in the window"
    )
    ax.invert_xaxis()
    ax.legend(fontsize=7, ncols=2, loc="upper left")
    ax.set_ylim(top=ax.get_ylim()[1] * 6)


def _draw_windows(ax: Any, rows: Rows, windows: Sequence[int], lams: Sequence[float]) -> None:
    """Draw the bias of the repeated value with an exact critic by window, one line a lambda."""
    for colour, lam in zip(PALETTE, lams, strict=False):
        values = np.array([cell(rows, "EGAE, repeat", "exact", window=window, lam=lam) for window in windows])
        ax.plot(windows, np.median(values, axis=1), "o-", color=colour, label=f"λ = {lam:g}")
        ax.fill_between(windows, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.1)
    ax.set_xscale("log", base=2)
    ax.set_xticks(windows, [str(w) for w in windows])
    ax.set(
        xlabel="window [tokens]", ylabel="bias / RMS advantage", ylim=(0, None), title="Repeated value, exact critic"
    )


def _draw_plane(ax: Any, rows: Rows, lams: Sequence[float]) -> None:
    """Draw the steering bias against the spread with a stale critic, one line an estimator and one point a lambda."""
    for estimator in ESTIMATORS:
        shown: Sequence[float | None] = [None] if estimator == "Monte Carlo" else lams
        x, y = (
            [float(np.median(cell(rows, estimator, "stale", column, lam=lam))) for lam in shown]
            for column in ("spread", "steering_bias")
        )
        ax.plot(x, y, "o-", color=COLOURS[estimator], label=estimator, ms=4)
        if estimator == "GAE":
            for lam, at in zip(lams, zip(x, y, strict=True), strict=True):
                ax.annotate(f"λ = {lam:g}", at, fontsize=7, xytext=(-3, -11), ha="right", textcoords="offset points")
    ax.set(xlabel="spread / RMS advantage", ylabel="steering bias / RMS advantage", title="Stale critic")
