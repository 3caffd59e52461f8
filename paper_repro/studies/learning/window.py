"""How the window decides what a token, and what a second, is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paper_repro.studies.intervals import Interval
from paper_repro.studies.learning.bootstrap import interval, interval_limit
from paper_repro.studies.learning.curves import LABELS, draw_curves, draw_target
from paper_repro.studies.learning.trials import (
    LearningStudy,
    Pair,
    Reached,
    Row,
    Variant,
    by_variant,
    on_grid,
    reach,
    reached,
)
from paper_repro.studies.learning.variants import heavy_tailed, windowed
from tppo.figures import new_figure
from tppo.studies.study import Study, StudyOptions, StudyResult, Ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOWS = (4, 8, 16, 32, 64)
TARGET = 0.85
TOKENS = 13_000
RATE, FAST_RATE = 0.05, 0.2
SHORT, WHOLE, HALF = f"W = {WINDOWS[0]}", f"W = {WINDOWS[-1]}", "W = 64, half the slots"
SHORT_FAST, WHOLE_FAST = (f"{name}, rate {FAST_RATE}" for name in (SHORT, WHOLE))
LIMITS = (
    "A table of logits: nothing learned about one state helps another, and an update costs nothing. The clock "
    "counts decode steps alone, so the many training steps of a short window are free here.",
    "The critic's warm-up is five training steps for every variant; those of whole responses take longer.",
    "One task, demands with a Pareto tail of index 1/2. With responses of like lengths all windows would keep "
    "the slots as busy, and the right panel would look like the left one.",
    "Slots, learning rates and one optimiser step a training step are the same for every window and none was "
    "tuned, but for the three variants that say so.",
)


def variants() -> tuple[Variant, ...]:
    """Every window; whole responses on as many tokens a step as the shortest window takes; and both ends at four times
    the policy's learning rate, for a rate that suits many small steps need not suit few large ones.
    """
    short, long = windowed(WINDOWS[0]), windowed(WINDOWS[-1])
    return (
        *(Variant(f"W = {window}", heavy_tailed(windowed(window), rate=RATE)) for window in WINDOWS),
        Variant(HALF, heavy_tailed(long, rate=RATE, slots=16)),
        Variant(SHORT_FAST, heavy_tailed(short, rate=FAST_RATE)),
        Variant(WHOLE_FAST, heavy_tailed(long, rate=FAST_RATE)),
    )


def study(full: bool = False) -> LearningStudy:
    """Every variant on as many tokens; whole responses compared with short windows."""
    return LearningStudy(
        variants(),
        clock="tokens",
        budget=2 * TOKENS if full else TOKENS,
        comparisons=((WHOLE, SHORT), (WHOLE_FAST, SHORT_FAST), (HALF, SHORT), (WHOLE_FAST, SHORT)),
    )


def run(options: StudyOptions, progress: Ticks) -> StudyResult:
    """Train, and compare tokens and clock time to a return."""
    rows = study(options.full).train(options, progress)
    found = measure(rows)
    answer, details = say(found)
    limits = (*LIMITS, interval_limit(options.seeds))
    return StudyResult(rows, draw(rows), caption(options.seeds), answer, details, limits)


@dataclass(frozen=True)
class Findings:
    """What each variant needs to reach the target, and where it is after the same tokens."""

    reached: Mapping[str, Reached]
    clock_ratio: Mapping[Pair, Interval]  # decode steps of the one over those of the other
    tokens_ratio: Mapping[Pair, Interval]
    end: int  # the tokens that all runs have seen
    last_return: Mapping[str, Interval]  # after that many


def measure(rows: list[Row]) -> Findings:
    """Compute the findings from the rows of data.csv."""
    runs = by_variant(rows)
    clock, tokens = ({name: reach(runs[name], c, TARGET) for name in runs} for c in ("decode_steps", "tokens"))
    end = min(run[-1]["tokens"] for group in runs.values() for run in group)
    return Findings(
        reached=reached(runs, TARGET),
        clock_ratio=study().compare(clock, "over"),
        tokens_ratio=study().compare(tokens, "over"),
        end=end,
        last_return={name: interval(on_grid(runs[name], "tokens", [end])[:, 0]) for name in runs},
    )


def say(found: Findings) -> tuple[str, list[str]]:
    """The answer, and further findings."""

    def times(*pair: str) -> str:
        clock, tokens = found.clock_ratio[pair[0], pair[1]], found.tokens_ratio[pair[0], pair[1]]
        return f"{clock.text('.1f')} times the clock time and {tokens.text('.2f')} times the tokens"

    answer = (
        f"To an exact return of {TARGET}, whole responses ({WHOLE}) take {times(WHOLE, SHORT)} of {SHORT} at the "
        f"same learning rate of {RATE}, and {times(WHOLE_FAST, SHORT_FAST)} at {FAST_RATE}. "
        f"Truncation is not all of it: against {SHORT} at {RATE}, whole responses in half the slots, with updates "
        f"as small as those of {SHORT}, take {times(HALF, SHORT)}, and with the rate of {FAST_RATE} to themselves "
        f"they take {times(WHOLE_FAST, SHORT)}."
    )
    return answer, [
        f"{name}: {of.need['tokens'].text(',.0f')} tokens, {of.need['decode_steps'].text(',.0f')} decode steps, "
        f"{of.need['step'].text(',.0f')} training steps to a return of {TARGET}; a return of "
        f"{found.last_return[name].text('.3f')} after {found.end:,} tokens"
        + (f" ({of.missing(f'short of {TARGET}')})" if of.missed else "")
        for name, of in found.reached.items()
    ]


def caption(seeds: int) -> str:
    """What the figure shows."""
    return (
        f"Exact return against generated tokens (left) and clock time (right) for windows of {WINDOWS[0]} to "
        f"{WINDOWS[-1]} tokens, the cap: interquartile mean of {seeds} seeds, 95% bootstrap intervals. "
        f"Dotted: the target of {TARGET}."
    )


def draw(rows: list[Row]) -> Figure:
    """Draw the two panels that `caption` describes."""
    runs = by_variant(rows)
    figure = new_figure(11, 4.2)
    axes = figure.subplots(1, 2, sharey=True)
    draw_curves(axes[0], runs, "tokens")
    draw_curves(axes[1], runs, "decode_steps")
    for ax in axes:
        draw_target(ax, TARGET)
    axes[0].set_ylabel(LABELS["exact_return"])
    axes[1].legend(loc="lower right", fontsize=8)
    return figure


STUDY = Study(
    name="window",
    chapter="learning",
    question="How does the length of the window change what is learned from a token, and in a given time?",
    run=run,
    seeds=10,
    full_seeds=40,
)
