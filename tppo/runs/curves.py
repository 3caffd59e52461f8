"""The figure beside every run."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from tppo.figures import BLUE, GREEN, GREY, ORANGE, PALETTE, PINK, RED, new_figure, save_figure


def draw_curves(rows: list[dict[str, Any]], summary: dict[str, Any], path: Path) -> None:
    """Six panels over training steps: what was learned, what it cost, what the algorithm did. Nothing if no step."""
    if not rows:
        return
    figure = new_figure(13, 7.2)
    axes = figure.subplots(2, 3)
    for draw, ax in zip((_solved, _lengths, _slots, _critic, _trust, _time), axes.flat, strict=True):
        draw(ax, rows, summary)
        ax.set_xlabel("training step")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    minutes = summary.get("train_seconds", 0.0) / 60
    figure.suptitle(
        f"{summary.get('recipe', '')} ({summary.get('algorithm', '')}, seed {summary.get('seed', '')}): "
        f"{len(rows)} steps, {rows[-1].get('tokens_generated', 0):,} tokens, {minutes:.1f} min of training"
        + (" (interrupted)" if summary.get("interrupted") else ""),
        fontsize=12,
    )
    save_figure(figure, path)


def _series(rows: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(r["step"] + 1, r[name]) for r in rows if r.get(name) is not None]
    x, y = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(x, dtype=float), np.array(y, dtype=float)


def _smooth(y: np.ndarray) -> np.ndarray:
    """Centred moving average over about a thirtieth of the run; the ends average over what there is."""
    width = max(1, len(y) // 30) // 2 * 2 + 1
    kernel = np.ones(width)
    return np.convolve(y, kernel, "same") / np.convolve(np.ones(len(y)), kernel, "same") if len(y) else y


def _line(ax: Any, rows: list[dict[str, Any]], name: str, label: str, color: str, style: str = "-") -> bool:
    x, y = _series(rows, name)
    if len(x):
        ax.plot(x, y, color=color, alpha=0.2, lw=0.8)
        ax.plot(x, _smooth(y), style, color=color, label=label, lw=1.8)
    return bool(len(x))


def _legend(ax: Any, **style: Any) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(**style)


def _solved(ax: Any, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    _line(ax, rows, "solve_rate", "training batch, finished responses", GREY)
    x, y = _series(rows, "held_out_solve_rate")
    # One problem has no standard error.
    error = np.array(
        [r.get("held_out_standard_error") or 0.0 for r in rows if r.get("held_out_solve_rate") is not None]
    )
    if summary.get("solve_rate_base") is not None:
        x, y = np.r_[0, x], np.r_[summary["solve_rate_base"], y]
        error = np.r_[summary.get("solve_rate_base_se") or 0.0, error]
    if summary.get("solve_rate_final") is not None and (not len(x) or x[-1] < rows[-1]["step"] + 1):
        x, y = np.r_[x, rows[-1]["step"] + 1], np.r_[y, summary["solve_rate_final"]]
        error = np.r_[error, summary.get("solve_rate_final_se") or 0.0]
    label = "held-out, 95% interval"
    ax.errorbar(x, y, yerr=1.96 * error, color=BLUE, marker="o", ms=4, capsize=2, label=label, lw=1.8)
    ax.set(title="Problems solved", ylabel="share solved", ylim=(0, 1.02))
    _legend(ax, loc="lower right", fontsize=8)


def _lengths(ax: Any, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    _line(ax, rows, "length_max", "longest", RED)
    _line(ax, rows, "length_p99", "99th percentile", ORANGE)
    _line(ax, rows, "length_mean", "mean", BLUE)
    _line(ax, rows, "length_median", "median", GREEN)
    ax.set(title="Length of finished responses", ylabel="tokens (log scale)", yscale="log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())
    _legend(ax, fontsize=8)


def _slots(ax: Any, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    x, finished = _series(rows, "finished")
    _, unfinished = _series(rows, "unfinished")
    ax.stackplot(
        x, _smooth(finished), _smooth(unfinished), colors=[BLUE, ORANGE], alpha=0.75,
        labels=["finished", "carried to the next step"],
    )  # fmt: skip
    ax.set(title="Slots", ylabel="responses", ylim=(0, None), xlim=(x[0], max(x[-1], x[0] + 1)))
    _legend(ax, loc="lower right", fontsize=8)


def _critic(ax: Any, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    if not any("critic_loss" in row for row in rows):
        ax.set_title("No critic")
        ax.text(0.5, 0.5, "this algorithm has none", ha="center", transform=ax.transAxes)
        return
    _line(ax, rows, "explained_variance_finished", "tokens of the last window", BLUE)
    _line(ax, rows, "explained_variance_unfinished", "tokens sampled before the end was seen", ORANGE)
    ax.axhline(0, color="k", lw=0.6)
    ax.set(title="Critic: explained variance of the return", ylabel="explained variance", ylim=(-1, 1.02))
    _legend(ax, loc="lower right", fontsize=8)


def _trust(ax: Any, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """What a part of an algorithm does not report has no line; where nothing is reported the panel says so."""
    _line(ax, rows, "entropy", "entropy [nats]", BLUE)
    ax.set(title="Policy: entropy (left), KL and clipping (right)", ylabel="entropy [nats]", ylim=(0, None))
    twin = ax.twinx()
    _line(twin, rows, "policy_kl", "KL of the update [nats]", RED)
    _line(twin, rows, "clip_fraction_high", "clipped above", ORANGE, "--")
    _line(twin, rows, "clip_fraction_low", "clipped below", GREEN, "--")
    _line(twin, rows, "bounded_fraction", "weight bounded", PINK, "--")
    twin.set(ylabel="KL [nats], share of tokens", ylim=(0, None))
    twin.spines["top"].set_visible(False)
    lines = [*ax.get_lines(), *twin.get_lines()]
    named = [line for line in lines if not line.get_label().startswith("_")]
    if named:
        ax.legend(named, [line.get_label() for line in named], fontsize=8)
    else:
        ax.text(0.5, 0.5, "this algorithm reports none", ha="center", transform=ax.transAxes)


_PHASES = {
    "generate": BLUE, "critic": GREEN, "logprobs": GREY, "update_critic": ORANGE, "update_policy": PINK,
}  # fmt: skip


def _time(ax: Any, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    names = dict.fromkeys(key for row in rows for key in row if key.startswith("seconds_"))
    phases = [key.removeprefix("seconds_") for key in names if key not in ("seconds_step", "seconds_checkpoint")]
    x = np.array([r["step"] + 1 for r in rows], dtype=float)
    seconds = {p: np.array([r.get(f"seconds_{p}") or 0.0 for r in rows]) for p in phases}
    whole = sum(float(s.sum()) for s in seconds.values())
    phases = [p for p in phases if seconds[p].sum() >= 1e-3 * whole]  # a thinner band cannot be seen
    free = itertools.cycle([c for c in PALETTE if c not in {_PHASES.get(p) for p in phases}])
    colours = [_PHASES.get(p) or next(free) for p in phases]
    y = [_smooth(seconds[p]) for p in phases]
    ax.stackplot(x, *y, colors=colours, alpha=0.75, labels=[p.replace("_", " ") for p in phases])
    ax.set(title="Time of a step by phase", ylabel="seconds", ylim=(0, None), xlim=(x[0], max(x[-1], x[0] + 1)))
    ax.legend(fontsize=8, ncols=2)
