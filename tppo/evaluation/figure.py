"""Figures of an evaluation: rates and lengths of every problem, and the comparison of two runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tppo.evaluation.paired import Paired
from tppo.evaluation.report import EvalReport
from tppo.evaluation.store import Generation
from tppo.figures import BLUE, GREEN, GREY, ORANGE, RED, new_figure, save_figure

NAMED = 45
"""Up to so many problems their names stand on the axis."""


def _short(problem: str) -> str:
    name = problem.rpartition("/")[2]
    return name if len(name) <= 12 else name[:11] + "…"


def draw_report(report: EvalReport, responses: Sequence[Sequence[Generation]], cap: int, path: Path) -> None:
    """Problems sorted by rate: above their rates, below the lengths of their responses; the scores on the right.

    responses: [problem][sample].
    cap: the most tokens that a response could have.
    """
    figure = new_figure(14, 7.6)
    grid = figure.add_gridspec(2, 2, width_ratios=(3.2, 1), height_ratios=(1, 1))
    rates = figure.add_subplot(grid[0, 0])
    lengths = figure.add_subplot(grid[1, 0], sharex=rates)
    order = sorted(range(len(report.problems)), key=lambda i: (-report.problems[i].rate, report.problems[i].length))
    _rates(rates, report, order)
    bins = np.linspace(0, cap * (1 + 1e-9), 41)
    _lengths(lengths, responses, order, cap)
    _scores(figure.add_subplot(grid[0, 1]), report)
    _histogram(figure.add_subplot(grid[1, 1], sharey=lengths), responses, bins)
    few = len(order) <= NAMED
    if few:
        lengths.set_xticks(range(len(order)), [_short(report.problems[i].problem) for i in order], rotation=90)
    lengths.set_xlabel("problem" if few else "rank of the problem by its rate")
    rates.tick_params(labelbottom=False)
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    figure.suptitle(f"{report.name}: {len(order)} problems, {report.samples} samples each")
    save_figure(figure, path)


def _rates(ax: Any, report: EvalReport, order: list[int]) -> None:
    problems = [report.problems[i] for i in order]
    x = np.arange(len(problems))
    y = np.array([p.rate for p in problems])
    low, high = np.array([p.interval for p in problems]).T
    label = "95% Wilson interval of a problem"
    if len(problems) <= NAMED:
        ax.vlines(x, low, high, color=BLUE, alpha=0.45, lw=3, label=label)
        ax.plot(x, y, "o", color=BLUE, ms=5, zorder=3, label="share of right samples")
    else:
        ax.fill_between(x, low, high, step="mid", color=BLUE, alpha=0.2, lw=0, label=label)
        ax.step(x, y, where="mid", color=BLUE, lw=1.8, label="share of right samples")
    score = report.scores[0]
    ax.axhline(score.value, color=ORANGE, lw=1.5, label=f"{score.name} = {score.value:.3f}")
    ax.set(title="Rate of each problem", ylabel="share right", ylim=(-0.03, 1.03), xlim=(-0.7, len(x) - 0.3))
    ax.legend(fontsize=8, loc="upper right")


def _kinds(responses: Sequence[Sequence[Generation]], order: Sequence[int]) -> list[tuple[str, str, np.ndarray]]:
    """(label, colour, [place, tokens] of each response) by how it ended."""
    kinds: dict[str, tuple[str, list[tuple[int, int]]]] = {
        "right": (GREEN, []), "wrong": (GREY, []), "cut at the cap, not right": (RED, [])
    }  # fmt: skip
    for place, i in enumerate(order):
        for g in responses[i]:
            kind = "right" if g.correct else "wrong" if g.finish == "stop" else "cut at the cap, not right"
            kinds[kind][1].append((place, g.tokens))
    return [(label, color, np.array(points).reshape(-1, 2)) for label, (color, points) in kinds.items()]


def _lengths(ax: Any, responses: Sequence[Sequence[Generation]], order: list[int], cap: int) -> None:
    count = sum(len(row) for row in responses)
    size, alpha = (22, 0.75) if count <= 400 else (8, 0.5) if count <= 4000 else (3, 0.3)
    # Right ones last, on top: they are the rare ones where it matters.
    for label, color, points in reversed(_kinds(responses, order)):
        ax.scatter(points[:, 0], points[:, 1], s=size, color=color, alpha=alpha, lw=0, label=f"{label} ({len(points)})")
    means = [float(np.mean([g.tokens for g in responses[i]])) for i in order]
    ax.plot(range(len(order)), means, color="k", lw=0.9, alpha=0.7, label="mean of the problem")
    ax.axhline(cap, color="k", lw=0.8, ls="--", label=f"cap, {cap} tokens")
    ax.set(title="Lengths of its responses", ylabel="response length [tokens]", ylim=(0, 1.42 * cap))
    ax.set_yticks([t for t in ax.get_yticks() if t <= cap * 1.001])
    ax.legend(fontsize=8, loc="upper right", ncols=3)


def _scores(ax: Any, report: EvalReport) -> None:
    scores = list(report.scores)
    if len(scores) > 9:  # the first, the last and the middle say it
        kinds = [[s for s in scores if s.name.startswith(kind)] for kind in ("avg", "pass", "maj")]
        scores = [s for group in kinds for s in group[-4:]]
    y = np.arange(len(scores))
    for offset, field, color, label in (
        (-0.13, "interval_total", ORANGE, "new problems"),
        (0.13, "interval_sampling", BLUE, "same problems, new samples"),
    ):
        ends = np.array([getattr(s, field) for s in scores])
        if np.isfinite(ends).all():
            ax.hlines(y + offset, ends[:, 0], ends[:, 1], color=color, lw=3, label=f"95%, {label}")
    ax.plot([s.value for s in scores], y, "kD", ms=4)
    ax.set_yticks(y, [s.name for s in scores])
    ax.set(
        title="Scores", xlabel="score", xlim=(-0.02, 1.02), ylim=(len(scores) - 0.4, -0.6 - 0.12 * len(scores) - 0.3)
    )
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8, loc="upper right")


def _histogram(ax: Any, responses: Sequence[Sequence[Generation]], bins: np.ndarray) -> None:
    kinds = _kinds(responses, range(len(responses)))
    ax.hist(
        [points[:, 1] for _, _, points in kinds], bins=bins, stacked=True, orientation="horizontal",
        color=[color for _, color, _ in kinds], alpha=0.8,
    )  # fmt: skip
    ax.set(title="All lengths", xlabel="responses")
    ax.tick_params(labelleft=False)


def draw_comparison(paired: Paired, name_a: str, name_b: str, path: Path) -> None:
    """Left the rates of each problem in both runs, right the differences sorted, with both intervals of their mean."""
    figure = new_figure(13, 5.6)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    d = np.array(paired.differences)
    x = np.arange(len(d))
    right.bar(x, np.sort(d)[::-1], color=np.where(np.sort(d)[::-1] >= 0, BLUE, RED), width=1.0, lw=0)
    right.axhline(
        paired.difference, color="k", lw=1.2, label=f"mean {paired.difference:+.3f}, p = {paired.p_value:.3g}"
    )
    for ends, color, label in (
        (paired.interval_total, ORANGE, "new problems"),
        (paired.interval_sampling, GREEN, "same problems, new samples"),
    ):
        if not math.isnan(ends[0]):
            right.axhspan(*ends, color=color, alpha=0.22, lw=0, label=f"95% of the mean, {label}")
    right.set(title="Difference of each problem, sorted", xlabel="rank of the problem", ylabel="rate of A - rate of B")
    right.set(ylim=(-1.05, 1.05), xlim=(-0.7, len(d) - 0.3))
    right.legend(fontsize=8)
    pairs, counts = np.unique(np.round(np.array([paired.rates_b, paired.rates_a]).T, 9), axis=0, return_counts=True)
    left.scatter(pairs[:, 0], pairs[:, 1], s=14 + 160 * counts / counts.max(), color=BLUE, alpha=0.6, lw=0)
    for (at_x, at_y), n in zip(pairs, counts, strict=True):
        if len(pairs) <= 60 and n > 1:
            left.annotate(str(n), (at_x, at_y), xytext=(7, 5), textcoords="offset points", fontsize=8)
    left.plot([0, 1], [0, 1], color="k", lw=0.8, ls="--", label="equal")
    left.plot(paired.mean_b, paired.mean_a, "D", color=ORANGE, ms=8, label="means", mec="k")
    left.set(title="Rate of each problem (number: problems)", xlabel=f"B = {name_b}", ylabel=f"A = {name_a}")
    left.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), aspect="equal")
    left.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2)  # every corner may hold problems
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    save_figure(figure, path)
