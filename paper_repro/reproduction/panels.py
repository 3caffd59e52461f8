"""The panels of ``paper_repro.reproduction.figures``: each draws runs into one matplotlib axes,
and says in its title what it shows.

Colour is the group (runs that differ by the seed alone), line style the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from paper_repro.reproduction.records import RunRecord
from tppo.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, YELLOW

COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK, GREY)
STYLES = ("-", "--", ":", "-.")
PHASES = {
    "generate": BLUE, "load_policy": SKY, "grade": YELLOW, "critic": GREEN,
    "logprobs": GREY, "update_critic": ORANGE, "update_policy": PINK, "rest": "#D0D0D0",
}  # fmt: skip
Panel = Callable[[Any, Sequence[RunRecord]], None]


def look(runs: Sequence[RunRecord]) -> dict[str, dict[str, Any]]:
    """Label of a run to its colour and line style."""
    groups = list(dict.fromkeys(run.group for run in runs))
    styles: dict[str, dict[str, Any]] = {}
    for i, group in enumerate(groups):
        for j, run in enumerate(run for run in runs if run.group == group):
            styles[run.label] = {"color": COLOURS[i % len(COLOURS)], "ls": STYLES[j % len(STYLES)]}
    return styles


def smooth(y: np.ndarray) -> np.ndarray:
    """Centred moving average over about a twentieth of the run; the ends average over what there is.

    >>> smooth(np.array([1.0, 2.0, 3.0])).tolist()
    [1.0, 2.0, 3.0]
    """
    width = max(1, len(y) // 20) // 2 * 2 + 1
    kernel = np.ones(width)
    return np.convolve(y, kernel, "same") / np.convolve(np.ones(len(y)), kernel, "same") if len(y) else y


def time_unit(runs: Sequence[RunRecord]) -> tuple[float, str]:
    """Seconds in the unit of the time axis, and its name."""
    longest = max(run.points[-1].seconds for run in runs)
    return (1.0, "s") if longest < 180 else (60.0, "min") if longest < 7200 else (3600.0, "h")


def score_by_steps(ax: Any, runs: Sequence[RunRecord]) -> None:
    """Held-out score against steps."""
    _score(ax, runs, "step", 1.0)
    ax.set(title="Held-out score by steps", xlabel="training steps")


def score_by_time(ax: Any, runs: Sequence[RunRecord]) -> None:
    """Held-out score against training time."""
    scale, unit = time_unit(runs)
    _score(ax, runs, "seconds", scale)
    ax.set(title="Held-out score by training time", xlabel=f"training time, evaluation left out [{unit}]")


def score_by_tokens(ax: Any, runs: Sequence[RunRecord]) -> None:
    """Held-out score against generated tokens."""
    largest = max(run.points[-1].tokens for run in runs)
    scale, unit = (1.0, "tokens") if largest < 1e4 else (1e3, "thousand tokens") if largest < 1e7 else (1e6, "million")
    _score(ax, runs, "tokens", scale)
    ax.set(title="Held-out score by tokens", xlabel=f"tokens generated in training [{unit}]")


def lengths(ax: Any, runs: Sequence[RunRecord]) -> None:
    """Length of finished responses: mean as a line, 99th percentile as a faint one."""
    styles = look(runs)
    for run in runs:
        x, y = _series(run, "length_mean")
        ax.plot(x, smooth(y), lw=1.8, **styles[run.label])
        x, y = _series(run, "length_p99")
        ax.plot(x, smooth(y), lw=1.0, alpha=0.45, **styles[run.label])
    ax.set(
        title="Response length\n(thick: mean, faint: 99th percentile)", xlabel="training steps",
        ylabel="tokens of finished responses", ylim=(0, None),
    )  # fmt: skip


def time_by_phase(ax: Any, runs: Sequence[RunRecord]) -> None:
    """Mean seconds of a step by phase, a bar a run; the whisker is the 10th to 90th percentile of a step."""
    names, height = [run.label for run in runs], 0.62
    longest = max(sum(phase_seconds(run).values()) for run in runs)
    for i, run in enumerate(runs):
        left, total = 0.0, float(np.mean([row.get("seconds_step") or 0.0 for row in run.rows]))
        steps = np.array([row.get("seconds_step") or 0.0 for row in run.rows])
        for phase, seconds in phase_seconds(run).items():
            label = phase.replace("_", " ") if i == 0 else None
            ax.barh(i, seconds, height, left=left, color=PHASES[phase], label=label, edgecolor="white", lw=0.4)
            if seconds > 0.09 * longest:  # else there is no room for it
                ax.text(left + seconds / 2, i, f"{seconds / total:.0%}", ha="center", va="center", fontsize=8)
            left += seconds
        low, high = np.percentile(steps, [10, 90])
        ax.plot([low, high], [i + height / 2 + 0.07] * 2, color="k", lw=1.2)
    ax.set(
        title="Where the time of a step goes\n(line below a bar: 10th to 90th percentile)",
        xlabel="seconds of a step, mean", yticks=range(len(runs)), yticklabels=names, ylim=(len(runs) - 0.4, -0.6),
        xlim=(0, None),
    )  # fmt: skip
    ax.tick_params(axis="y", labelsize=8)
    ax.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)


def phase_seconds(run: RunRecord) -> dict[str, float]:
    """Phase to mean seconds a step; 'rest' is what no phase claims."""
    mean = lambda name: float(np.mean([row.get(name) or 0.0 for row in run.rows]))  # noqa: E731
    out = {phase: mean(f"seconds_{phase}") for phase in PHASES if phase != "rest"}
    return out | {"rest": max(0.0, mean("seconds_step") - sum(out.values()))}


def carried_over(ax: Any, runs: Sequence[RunRecord]) -> None:
    """Share of slots whose response goes on in the next step."""
    styles = look(runs)
    for run in runs:
        x, y = _series(run, "unfinished")
        _raw_and_smooth(ax, x, y / run.slots, styles[run.label])
    ax.set(
        title="Unfinished responses carried over", xlabel="training steps", ylabel="share of slots", ylim=(-0.02, 1.02)
    )


def generation_rate(ax: Any, runs: Sequence[RunRecord]) -> None:
    """Tokens per second while generating."""
    styles = look(runs)
    for run in runs:
        x, y = _series(run, "tokens_per_second_generate")
        _raw_and_smooth(ax, x, y, styles[run.label])
    ax.set(
        title="Speed of generation", xlabel="training steps", ylabel="tokens per second of generation", ylim=(0, None)
    )


def critic(ax: Any, runs: Sequence[RunRecord]) -> None:
    """Explained variance of the Monte-Carlo return."""
    styles = look(runs)
    for run in runs:
        x, y = _series(run, "explained_variance_finished")
        _raw_and_smooth(ax, x, np.clip(y, -1.5, None), styles[run.label])
    ax.axhline(0, color="k", lw=0.6)
    ax.set(
        title="Critic: explained variance of the return", xlabel="training steps",
        ylabel="explained variance, last window of\nresponses that finished", ylim=(-1, 1.02),
    )  # fmt: skip


PANELS: dict[str, Panel] = {
    "score-by-steps": score_by_steps,
    "score-by-time": score_by_time,
    "score-by-tokens": score_by_tokens,
    "response-length": lengths,
    "time-by-phase": time_by_phase,
    "carried-over": carried_over,
    "generation-rate": generation_rate,
    "critic": critic,
}


def _score(ax: Any, runs: Sequence[RunRecord], along: str, scale: float) -> None:
    styles = look(runs)
    for run in runs:
        x = np.array([getattr(point, along) for point in run.points]) / scale
        y = np.array([point.rate for point in run.points])
        error = np.array([point.error or 0.0 for point in run.points])
        colour = styles[run.label]["color"]
        ax.plot(x, y, marker="o", ms=3.5, lw=1.8, **styles[run.label])
        if len(x) == 1:
            ax.errorbar(x, y, yerr=error, color=colour, capsize=3)
        ax.fill_between(x, np.clip(y - error, 0, 1), np.clip(y + error, 0, 1), color=colour, alpha=0.15, lw=0)
    ax.set(ylabel="share of problems solved\n(band: ± 1 standard error)", ylim=(0, 1.02), xlim=(0, None))


def _series(run: RunRecord, name: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row["step"] + 1, row[name]) for row in run.rows if row.get(name) is not None]
    x, y = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(x, dtype=float), np.array(y, dtype=float)


def _raw_and_smooth(ax: Any, x: np.ndarray, y: np.ndarray, style: dict[str, Any]) -> None:
    ax.plot(x, y, lw=0.7, alpha=0.25, color=style["color"])
    ax.plot(x, smooth(y), lw=1.8, **style)
