"""How the learning studies draw: curves with bands against a clock, and intervals side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from paper_repro.studies.intervals import Interval
from paper_repro.studies.learning.bootstrap import band
from paper_repro.studies.learning.trials import Clock, Row, on_grid
from tppo.figures import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS: dict[str, str] = {
    "step": "training steps",
    "tokens": "generated tokens [thousands]",
    "decode_steps": "clock time [decode steps]",
    "exact_return": "exact return of the policy",
}


def draw_curves(
    ax: Axes,
    variants: Mapping[str, Sequence[Sequence[Row]]],
    clock: Clock,
    *,
    end: float | None = None,
    points: int = 60,
) -> None:
    """Draw the exact return of each variant against a clock, to where its shortest run ends."""
    scale = 1e-3 if clock == "tokens" else 1.0
    for i, (name, runs) in enumerate(variants.items()):
        last = min(run[-1][clock] for run in runs)
        grid_X = np.linspace(0, last if end is None else min(last, end), points)
        draw_band(ax, grid_X * scale, on_grid(runs, clock, grid_X), i, name)
    ax.set(xlabel=LABELS[clock], xlim=(0, None))
    tidy(ax)


def draw_band(ax: Axes, x: ArrayLike, scores_RX: ArrayLike, number: int, name: str | None = None) -> None:
    """Draw the interquartile mean of runs and its interval. number: of the variant, which has its own colour."""
    curve = band(scores_RX, resamples=500)
    colour, style = PALETTE[number % len(PALETTE)], "-" if number < len(PALETTE) else "--"
    ax.plot(x, curve.mid_X, color=colour, ls=style, lw=1.6, label=name)
    ax.fill_between(x, curve.low_X, curve.high_X, color=colour, alpha=0.18, lw=0)


def draw_intervals(ax: Axes, bars: Mapping[str, Interval], label: str) -> None:
    """Draw one line a variant, the first on top: estimate and interval."""
    names = list(bars)
    for i, name in enumerate(names):
        mid, low, high = bars[name]
        # With few runs the estimate of a ratio may lie outside its percentile interval.
        error = [[max(mid - low, 0.0)], [max(high - mid, 0.0)]]
        ax.errorbar(mid, i, xerr=error, fmt="o", color=PALETTE[i % len(PALETTE)], capsize=3, ms=5)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel(label)
    ax.locator_params(axis="x", nbins=6)
    tidy(ax)


def draw_target(ax: Axes, target: float) -> None:
    """Draw the return that runs are to reach."""
    ax.axhline(target, color="k", lw=0.8, ls=":")


def tidy(ax: Axes) -> None:
    """Give a panel a light grid and no box."""
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
