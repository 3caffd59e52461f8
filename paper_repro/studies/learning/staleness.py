"""T-PPO against partial rollouts that wait for the end of a response and correct for the older policies in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from paper_repro.studies.learning.bootstrap import compare, interval, interval_limit
from paper_repro.studies.learning.trials import (
    LABELS,
    Row,
    Trial,
    Truth,
    by_variant,
    draw_curves,
    draw_intervals,
    heavy_tailed,
    on_grid,
    train_all,
)
from paper_repro.studies.learning.variants import ppo, tppo, waiting, waiting_behaviour
from tppo.algorithms import Algorithm
from tppo.figures import new_figure
from tppo.studies.study import Study, StudyOptions, StudyResult, Ticks

if TYPE_CHECKING:
    from tppo.loop.trainer import Trainer

WINDOW = 4
DECODE_STEPS = 480
RATES = (0.05, 0.2)
UNCAPPED = 1e9  # importance weights of a run are far below
TPPO, PPO, DECOUPLED = "T-PPO", "PPO", "wait, decoupled"
VARIANTS: dict[str, Algorithm] = {
    TPPO: tppo(WINDOW),
    "wait, uncorrected": waiting(WINDOW),
    "wait, ratio to behaviour": waiting_behaviour(WINDOW),
    DECOUPLED: waiting(WINDOW, importance_cap=UNCAPPED),
    "wait, decoupled, cap 2": waiting(WINDOW, importance_cap=2.0),
    PPO: ppo(),
}


def age(trainer: Trainer, metrics: Row, truth: Truth) -> Row:
    """Versions that lie between the policy and the oldest token of the responses that finished in this step."""
    return {"oldest_version": metrics["target_version_span"]}


def label(name: str, rate: float) -> str:
    """Variant and learning rate of the policy, as data.csv names them."""
    return f"{name} @ {rate:g}"


def plan(options: StudyOptions) -> list[Trial]:
    """Every variant at every learning rate with every seed, all for the same clock time."""
    end = 2 * DECODE_STEPS if options.full else DECODE_STEPS
    return [
        Trial(
            label(name, rate),
            heavy_tailed(algorithm, seed=seed, rate=rate),
            ("decode_steps", end),
            points=20,
            observe=age,
        )
        for rate in RATES
        for name, algorithm in VARIANTS.items()
        for seed in range(options.seed, options.seed + options.seeds)
    ]


def run(options: StudyOptions, progress: Ticks) -> StudyResult:
    """Train every variant for the same clock time."""
    return result(train_all(plan(options), progress))


def result(rows: list[Row]) -> StudyResult:
    """What the rows say."""
    runs = by_variant(rows)
    # A run ends with the first step past the clock's end; all are read at the earliest end.
    end = min(run[-1]["decode_steps"] for group in runs.values() for run in group)
    seeds = len(runs[label(TPPO, RATES[0])])
    figure = new_figure(13, 7.6)
    axes = figure.subplots(len(RATES), 2, width_ratios=(1.6, 1))
    final = {name: on_grid(runs[name], "decode_steps", [end])[:, 0] for name in runs}
    area = {
        name: on_grid(runs[name], "decode_steps", np.linspace(0, end, 101)).mean(axis=1) for name in runs
    }  # mean over the clock: how soon, not only how far
    for ax, rate in zip(axes, RATES, strict=True):
        group = {name: runs[label(name, rate)] for name in VARIANTS}
        draw_curves(ax[0], group, "decode_steps", end=end)
        ax[0].set(ylabel=LABELS["exact_return"], title=f"policy learning rate {rate:g}")
        ax[0].legend(fontsize=8, loc="lower right")
        bars = {name: interval(area[label(name, rate)]) for name in VARIANTS}
        draw_intervals(ax[1], bars, f"exact return, mean over {end} decode steps")

    def gain(one: str, two: str, rate: float, of: dict[str, np.ndarray]) -> str:
        return compare(of[label(one, rate)], of[label(two, rate)], "minus").text("+.3f")

    waits = [name for name in VARIANTS if name.startswith("wait")]
    best = {rate: max(waits, key=lambda n: interval(area[label(n, rate)]).mean) for rate in RATES}
    oldest = {
        rate: max(row["oldest_version"] or 0 for name in waits for run in runs[label(name, rate)] for row in run)
        for rate in RATES
    }
    slow, fast = RATES
    return StudyResult(
        rows=rows,
        figure=figure,
        caption=(
            f"Exact return at equal clock time, window {WINDOW} of 64, at two learning rates of the policy: curves "
            f"(left) and their mean over the clock (right). Interquartile mean of {seeds} seeds, 95% bootstrap "
            f"intervals."
        ),
        answer=(
            f"Averaged over {end} decode steps, T-PPO's return exceeds that of waiting with decoupled PPO by "
            f"{gain(TPPO, DECOUPLED, slow, area)} at a learning rate of {slow:g} and by "
            f"{gain(TPPO, DECOUPLED, fast, area)} at {fast:g}, and that of PPO by {gain(TPPO, PPO, slow, area)} and "
            f"{gain(TPPO, PPO, fast, area)}. At the end of the clock, the same differences are "
            f"{gain(TPPO, DECOUPLED, slow, final)} and {gain(TPPO, DECOUPLED, fast, final)} to decoupled PPO, "
            f"{gain(TPPO, PPO, slow, final)} and {gain(TPPO, PPO, fast, final)} to PPO."
        ),
        details=[
            f"What the correction is worth: decoupled less uncorrected, mean over the clock: "
            f"{gain(DECOUPLED, 'wait, uncorrected', slow, area)} at {slow:g}, "
            f"{gain(DECOUPLED, 'wait, uncorrected', fast, area)} at {fast:g}.",
            f"The best way to wait, by the mean over the clock: {best[slow]} at {slow:g}, {best[fast]} at {fast:g} "
            f"(chosen after the fact, so its lead over the other three is flattered).",
            f"The oldest token that trained was {oldest[slow]} policy versions old at {slow:g}, {oldest[fast]} at "
            f"{fast:g}. T-PPO's are never older than the step.",
            *(
                f"{name}: mean {interval(area[name]).text('.3f')}, at the end {interval(final[name]).text('.3f')}, "
                f"{interval([run[-1]['tokens'] for run in runs[name]]).text(',.0f')} tokens"
                for name in runs
            ),
        ],
        limits=[
            "The clock counts decode steps; training is free. PPO takes fewer and larger steps in the same time, which "
            "hurts it less where training dominates.",
            "The critic's warm-up is five training steps for every variant; those of whole responses take longer.",
            "Asynchronous systems also overlap generation with training, which no variant here does: this compares the "
            "losses, not the systems.",
            "Importance weights are per token. Drift of the policy within one response is small for a table that "
            "moves by one optimiser step between windows; a larger model with more updates a step drifts further.",
            "One task; learning rates are shared by all variants, and neither was tuned for one of them.",
            interval_limit(seeds),
        ],
    )


STUDY = Study(
    name="staleness",
    chapter="learning",
    question="Is it better to train on unfinished windows at once, or to wait for the end and correct for staleness?",
    run=run,
    seeds=6,
    full_seeds=32,
)
