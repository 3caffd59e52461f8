"""A critic of zeros says nothing of unfinished windows: what that costs, and what buys it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from paper_repro.studies.intervals import Interval
from paper_repro.studies.learning.bootstrap import interval, interval_limit
from paper_repro.studies.learning.curves import LABELS, draw_band, draw_curves, draw_target, tidy
from paper_repro.studies.learning.trials import (
    LearningStudy,
    Pair,
    Reached,
    Row,
    Truth,
    Variant,
    by_variant,
    critic_values,
    on_grid,
    reach,
    reached,
)
from paper_repro.studies.learning.variants import WINDOWED_CRITIC, heavy_tailed, whole, windowed
from tppo.figures import new_figure
from tppo.studies.study import Study, StudyOptions, StudyResult, Ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tppo.loop.trainer import Trainer

WINDOW = 4
STEPS = 80
TARGET = 0.75
CRITIC_LR, SLOW_LR = 0.05, 0.005
COLD, WARM, RAW = "V = 0", "exact V", "V = 0, not centred"
COLD_PPO, WARM_PPO = "V = 0, PPO", "exact V, PPO"
SLOW = ", slow critic"
WARM_UPS = (5, 20)
WARMED = f"V = 0, warm-up {WARM_UPS[0]}"
LIMITS = (
    "A table learns V of a state from a few visits. The slow critic stands for one that does not; no table "
    "says how slow a transformer's critic is.",
    "Exact values are those of the start policy, averaged over the times a state is visited: the end of an "
    "infinitely long value pretraining, which itself is not counted.",
    "Warm-up is counted as a step like any other, although it costs no update of the policy; a run that may "
    "pretrain its critic on stored responses pays less.",
    "Leaving out the centring was tried with V = 0 only. It also leaves out the scaling, which AdamW undoes.",
    "No positive-example loss, which trains the policy whatever the critic says.",
)


def variants() -> tuple[Variant, ...]:
    """Starts and speeds of the critic."""
    found = []
    for tail, lr in (("", CRITIC_LR), (SLOW, SLOW_LR)):
        cold = replace(windowed(WINDOW, critic=replace(WINDOWED_CRITIC, lr=lr)), warmup_steps=0)
        found.append(Variant(COLD + tail, heavy_tailed(cold)))
        for steps in WARM_UPS:
            found.append(Variant(f"V = 0, warm-up {steps}{tail}", heavy_tailed(replace(cold, warmup_steps=steps))))
        found.append(Variant(RAW + tail, heavy_tailed(replace(cold, whiten=False))))
        if not tail:
            found.append(Variant(WARM, heavy_tailed(cold), critic="exact"))
    ppo = heavy_tailed(replace(whole(), warmup_steps=0))
    return (*found, Variant(COLD_PPO, ppo), Variant(WARM_PPO, ppo, critic="exact"))


def study(full: bool = False) -> LearningStudy:
    """Every variant for as many steps; a critic of zeros compared with everything that may help it."""
    steps = 2 * STEPS if full else STEPS
    helps = [(COLD + tail, other) for tail in ("", SLOW) for other in (WARM, RAW + tail, WARMED + tail)]
    return LearningStudy(
        variants(),
        clock="step",
        budget=steps,
        points=steps // 4,
        observe=signal,
        comparisons=(*helps, (COLD_PPO, WARM_PPO)),
    )


def signal(trainer: Trainer, metrics: Row, truth: Truth) -> Row:
    """The mean |advantage| of unfinished windows, and the critic's error.

    critic_error: root mean square of V - V_exact over the states that the present policy visits.
    """
    V_S, visits_S = truth.values(truth.policy(trainer))
    square = (visits_S * (critic_values(trainer) - V_S) ** 2).sum() / visits_S.sum()
    return {
        "advantage_unfinished": unfinished_advantage(
            [r.values[r.start :] for r in trainer.slots.in_flight], lam=float(metrics["lambda_mean"])
        ),
        "critic_error": round(float(np.sqrt(square)), 6),
    }


def unfinished_advantage(values: Sequence[Sequence[float]], lam: float) -> float | None:
    """The mean |advantage| before whitening, from the values of the newest window of every response in flight."""
    import torch

    from tppo.maths.advantages import egae

    if not values:
        return None
    flat = torch.tensor([v for row in values for v in row], dtype=torch.float64)
    offsets = torch.tensor(np.cumsum([0, *map(len, values)]))
    open_S = torch.zeros(len(values), dtype=torch.bool)
    advantages = egae(torch.zeros_like(flat), flat, offsets, open_S, gamma=1.0, lam=lam)
    return round(float(advantages.abs().mean()), 6)


def run(options: StudyOptions, progress: Ticks) -> StudyResult:
    """Train from each start, and count the steps to a return."""
    rows = study(options.full).train(options, progress)
    rows.sort(key=lambda row: row["seed"])  # data.csv lists one seed after the other
    found = measure(rows)
    answer, details = say(found)
    limits = (*LIMITS, interval_limit(options.seeds))
    return StudyResult(rows, draw(rows), caption(options.seeds), answer, details, limits)


@dataclass(frozen=True)
class Findings:
    """What each variant needs to reach the target, and where it ends."""

    reached: Mapping[str, Reached]
    final: Mapping[str, Interval]  # return at the end
    steps_lost: Mapping[Pair, Interval]  # steps of the one less those of the other


def measure(rows: list[Row]) -> Findings:
    """Compute the findings from the rows of data.csv."""
    runs = by_variant(rows)
    steps = {name: reach(runs[name], "step", TARGET) for name in runs}
    return Findings(
        reached=reached(runs, TARGET),
        final={name: interval([run[-1]["exact_return"] for run in runs[name]]) for name in runs},
        steps_lost=study().compare(steps, "minus"),
    )


def say(found: Findings) -> tuple[str, list[str]]:
    """The answer, and further findings."""
    lost = {pair: difference.text(".1f") for pair, difference in found.steps_lost.items()}
    slow = COLD + SLOW
    answer = (
        f"To a return of {TARGET}, T-PPO with V = 0 takes {lost[COLD, WARM]} training steps more than with the "
        f"exact values of the start policy ({lost[slow, WARM]} with a critic ten times slower; PPO: "
        f"{lost[COLD_PPO, WARM_PPO]}). Of these, {WARM_UPS[0]} steps of warm-up, themselves counted, buy back "
        f"{lost[COLD, WARMED]} ({lost[slow, WARMED + SLOW]} with the slow critic; below zero is a loss), and not "
        f"centring the advantages buys back {lost[COLD, RAW]} ({lost[slow, RAW + SLOW]})."
    )
    return answer, [
        "Why centring matters: with V = 0 every advantage of an unfinished window is zero, and those of finished "
        "responses are positive. Whitening turns the zeros into one negative number, so that every token of an "
        "unfinished window is discouraged, right or wrong.",
        *(
            f"{name}: {of.need['step'].text('.1f')} steps to {TARGET}, a return of "
            f"{found.final[name].text('.3f')} at the end" + (f" ({of.missing()})" if of.missed else "")
            for name, of in found.reached.items()
        ),
    ]


def caption(seeds: int) -> str:
    """What the figure shows."""
    return (
        f"Left: exact return against training steps, those of warm-up counted, from critics of zeros and from the "
        f"exact one; window {WINDOW}, cap 64. Right: size of the advantages of unfinished windows. Interquartile "
        f"mean of {seeds} seeds, 95% bootstrap intervals; dotted: the target of {TARGET}. "
        f"'{WARM}' is the same run in both rows, its critic at {CRITIC_LR}."
    )


def draw(rows: list[Row]) -> Figure:
    """Draw the panels that `caption` describes, one row a learning rate of the critic."""
    runs = by_variant(rows)
    fast = {name: runs[name] for name in runs if SLOW not in name and "PPO" not in name}
    slow = {name: runs[name] for name in runs if SLOW in name} | {WARM: runs[WARM]}
    figure = new_figure(11, 7.6)
    axes = figure.subplots(2, 2)
    for (curves, sizes), group, title in zip(
        axes, (fast, slow), (f"critic at the policy's learning rate, {CRITIC_LR}", f"critic at {SLOW_LR}"), strict=True
    ):
        draw_curves(curves, group, "step")
        draw_target(curves, TARGET)
        curves.set(ylabel=LABELS["exact_return"], title=title)
        curves.legend(fontsize=8, loc="lower right")
        _draw_advantages(sizes, group, title)
    return figure


def _draw_advantages(ax: Any, group: Mapping[str, Sequence[Sequence[Row]]], title: str) -> None:
    """Draw the size of the advantages of unfinished windows by training step."""
    grid_X = np.arange(1, group[WARM][0][-1]["step"] + 1)
    for i, name in enumerate(group):
        draw_band(ax, grid_X, on_grid(group[name], "step", grid_X, "advantage_unfinished"), i)
    ax.set(
        xlabel=LABELS["step"], ylabel="mean |advantage| of unfinished windows,\nbefore whitening",
        xlim=(0, None), ylim=(0, None), title=title,
    )  # fmt: skip
    tidy(ax)


STUDY = Study(
    name="zero-critic",
    chapter="learning",
    question="What does a critic that starts at zero cost, when unfinished windows have no other signal?",
    run=run,
    seeds=6,
    full_seeds=40,
)
