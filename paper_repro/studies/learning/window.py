"""How the window decides what a token, and what a second, is worth."""

from __future__ import annotations

from paper_repro.studies.learning.bootstrap import Floats, compare, interval, interval_limit
from paper_repro.studies.learning.trials import (
    LABELS,
    Row,
    Trial,
    by_variant,
    censored,
    draw_curves,
    heavy_tailed,
    on_grid,
    reach,
    train_all,
)
from paper_repro.studies.learning.variants import tppo
from tppo.figures import new_figure
from tppo.studies.study import Study, StudyOptions, StudyResult, Ticks

WINDOWS = (4, 8, 16, 32, 64)
TARGET = 0.85
TOKENS = 13_000
HALF = "W = 64, half the slots"
RATE, FAST_RATE = 0.05, 0.2


def fast(window: int) -> str:
    """Name of the variant."""
    return f"W = {window}, rate {FAST_RATE}"


def plan(options: StudyOptions) -> list[Trial]:
    """Every window with every seed; whole responses on as many tokens a step as the shortest window takes; and both
    ends at four times the policy's learning rate, for a rate that suits many small steps need not suit few large ones.
    """
    variants = [(f"W = {window}", window, 32, RATE) for window in WINDOWS]
    variants.append((HALF, WINDOWS[-1], 16, RATE))
    variants += [(fast(window), window, 32, FAST_RATE) for window in (WINDOWS[0], WINDOWS[-1])]
    return [
        Trial(
            name,
            heavy_tailed(tppo(window), seed=seed, slots=slots, rate=rate),
            ("tokens", 2 * TOKENS if options.full else TOKENS),
        )
        for name, window, slots, rate in variants
        for seed in range(options.seed, options.seed + options.seeds)
    ]


def run(options: StudyOptions, progress: Ticks) -> StudyResult:
    """Train, and compare tokens and clock time to a return."""
    return result(train_all(plan(options), progress))


def result(rows: list[Row]) -> StudyResult:
    """What the rows say."""
    runs = by_variant(rows)
    first, last = next(iter(runs)), f"W = {WINDOWS[-1]}"
    figure = new_figure(11, 4.2)
    axes = figure.subplots(1, 2, sharey=True)
    draw_curves(axes[0], runs, "tokens")
    draw_curves(axes[1], runs, "decode_steps")
    for ax in axes:
        ax.axhline(TARGET, color="k", lw=0.8, ls=":")
    axes[0].set_ylabel(LABELS["exact_return"])
    axes[1].legend(loc="lower right", fontsize=8)

    def need(name: str, clock: str) -> Floats:
        return reach(runs[name], clock, TARGET)

    def times(name: str, other: str) -> str:
        """Clock time and tokens of one over those of another."""
        clock, tokens = (compare(need(name, c), need(other, c), "over") for c in ("decode_steps", "tokens"))
        return f"{clock.text('.1f')} times the clock time and {tokens.text('.2f')} times the tokens"

    seeds = len(runs[first])
    end = min(run[-1]["tokens"] for group in runs.values() for run in group)
    last_return = {name: interval(on_grid(runs[name], "tokens", [end])[:, 0]) for name in runs}
    missed = {name: n for name in runs if (n := censored(runs[name], TARGET))}
    table = [
        f"{name}: {interval(need(name, 'tokens')).text(',.0f')} tokens, "
        f"{interval(need(name, 'decode_steps')).text(',.0f')} decode steps, "
        f"{interval(need(name, 'step')).text(',.0f')} training steps to a return of {TARGET}; a return of "
        f"{last_return[name].text('.3f')} after {end:,} tokens"
        + (
            f" ({missed[name]} of {seeds} runs stopped short of {TARGET} and count with their end)"
            if name in missed
            else ""
        )
        for name in runs
    ]
    return StudyResult(
        rows=rows,
        figure=figure,
        caption=(
            f"Exact return against generated tokens (left) and clock time (right) for windows of {WINDOWS[0]} to "
            f"{WINDOWS[-1]} tokens, the cap: interquartile mean of {seeds} seeds, 95% bootstrap intervals. "
            f"Dotted: the target of {TARGET}."
        ),
        answer=(
            f"To an exact return of {TARGET}, whole responses ({last}) take {times(last, first)} of {first} at the "
            f"same learning rate of {RATE}, and {times(fast(WINDOWS[-1]), fast(WINDOWS[0]))} at {FAST_RATE}. "
            f"Truncation is not all of it: against {first} at {RATE}, whole responses in half the slots, with updates "
            f"as small as those of {first}, take {times(HALF, first)}, and with the rate of {FAST_RATE} to themselves "
            f"they take {times(fast(WINDOWS[-1]), first)}."
        ),
        details=table,
        limits=[
            "A table of logits: nothing learned about one state helps another, and an update costs nothing. The clock "
            "counts decode steps alone, so the many training steps of a short window are free here.",
            "The critic's warm-up is five training steps for every variant; those of whole responses take longer.",
            "One task, demands with a Pareto tail of index 1/2. With responses of like lengths all windows would keep "
            "the slots as busy, and the right panel would look like the left one.",
            "Slots, learning rates and one optimiser step a training step are the same for every window and none was "
            "tuned, but for the three variants that say so.",
            interval_limit(seeds),
        ],
    )


STUDY = Study(
    name="window",
    chapter="learning",
    question="How does the length of the window change what is learned from a token, and in a given time?",
    run=run,
    seeds=10,
    full_seeds=40,
)
