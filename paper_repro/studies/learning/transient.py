"""The responses that finish first are the short ones: what critic and solve rate believe until the long ones arrive."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from paper_repro.studies.learning.bootstrap import interval_limit
from paper_repro.studies.learning.transient_findings import (
    LADDER,
    LEARNING,
    PER_RESPONSE,
    PER_TOKEN,
    WINDOWS,
    caption,
    draw,
    measure,
    say,
)
from paper_repro.studies.learning.trials import LearningStudy, Row, Truth, Variant, critic_values
from paper_repro.studies.learning.variants import DEMANDS, WINDOWED_CRITIC, heavy_tailed, windowed
from paper_repro.tasks.token_mdp import TokenMDPTask
from tppo.algorithms.auxiliaries.critic import WindowedCriticOptions
from tppo.config.run import RunConfig
from tppo.studies.study import Study, StudyOptions, StudyResult, Ticks

if TYPE_CHECKING:
    from tppo.loop.trainer import Trainer

SLOTS = 128
STEPS = 32
LIMITS = (
    "Sign and size follow from the task: here most responses that end in the first window have given up, and "
    "the slow ones are lost more often than those of middling length.",
    "All responses enter in the first step. A run that resumes with its responses in flight has no transient.",
    "Computed numbers are those of ever more slots. A trained critic forgets, follows with a delay and has the "
    "noise of its step size of 0.05, which here is as large as the effect.",
    "While learning, two errors mix: which responses finish, and that they were sampled in part by older policies.",
)


def variants() -> tuple[Variant, ...]:
    """Every window, under a policy that does not move and under one that learns.

    The critic's loss is a mean over tokens. On the other studies' table, whole responses compare it with the default,
    a mean over responses of means over tokens.
    """

    per_token = replace(WINDOWED_CRITIC, mini_batch=SLOTS, aggregation="token-mean")
    per_response = replace(per_token, aggregation="seq-mean-token-mean")

    def config(window: int, rate: float, critic: WindowedCriticOptions, task: TokenMDPTask) -> RunConfig:
        algorithm = replace(windowed(window, critic=critic), warmup_steps=0)
        return heavy_tailed(algorithm, rate=rate, slots=SLOTS, mini_batch=SLOTS, task=task)

    found = []
    for window in WINDOWS:
        for name, rate in ((f"W = {window}", 0.0), (f"W = {window}, {LEARNING}", 0.05)):
            found.append(Variant(name, config(window, rate, per_token, LADDER), critic="exact"))
    for name, critic in ((PER_TOKEN, per_token), (PER_RESPONSE, per_response)):
        found.append(Variant(name, config(WINDOWS[-1], 0.0, critic, DEMANDS), critic="exact"))
    return tuple(found)


def study(full: bool = False) -> LearningStudy:
    """Every variant for the same steps, which a full run repeats more often; a point each step."""
    return LearningStudy(variants(), clock="step", budget=STEPS, points=STEPS, observe=believed)


def believed(trainer: Trainer, metrics: Row, truth: Truth) -> Row:
    """The solved and finished responses of the step, and the critic's mean error over the states the policy visits."""
    V_S, visits_S = truth.values(truth.policy(trainer))
    return {
        "finished": metrics["finished"],
        "solved": round((metrics["solve_rate"] or 0.0) * metrics["finished"]),
        "critic_bias": round(float(visits_S @ (critic_values(trainer) - V_S) / visits_S.sum()), 6),
    }


def run(options: StudyOptions, progress: Ticks) -> StudyResult:
    """Fit a critic, exact at the start, to what finishes; compare with the truth each step."""
    rows = study(options.full).train(options, progress)
    found = measure(rows)
    answer, details = say(found)
    limits = (*LIMITS, interval_limit(options.seeds))
    return StudyResult(rows, draw(rows, found), caption(options.seeds), answer, details, limits)


STUDY = Study(
    name="transient",
    chapter="learning",
    question="How long do the first, short responses mislead the critic and the reported solve rate?",
    run=run,
    seeds=6,
    full_seeds=40,
)
