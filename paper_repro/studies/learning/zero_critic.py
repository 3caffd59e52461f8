"""A critic of zeros says nothing of unfinished windows: what that costs, and what buys it back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from paper_repro.studies.learning.bootstrap import band, compare, interval, interval_limit
from paper_repro.studies.learning.trials import (
    LABELS,
    Row,
    Trial,
    Truth,
    by_variant,
    censored,
    critic_table,
    draw_curves,
    heavy_tailed,
    on_grid,
    reach,
    tidy,
    train_all,
)
from paper_repro.studies.learning.variants import WINDOWED_CRITIC, ppo, tppo
from tppo.algorithms import Algorithm
from tppo.figures import PALETTE, new_figure
from tppo.studies.study import Study, StudyOptions, StudyResult, Ticks

if TYPE_CHECKING:
    from tppo.loop.trainer import Trainer

WINDOW = 4
STEPS = 80
TARGET = 0.75
SLOW_LR = 0.005
COLD, WARM, RAW = "V = 0", "exact V", "V = 0, not centred"
COLD_PPO, WARM_PPO = "V = 0, PPO", "exact V, PPO"
SLOW = ", slow critic"
WARM_UPS = (5, 20)


def signal(trainer: Trainer, metrics: Row, truth: Truth) -> Row:
    """Mean |advantage| of the newest windows of responses in flight, before whitening, and the critic's error.

    critic_error: root mean square of V - V_exact over the states that the present policy visits.
    """
    import torch

    from tppo.maths.advantages import egae

    values = [r.values[r.start :] for r in trainer.slots.in_flight]
    V_S, visits_S = truth.values(truth.policy(trainer))
    critic_S = critic_table(trainer).values_S.detach().double().numpy()
    out: Row = {
        "advantage_unfinished": None,
        "critic_error": round(float(np.sqrt((visits_S * (critic_S - V_S) ** 2).sum() / visits_S.sum())), 6),
    }
    if values:
        flat = torch.tensor([v for row in values for v in row], dtype=torch.float64)
        offsets = torch.tensor(np.cumsum([0, *map(len, values)]))
        open_S = torch.zeros(len(values), dtype=torch.bool)
        lam = float(metrics["lambda_mean"])
        advantages = egae(torch.zeros_like(flat), flat, offsets, open_S, gamma=1.0, lam=lam)
        out["advantage_unfinished"] = round(float(advantages.abs().mean()), 6)
    return out


def warmed(steps: int) -> str:
    """Name of the variant."""
    return f"V = 0, warm-up {steps}"


def plan(options: StudyOptions) -> list[Trial]:
    """Starts and speeds of the critic, each with every seed."""
    steps = 2 * STEPS if options.full else STEPS
    runs = []
    for seed in range(options.seed, options.seed + options.seeds):

        def add(name: str, algorithm: Algorithm, seed: int = seed) -> None:
            config = heavy_tailed(algorithm, seed=seed)
            critic: Literal["zero", "exact"] = "exact" if name.startswith(WARM) else "zero"
            runs.append(Trial(name, config, ("step", steps), points=steps // 4, critic=critic, observe=signal))

        for tail, lr in (("", 0.05), (SLOW, SLOW_LR)):
            cold = replace(tppo(WINDOW, critic=replace(WINDOWED_CRITIC, lr=lr)), warmup_steps=0)
            add(COLD + tail, cold)
            for steps_of_it in WARM_UPS:
                add(warmed(steps_of_it) + tail, replace(cold, warmup_steps=steps_of_it))
            add(RAW + tail, replace(cold, whiten=False))
            if not tail:
                add(WARM, cold)
        add(COLD_PPO, replace(ppo(), warmup_steps=0))
        add(WARM_PPO, replace(ppo(), warmup_steps=0))
    return runs


def run(options: StudyOptions, progress: Ticks) -> StudyResult:
    """Train from each start, and count the steps to a return."""
    return result(train_all(plan(options), progress))


def result(rows: list[Row]) -> StudyResult:
    """What the rows say."""
    runs = by_variant(rows)
    figure = new_figure(11, 7.6)
    axes = figure.subplots(2, 2)
    fast = {name: runs[name] for name in runs if SLOW not in name and "PPO" not in name}
    slow = {name: runs[name] for name in runs if SLOW in name} | {WARM: runs[WARM]}
    for ax, group, title in zip(
        axes, (fast, slow), ("critic at the policy's learning rate, 0.05", f"critic at {SLOW_LR}"), strict=True
    ):
        draw_curves(ax[0], group, "step")
        ax[0].axhline(TARGET, color="k", lw=0.8, ls=":")
        ax[0].set(ylabel=LABELS["exact_return"], title=title)
        ax[0].legend(fontsize=8, loc="lower right")
        grid_X = np.arange(1, group[WARM][0][-1]["step"] + 1)
        for i, name in enumerate(group):
            curve = band(on_grid(group[name], "step", grid_X, "advantage_unfinished"), resamples=500)
            ax[1].plot(grid_X, curve.mid_X, color=PALETTE[i], lw=1.6)
            ax[1].fill_between(grid_X, curve.low_X, curve.high_X, color=PALETTE[i], alpha=0.18, lw=0)
        ax[1].set(
            xlabel=LABELS["step"], ylabel="mean |advantage| of unfinished windows,\nbefore whitening",
            xlim=(0, None), ylim=(0, None), title=title,
        )  # fmt: skip
        tidy(ax[1])

    steps = {name: reach(runs[name], "step", TARGET) for name in runs}
    lost = compare(steps[COLD], steps[WARM], "minus")
    lost_slow = compare(steps[COLD + SLOW], steps[WARM], "minus")
    lost_ppo = compare(steps[COLD_PPO], steps[WARM_PPO], "minus")
    raw, raw_slow = compare(steps[COLD], steps[RAW], "minus"), compare(steps[COLD + SLOW], steps[RAW + SLOW], "minus")
    warm, warm_slow = (compare(steps[COLD + x], steps[warmed(WARM_UPS[0]) + x], "minus") for x in ("", SLOW))
    short = {name: n for name in runs if (n := censored(runs[name], TARGET))}
    seeds = len(steps[COLD])
    return StudyResult(
        rows=rows,
        figure=figure,
        caption=(
            f"Left: exact return against training steps, those of warm-up counted, from critics of zeros and from the "
            f"exact one; window {WINDOW}, cap 64. Right: size of the advantages of unfinished windows. Interquartile "
            f"mean of {seeds} seeds, 95% bootstrap intervals; dotted: the target of {TARGET}. "
            f"'{WARM}' is the same run in both rows, its critic at 0.05."
        ),
        answer=(
            f"To a return of {TARGET}, T-PPO with V = 0 takes {lost.text('.1f')} training steps more than with the "
            f"exact values of the start policy ({lost_slow.text('.1f')} with a critic ten times slower; PPO: "
            f"{lost_ppo.text('.1f')}). Of these, {WARM_UPS[0]} steps of warm-up, themselves counted, buy back "
            f"{warm.text('.1f')} ({warm_slow.text('.1f')} with the slow critic; below zero is a loss), and not "
            f"centring the advantages buys back {raw.text('.1f')} ({raw_slow.text('.1f')})."
        ),
        details=[
            "Why centring matters: with V = 0 every advantage of an unfinished window is zero, and those of finished "
            "responses are positive. Whitening turns the zeros into one negative number, so that every token of an "
            "unfinished window is discouraged, right or wrong.",
            *(
                f"{name}: {interval(steps[name]).text('.1f')} steps to {TARGET}, a return of "
                f"{interval([run[-1]['exact_return'] for run in runs[name]]).text('.3f')} at the end"
                + (f" ({short[name]} of {seeds} runs stopped short and count with their end)" if name in short else "")
                for name in runs
            ),
        ],
        limits=[
            "A table learns V of a state from a few visits. The slow critic stands for one that does not; no table "
            "says how slow a transformer's critic is.",
            "Exact values are those of the start policy, averaged over the times a state is visited: the end of an "
            "infinitely long value pretraining, which itself is not counted.",
            "Warm-up is counted as a step like any other, although it costs no update of the policy; a run that may "
            "pretrain its critic on stored responses pays less.",
            "Leaving out the centring was tried with V = 0 only. It also leaves out the scaling, which AdamW undoes.",
            "No positive-example loss, which trains the policy whatever the critic says.",
            interval_limit(seeds),
        ],
    )


STUDY = Study(
    name="zero-critic",
    chapter="learning",
    question="What does a critic that starts at zero cost, when unfinished windows have no other signal?",
    run=run,
    seeds=6,
    full_seeds=40,
)
