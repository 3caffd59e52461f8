"""T-PPO against partial rollouts that wait for the end of a response and correct for the older policies in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from paper_repro.studies.intervals import Interval
from paper_repro.studies.learning.bootstrap import interval, interval_limit
from paper_repro.studies.learning.curves import LABELS, draw_curves, draw_intervals
from paper_repro.studies.learning.trials import (
    LearningStudy,
    Pair,
    Row,
    Truth,
    Variant,
    by_variant,
    on_grid,
)
from paper_repro.studies.learning.variants import heavy_tailed, waiting, waiting_behaviour, whole, windowed
from tppo.algorithms import Algorithm
from tppo.config.run import RunConfig
from tppo.figures import new_figure
from tppo.studies.study import Study, StudyOptions, StudyResult, Ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tppo.loop.trainer import Trainer

WINDOW = 4
DECODE_STEPS = 480
RATES = (0.05, 0.2)
UNCAPPED = 1e9  # importance weights of a run are far below
TPPO, PPO, UNCORRECTED, DECOUPLED = "T-PPO", "PPO", "wait, uncorrected", "wait, decoupled"
WAITS = (UNCORRECTED, "wait, ratio to behaviour", DECOUPLED, "wait, decoupled, cap 2")
LIMITS = (
    "The clock counts decode steps; training is free. PPO takes fewer and larger steps in the same time, which "
    "hurts it less where training dominates.",
    "The critic's warm-up is five training steps for every variant; those of whole responses take longer.",
    "Asynchronous systems also overlap generation with training, which no variant here does: this compares the "
    "losses, not the systems.",
    "Importance weights are per token. Drift of the policy within one response is small for a table that "
    "moves by one optimiser step between windows; a larger model with more updates a step drifts further.",
    "One task; learning rates are shared by all variants, and neither was tuned for one of them.",
)


def configs(rate: float) -> dict[str, RunConfig]:
    """The ways to deal with unfinished responses at one learning rate of the policy."""
    ratio, decoupled, capped = WAITS[1:]
    algorithms: dict[str, Algorithm] = {
        TPPO: windowed(WINDOW),
        UNCORRECTED: waiting(WINDOW),
        ratio: waiting_behaviour(WINDOW),
        decoupled: waiting(WINDOW, importance_cap=UNCAPPED),
        capped: waiting(WINDOW, importance_cap=2.0),
        PPO: whole(),
    }
    return {name: heavy_tailed(algorithm, rate=rate) for name, algorithm in algorithms.items()}


def label(name: str, rate: float) -> str:
    """The variant and its learning rate, as data.csv names them."""
    return f"{name} @ {rate:g}"


def study(full: bool = False) -> LearningStudy:
    """Every variant at every learning rate, all for the same clock time."""
    pairs = ((TPPO, DECOUPLED), (TPPO, PPO), (DECOUPLED, UNCORRECTED))
    return LearningStudy(
        tuple(Variant(label(name, rate), config) for rate in RATES for name, config in configs(rate).items()),
        clock="decode_steps",
        budget=2 * DECODE_STEPS if full else DECODE_STEPS,
        points=20,
        observe=age,
        comparisons=tuple((label(one, rate), label(other, rate)) for (one, other), rate in product(pairs, RATES)),
    )


def age(trainer: Trainer, metrics: Row, truth: Truth) -> Row:
    """The versions between the policy and the oldest token of the responses that finished in this step."""
    return {"oldest_version": metrics["target_version_span"]}


def run(options: StudyOptions, progress: Ticks) -> StudyResult:
    """Train every variant for the same clock time."""
    rows = study(options.full).train(options, progress)
    found = measure(rows)
    answer, details = say(found)
    limits = (*LIMITS, interval_limit(options.seeds))
    return StudyResult(rows, draw(rows, found), caption(options.seeds), answer, details, limits)


@dataclass(frozen=True)
class Findings:
    """Returns over the clock time that all runs have. Variants go by the names in data.csv."""

    end: int  # decode steps
    mean: Mapping[str, Interval]  # return averaged over the clock: how soon, not only how far
    final: Mapping[str, Interval]  # return at the end
    tokens: Mapping[str, Interval]
    mean_gain: Mapping[Pair, Interval]  # of the one less that of the other
    final_gain: Mapping[Pair, Interval]
    best_wait: Mapping[float, str]  # learning rate to the way to wait of the largest mean
    oldest: Mapping[float, int]  # learning rate to the age of the oldest token that trained [policy versions]


def measure(rows: list[Row]) -> Findings:
    """Compute the findings from the rows of data.csv."""
    runs = by_variant(rows)
    # A run ends with the first step past the clock's end; all are read at the earliest end.
    end = min(run[-1]["decode_steps"] for group in runs.values() for run in group)
    final = {name: on_grid(runs[name], "decode_steps", [end])[:, 0] for name in runs}
    area = {name: on_grid(runs[name], "decode_steps", np.linspace(0, end, 101)).mean(axis=1) for name in runs}
    mean = {name: interval(area[name]) for name in runs}
    return Findings(
        end=end,
        mean=mean,
        final={name: interval(final[name]) for name in runs},
        tokens={name: interval([run[-1]["tokens"] for run in runs[name]]) for name in runs},
        mean_gain=study().compare(area, "minus"),
        final_gain=study().compare(final, "minus"),
        best_wait={rate: max(WAITS, key=lambda name: mean[label(name, rate)].mean) for rate in RATES},
        oldest={
            rate: max(row["oldest_version"] or 0 for name in WAITS for run in runs[label(name, rate)] for row in run)
            for rate in RATES
        },
    )


def say(found: Findings) -> tuple[str, list[str]]:
    """The answer, and further findings."""

    def gain(one: str, other: str, rate: float, of: Mapping[Pair, Interval] = found.mean_gain) -> str:
        return of[label(one, rate), label(other, rate)].text("+.3f")

    slow, fast = RATES
    best, oldest, final = found.best_wait, found.oldest, found.final_gain
    answer = (
        f"Averaged over {found.end} decode steps, T-PPO's return exceeds that of waiting with decoupled PPO by "
        f"{gain(TPPO, DECOUPLED, slow)} at a learning rate of {slow:g} and by "
        f"{gain(TPPO, DECOUPLED, fast)} at {fast:g}, and that of PPO by {gain(TPPO, PPO, slow)} and "
        f"{gain(TPPO, PPO, fast)}. At the end of the clock, the same differences are "
        f"{gain(TPPO, DECOUPLED, slow, final)} and {gain(TPPO, DECOUPLED, fast, final)} to decoupled PPO, "
        f"{gain(TPPO, PPO, slow, final)} and {gain(TPPO, PPO, fast, final)} to PPO."
    )
    return answer, [
        f"What the correction is worth: decoupled less uncorrected, mean over the clock: "
        f"{gain(DECOUPLED, UNCORRECTED, slow)} at {slow:g}, {gain(DECOUPLED, UNCORRECTED, fast)} at {fast:g}.",
        f"The best way to wait, by the mean over the clock: {best[slow]} at {slow:g}, {best[fast]} at {fast:g} "
        f"(chosen after the fact, so its lead over the other three is flattered).",
        f"The oldest token that trained was {oldest[slow]} policy versions old at {slow:g}, {oldest[fast]} at "
        f"{fast:g}. T-PPO's are never older than the step.",
        *(
            f"{name}: mean {found.mean[name].text('.3f')}, at the end {found.final[name].text('.3f')}, "
            f"{found.tokens[name].text(',.0f')} tokens"
            for name in found.mean
        ),
    ]


def caption(seeds: int) -> str:
    """What the figure shows."""
    return (
        f"Exact return at equal clock time, window {WINDOW} of 64, at two learning rates of the policy: curves "
        f"(left) and their mean over the clock (right). Interquartile mean of {seeds} seeds, 95% bootstrap "
        f"intervals."
    )


def draw(rows: list[Row], found: Findings) -> Figure:
    """Draw the panels that `caption` describes, one row a learning rate."""
    runs = by_variant(rows)
    figure = new_figure(13, 7.6)
    names = (TPPO, *WAITS, PPO)
    for (curves, means), rate in zip(figure.subplots(len(RATES), 2, width_ratios=(1.6, 1)), RATES, strict=True):
        draw_curves(curves, {name: runs[label(name, rate)] for name in names}, "decode_steps", end=found.end)
        curves.set(ylabel=LABELS["exact_return"], title=f"policy learning rate {rate:g}")
        curves.legend(fontsize=8, loc="lower right")
        bars = {name: found.mean[label(name, rate)] for name in names}
        draw_intervals(means, bars, f"exact return, mean over {found.end} decode steps")
    return figure


STUDY = Study(
    name="staleness",
    chapter="learning",
    question="Is it better to train on unfinished windows at once, or to wait for the end and correct for staleness?",
    run=run,
    seeds=6,
    full_seeds=32,
)
