"""T-PPO with its parts taken out one at a time, and plain PPO with its critic trained apart or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paper_repro.studies.intervals import Interval
from paper_repro.studies.learning.bootstrap import interval_limit
from paper_repro.studies.learning.curves import LABELS, draw_curves, draw_intervals, draw_target
from paper_repro.studies.learning.trials import (
    LearningStudy,
    Pair,
    Reached,
    Row,
    Variant,
    by_variant,
    reach,
    reached,
)
from paper_repro.studies.learning.variants import CRITIC, WINDOWED_CRITIC, heavy_tailed, waiting, whole, windowed
from tppo.algorithms import Algorithm
from tppo.figures import new_figure
from tppo.studies.study import Study, StudyOptions, StudyResult, Ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOW, IGNORE_LAST, LAM = 8, 2, 0.95
TOKENS = 12_000
TARGET = 0.85
TPPO = "T-PPO"
NO_FILTER = "no token filter"
ALL = "critic on all"
WAIT = "wait for the end"
PPO = "PPO, critic apart"
DUAL = "PPO, critic on the policy's targets"
LIMITS = (
    "Waiting for the end leaves nothing unfinished to filter, so six variants and not eight have a window. It "
    "trains on tokens of older policies, with the ratio centred on the policy at the start of the step and no "
    "correction; the study 'staleness' compares corrections.",
    "'Critic on all' adds the unfinished windows with lambda-returns that repeat V at the cut; tokens of "
    "finished responses it shares with the others, but towards lambda-returns too, so two things change.",
    "Policy and critic are separate tables and advantages are computed before either moves, so 'apart' is "
    "about targets alone: the order of the two updates changes nothing.",
    "One task and one setting of learning rates; differences of a few percent may turn round elsewhere.",
)


def variants() -> tuple[Variant, ...]:
    """T-PPO, its parts taken out, and PPO."""
    on_all = replace(WINDOWED_CRITIC, lam=LAM, responses="all")
    algorithms: dict[str, Algorithm] = {
        TPPO: windowed(WINDOW, ignore_last=IGNORE_LAST),
        NO_FILTER: windowed(WINDOW, ignore_last=0),
        ALL: windowed(WINDOW, ignore_last=IGNORE_LAST, critic=on_all),
        f"{ALL}, {NO_FILTER}": windowed(WINDOW, ignore_last=0, critic=on_all),
        WAIT: waiting(WINDOW),
        f"{WAIT}, {ALL}": waiting(WINDOW, critic=on_all),
        PPO: whole(),
        DUAL: whole(critic=replace(CRITIC, lam=LAM)),
    }
    return tuple(Variant(name, heavy_tailed(algorithm)) for name, algorithm in algorithms.items())


def study(full: bool = False) -> LearningStudy:
    """Every variant on as many tokens, compared with T-PPO; and the two kinds of PPO with each other."""
    chosen = variants()
    return LearningStudy(
        chosen,
        clock="tokens",
        budget=2 * TOKENS if full else TOKENS,
        comparisons=(*((variant.name, TPPO) for variant in chosen), (DUAL, PPO)),
    )


def run(options: StudyOptions, progress: Ticks) -> StudyResult:
    """Train every variant, and compare tokens and clock time to a return."""
    rows = study(options.full).train(options, progress)
    found = measure(rows)
    answer, details = say(found)
    limits = (*LIMITS, interval_limit(options.seeds))
    return StudyResult(rows, draw(rows, found), caption(options.seeds), answer, details, limits)


@dataclass(frozen=True)
class Findings:
    """What each variant needs to reach the target."""

    reached: Mapping[str, Reached]
    tokens_ratio: Mapping[Pair, Interval]  # tokens of the one over those of the other


def measure(rows: list[Row]) -> Findings:
    """Compute the findings from the rows of data.csv."""
    runs = by_variant(rows)
    tokens = {name: reach(runs[name], "tokens", TARGET) for name in runs}
    return Findings(reached(runs, TARGET), study().compare(tokens, "over"))


def say(found: Findings) -> tuple[str, list[str]]:
    """The answer, and further findings."""
    times = {pair: ratio.text(".2f") for pair, ratio in found.tokens_ratio.items()}
    answer = (
        f"To a return of {TARGET}, waiting for the end of each response takes {times[WAIT, TPPO]} times the "
        f"tokens of T-PPO, a critic that also trains on unfinished windows {times[ALL, TPPO]} times, no token filter "
        f"{times[NO_FILTER, TPPO]} times. On plain PPO, giving the critic the policy's lambda of {LAM} instead of "
        f"Monte-Carlo targets of its own takes {times[DUAL, PPO]} times the tokens."
    )
    return answer, [
        f"{name}: {of.need['tokens'].text(',.0f')} tokens ({times[name, TPPO]} of T-PPO's), "
        f"{of.need['decode_steps'].text(',.0f')} decode steps" + (f"; {of.missing()}" if of.missed else "")
        for name, of in found.reached.items()
    ]


def caption(seeds: int) -> str:
    """What the figure shows."""
    return (
        f"Exact return against generated tokens (left), tokens and clock time to a return of {TARGET} (middle, "
        f"right); window {WINDOW} of 64, m = {IGNORE_LAST}. Interquartile mean of {seeds} seeds, 95% bootstrap "
        f"intervals."
    )


def draw(rows: list[Row], found: Findings) -> Figure:
    """Draw the three panels that `caption` describes."""
    figure = new_figure(13, 4.4)
    curves, tokens, clock = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    draw_curves(curves, by_variant(rows), "tokens")
    draw_target(curves, TARGET)
    curves.set_ylabel(LABELS["exact_return"])
    curves.legend(fontsize=7, loc="lower right")
    need = {name: of.need for name, of in found.reached.items()}
    thousands = {name: Interval(*(x / 1000 for x in of["tokens"])) for name, of in need.items()}
    draw_intervals(tokens, thousands, f"tokens to {TARGET} [thousands]")
    draw_intervals(clock, {name: of["decode_steps"] for name, of in need.items()}, f"decode steps to {TARGET}")
    clock.set_yticklabels([])
    return figure


STUDY = Study(
    name="ablation",
    chapter="learning",
    question="Which part of T-PPO does the work: training on unfinished windows, what the critic sees, or the filter?",
    run=run,
    seeds=8,
    full_seeds=40,
)
