"""The figure of the study `clock`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from paper_repro.studies.time.cells import CAP, Grid, Rows
from paper_repro.studies.time.clock_findings import CLAIM, Findings
from sim.clock.simulate import PHASES
from tppo.figures import BLACK, PALETTE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")
ENGINES = {"torch": ("embedded engine", "o"), "vllm": ("vLLM", "s")}


def draw(rows: Rows, found: Findings) -> Figure:
    """Draw speed-up by window, seconds by phase, and predicted against measured seconds."""
    figure = new_figure(15, 4.8)
    axes = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    _speed_up(axes[0], rows, found.grid)
    _phases(axes[1], rows, found)
    _predicted(axes[2], rows, found)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _speed_up(ax: Any, rows: Rows, grid: Grid) -> None:
    """Draw the speed-up by window, one line a tail and number of slots."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullLocator

    shown = grid.slots if len(grid.slots) <= 3 else (grid.slots[1], grid.slots[len(grid.slots) // 2], grid.slots[-1])
    sigmas = grid.sigmas if len(grid.sigmas) <= 3 else grid.sigmas[1::2]
    for sigma, colour in zip(sigmas, PALETTE, strict=False):
        for slots, style in zip(shown, STYLES, strict=False):
            y_WN = [
                [r["speed_up"] for r in rows if r["kind"] == "speed-up" and (r["sigma"], r["slots"], r["window"]) ==
                 (sigma, slots, w)] for w in grid.windows
            ]  # fmt: skip
            ax.plot(grid.windows, np.mean(y_WN, axis=1), style, color=colour, lw=1.8)
            ax.fill_between(grid.windows, np.min(y_WN, axis=1), np.max(y_WN, axis=1), color=colour, alpha=0.15, lw=0)
    ax.axhline(1, color="k", lw=0.8)
    ax.axhline(CLAIM, color="k", lw=0.8, ls=":")
    ax.set_xscale("log", base=2)
    ax.set_xticks(grid.windows, [f"{w:,}" if w < CAP else f"{w:,}\n(PPO)" for w in grid.windows], fontsize=8)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(
        title="T-PPO over PPO, trained tokens a second",
        xlabel="window [tokens]",
        ylabel="speed-up [times]",
        ylim=(0, None),
    )
    handles = [Line2D([], [], color=c, lw=2, label=f"tail σ = {s:g}") for s, c in zip(sigmas, PALETTE, strict=False)]
    handles += [
        Line2D([], [], color="k", ls=style, label=f"{n:,} slots") for n, style in zip(shown, STYLES, strict=False)
    ]
    ax.legend(handles=handles, fontsize=8, ncols=2)
    ax.grid(alpha=0.25)


def _phases(ax: Any, rows: Rows, found: Findings) -> None:
    """Draw the seconds of each phase for a million trained tokens, one bar a schedule."""
    names = list(found.phases)
    bottom = np.zeros(len(names))
    for phase, colour in zip(PHASES, (BLACK, *PALETTE), strict=False):
        y = np.array([
            np.mean([r[f"{phase}_s_per_million"] for r in rows if r["kind"] == "phases" and r["schedule"] == name])
            for name in names
        ])  # fmt: skip
        ax.bar(names, y, bottom=bottom, color=colour, label=phase.replace("_", " "), width=0.75)
        bottom += y
    totals = [
        [sum(r[f"{p}_s_per_million"] for p in PHASES) for r in rows if r["kind"] == "phases" and r["schedule"] == name]
        for name in names
    ]
    middle = np.mean(totals, axis=1)
    error = [middle - np.min(totals, axis=1), np.max(totals, axis=1) - middle]
    ax.errorbar(names, middle, yerr=error, fmt="none", ecolor="k", capsize=3, lw=1, label="range of the seeds")
    sigma, slots, _ = found.grid.reference
    ax.set(title=f"Where the time goes ({slots:,} slots, σ = {sigma:g})", ylabel="seconds a million trained tokens [s]")
    ax.tick_params(axis="x", labelrotation=35, labelsize=8)
    for label in ax.get_xticklabels():
        label.set_ha("right")
        label.set_rotation_mode("anchor")
    ax.set_ylim(0, 1.05 * max(np.max(totals), 1e-9))
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], labels[::-1], fontsize=7.5, loc="upper right")


def _predicted(ax: Any, rows: Rows, found: Findings) -> None:
    """Draw predicted against measured seconds of the schedules that no price was fitted to."""
    from matplotlib.ticker import NullFormatter

    low, high = np.inf, 0.0
    for (engine, check), colour in zip(found.engines.items(), PALETTE, strict=False):
        mine = [r for r in rows if (r["kind"], r["engine"], r["split"]) == ("validation", engine, "check")]
        x, y = np.array([r["measured_s"] for r in mine]), np.array([r["predicted_s"] for r in mine])
        spread = [x - [r["lowest_s"] for r in mine], [r["highest_s"] for r in mine] - x]
        name, marker = ENGINES[engine]
        label = f"{name}: median error {check.error:.1%}"
        ax.errorbar(x, y, xerr=spread, fmt=marker, ms=5, color=colour, elinewidth=0.8, capsize=2, label=label)
        low, high = min(low, *x, *y), max(high, *x, *y)
    line = np.array([low * 0.8, high * 1.25])
    ax.plot(line, line, color="k", lw=0.8)
    ax.fill_between(line, 0.9 * line, 1.1 * line, color="k", alpha=0.12, lw=0, label="±10%")
    ax.set(
        xscale="log", yscale="log", xlim=line, ylim=line, title="Schedules that no price was fitted to",
        xlabel="measured CPU time of a run [s]", ylabel="predicted [s]",
    )  # fmt: skip
    ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if line[0] <= t <= line[1]]
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(ticks, [f"{t:g}" for t in ticks])
        axis.set_minor_formatter(NullFormatter())
    ax.legend(fontsize=8, loc="upper left")
    ax.grid(alpha=0.25, which="both")
