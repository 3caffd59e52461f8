"""T-PPO with its parts taken out one at a time, and plain PPO with its critic trained apart or not."""

from __future__ import annotations

from dataclasses import replace

from paper_repro.studies.learning.bootstrap import compare, interval, interval_limit
from paper_repro.studies.learning.trials import (
    LABELS,
    Row,
    Trial,
    by_variant,
    censored,
    draw_curves,
    draw_intervals,
    heavy_tailed,
    reach,
    train_all,
)
from paper_repro.studies.learning.variants import CRITIC, WINDOWED_CRITIC, ppo, tppo, waiting
from tppo.algorithms import Algorithm
from tppo.figures import new_figure
from tppo.studies.study import Study, StudyOptions, StudyResult, Ticks

WINDOW, IGNORE_LAST, LAM = 8, 2, 0.95
TOKENS = 12_000
TARGET = 0.85
TPPO = "T-PPO"
WAIT = "wait for the end"
PPO = "PPO, critic apart"
ON_ALL = replace(WINDOWED_CRITIC, lam=LAM, responses="all")
VARIANTS: dict[str, Algorithm] = {
    TPPO: tppo(WINDOW, ignore_last=IGNORE_LAST),
    "no token filter": tppo(WINDOW, ignore_last=0),
    "critic on all": tppo(WINDOW, ignore_last=IGNORE_LAST, critic=ON_ALL),
    "critic on all, no token filter": tppo(WINDOW, ignore_last=0, critic=ON_ALL),
    WAIT: waiting(WINDOW),
    f"{WAIT}, critic on all": waiting(WINDOW, critic=ON_ALL),
    PPO: ppo(),
    "PPO, critic on the policy's targets": ppo(critic=replace(CRITIC, lam=LAM)),
}


def plan(options: StudyOptions) -> list[Trial]:
    """Every variant with every seed."""
    return [
        Trial(name, heavy_tailed(algorithm, seed=seed), ("tokens", 2 * TOKENS if options.full else TOKENS))
        for name, algorithm in VARIANTS.items()
        for seed in range(options.seed, options.seed + options.seeds)
    ]


def run(options: StudyOptions, progress: Ticks) -> StudyResult:
    """Train every variant, and compare tokens and clock time to a return."""
    return result(train_all(plan(options), progress))


def result(rows: list[Row]) -> StudyResult:
    """What the rows say."""
    runs = by_variant(rows)
    tokens = {name: reach(runs[name], "tokens", TARGET) for name in runs}
    clock = {name: reach(runs[name], "decode_steps", TARGET) for name in runs}
    short = {name: n for name in runs if (n := censored(runs[name], TARGET))}
    seeds = len(tokens[TPPO])
    figure = new_figure(13, 4.4)
    axes = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    draw_curves(axes[0], runs, "tokens")
    axes[0].axhline(TARGET, color="k", lw=0.8, ls=":")
    axes[0].set_ylabel(LABELS["exact_return"])
    axes[0].legend(fontsize=7, loc="lower right")
    draw_intervals(axes[1], {n: interval(tokens[n] / 1000) for n in runs}, f"tokens to {TARGET} [thousands]")
    draw_intervals(axes[2], {n: interval(clock[n]) for n in runs}, f"decode steps to {TARGET}")
    axes[2].set_yticklabels([])

    times = {name: compare(tokens[name], tokens[TPPO], "over") for name in runs}
    dual = compare(tokens["PPO, critic on the policy's targets"], tokens[PPO], "over")
    return StudyResult(
        rows=rows,
        figure=figure,
        caption=(
            f"Exact return against generated tokens (left), tokens and clock time to a return of {TARGET} (middle, "
            f"right); window {WINDOW} of 64, m = {IGNORE_LAST}. Interquartile mean of {seeds} seeds, 95% bootstrap "
            f"intervals."
        ),
        answer=(
            f"To a return of {TARGET}, waiting for the end of each response takes {times[WAIT].text('.2f')} times the "
            f"tokens of T-PPO, a critic that also trains on unfinished windows "
            f"{times['critic on all'].text('.2f')} times, no token filter "
            f"{times['no token filter'].text('.2f')} times. On plain PPO, giving the "
            f"critic the policy's lambda of {LAM} instead of Monte-Carlo targets of its own takes "
            f"{dual.text('.2f')} times the tokens."
        ),
        details=[
            f"{name}: {interval(tokens[name]).text(',.0f')} tokens ({times[name].text('.2f')} of T-PPO's), "
            f"{interval(clock[name]).text(',.0f')} decode steps"
            + (f"; {short[name]} of {seeds} runs stopped short and count with their end" if name in short else "")
            for name in runs
        ],
        limits=[
            "Waiting for the end leaves nothing unfinished to filter, so six variants and not eight have a window. It "
            "trains on tokens of older policies, with the ratio centred on the policy at the start of the step and no "
            "correction; the study 'staleness' compares corrections.",
            "'Critic on all' adds the unfinished windows with lambda-returns that repeat V at the cut; tokens of "
            "finished responses it shares with the others, but towards lambda-returns too, so two things change.",
            "Policy and critic are separate tables and advantages are computed before either moves, so 'apart' is "
            "about targets alone: the order of the two updates changes nothing.",
            "One task and one setting of learning rates; differences of a few percent may turn round elsewhere.",
            interval_limit(seeds),
        ],
    )


STUDY = Study(
    name="ablation",
    chapter="learning",
    question="Which part of T-PPO does the work: training on unfinished windows, what the critic sees, or the filter?",
    run=run,
    seeds=8,
    full_seeds=40,
)
