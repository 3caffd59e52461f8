"""What the learning studies share: runs of the one trainer with exact returns along the way, and their statistics.

A study is data: a `LearningStudy` of variants, the clock that ends their runs, and the pairs that it compares. `train`
steps `tppo.loop.trainer.Trainer` and asks the simulator for the return of the policy as it is, so no curve carries
evaluation noise; what varies between seeds is training.

Clocks of a run: generated tokens, and decode steps. The decode steps of a training step are the tokens that its longest
request sampled: slots decode side by side, so a step lasts as long as its longest response. Time to train is not in it.

Shape suffixes: _R runs (seeds), _X points of a grid, _S states.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from paper_repro.studies.intervals import Interval
from paper_repro.studies.learning.bootstrap import Floats, compare, interval
from paper_repro.tasks.token_mdp import TokenMDPTask
from sim import exact
from sim.mdp.table import TokenMDP
from tppo.config.run import RunConfig
from tppo.studies.study import StudyOptions, Ticks

if TYPE_CHECKING:
    from tppo.loop.metrics import Step
    from tppo.loop.trainer import Trainer

Row = dict[str, Any]
Clock = Literal["step", "tokens", "decode_steps"]
Pair = tuple[str, str]  # names of two variants


@dataclass(frozen=True)
class Variant:
    """One way to train. critic: the table it starts from, V = 0 or the exact values of the start policy."""

    name: str
    config: RunConfig  # of any seed
    critic: Literal["zero", "exact"] = "zero"


@dataclass(frozen=True)
class LearningStudy:
    """Variants that are trained until a clock reads `budget`, with every seed.

    points: how often a run is looked at, evenly on that clock, the start not counted.
    observe: gives more columns from the trainer after a step, the step's metrics and the simulator.
    """

    variants: tuple[Variant, ...]
    clock: Clock
    budget: int
    points: int = 30
    observe: Callable[[Trainer, Row, Truth], Row] | None = None
    comparisons: tuple[Pair, ...] = ()

    def runs(self, options: StudyOptions) -> list[Trial]:
        """Every variant with every seed."""
        seeds = range(options.seed, options.seed + options.seeds)
        return [Trial(self, variant, seed) for variant in self.variants for seed in seeds]

    def train(self, options: StudyOptions, progress: Ticks) -> list[Row]:
        """The rows of all runs, one run after the other, with the same columns."""
        # The first row of a file names its columns, and the start of a run has nothing to observe.
        rows = [row for part in progress.map(train, self.runs(options), unit="run") for row in part]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        return [{key: row.get(key) for key in columns} for row in rows]

    def compare(self, scores: Mapping[str, ArrayLike], how: Literal["minus", "over"]) -> dict[Pair, Interval]:
        """The difference or the ratio of the scores of each pair that the study compares."""
        return {(one, other): compare(scores[one], scores[other], how) for one, other in self.comparisons}


@dataclass(frozen=True)
class Trial:
    """One training run of a study."""

    study: LearningStudy
    variant: Variant
    seed: int

    @property
    def config(self) -> RunConfig:
        """The variant's configuration with the seed of this run."""
        return self.variant.config.with_values(seed=self.seed)


class Truth:
    """The exact answers about the policy of a run."""

    def __init__(self, config: RunConfig) -> None:
        assert isinstance(config.task, TokenMDPTask)
        self.mdp: TokenMDP = config.task.mdp(config.rollout.max_response_tokens)
        self.temperature = config.rollout.temperature

    def policy(self, trainer: Trainer) -> Floats:
        """The probabilities of the policy, [S, A]."""
        [(_, logits)] = trainer.policy.weights()
        return exact.softmax(logits.double().cpu().numpy() / self.temperature)

    def mean_return(self, policy: Floats) -> float:
        """The expected return J, which is the solve rate: rewards are 0 or 1."""
        for backup in exact.iter_evaluate(self.mdp, policy):
            first_S = backup.V_S
        return float(self.mdp.initial_S @ first_S)

    def values(self, policy: Floats) -> tuple[Floats, Floats]:
        """The values that a critic without a clock should have [S] and the expected visits of each state [S].

        V(s) is the mean of V_t(s) over the times t at which s is visited: the least-squares fit to all returns.
        """
        visits_HS = exact.occupancy(self.mdp, policy)
        V_HS = np.zeros_like(visits_HS)
        for backup in exact.iter_evaluate(self.mdp, policy):
            V_HS[backup.t] = backup.V_S
        visits_S = visits_HS.sum(axis=0)
        return (visits_HS * V_HS).sum(axis=0) / np.maximum(visits_S, 1e-300), visits_S


def train(run: Trial) -> list[Row]:
    """Train, and return a row for the start and for each point; a point is the first step whose clock has passed it."""
    from tppo.runs.build import build_trainer

    study = run.study
    trainer, truth = build_trainer(run.config), Truth(run.config)
    if run.variant.critic == "exact":
        set_critic(trainer, truth.values(truth.policy(trainer))[0])
    now: dict[str, int] = dict.fromkeys(get_args(Clock), 0)

    def row() -> Row:
        place = {"variant": run.variant.name, "seed": run.seed, **now}
        return place | {"exact_return": round(truth.mean_return(truth.policy(trainer)), 6)}

    rows = [row()]
    while now[study.clock] < study.budget:
        step = trainer.step()
        metrics = step.metrics
        tokens, clock = now["tokens"] + metrics["new_tokens"], now["decode_steps"] + decode_steps(step)
        now = {"step": trainer.steps_done, "tokens": tokens, "decode_steps": clock}
        passed, seen = (at[study.clock] * study.points // study.budget for at in (now, rows[-1]))
        if passed > seen:
            rows.append(row() | (study.observe(trainer, metrics, truth) if study.observe else {}))
    trainer.engine.close()
    return rows


def decode_steps(step: Step) -> int:
    """The decode steps of one training step: the new tokens of the response that got most."""
    return max(len(r.tokens) - r.start for r in step.responses)


def set_critic(trainer: Trainer, V_S: Floats) -> None:
    """Overwrite the critic's table, [S]. No configuration starts a critic from given values."""
    import torch

    with torch.no_grad():
        next(trainer.networks.models["critic"].parameters()).copy_(torch.from_numpy(V_S))


def critic_values(trainer: Trainer) -> Floats:
    """The critic's table, [S]."""
    table = next(trainer.networks.models["critic"].parameters())
    return np.asarray(table.detach().double().cpu().numpy())


def by_variant(rows: Iterable[Row]) -> dict[str, list[list[Row]]]:
    """The rows of each run of each variant, both in the order they came."""
    runs: dict[str, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        runs[row["variant"]][row["seed"]].append(row)
    return {variant: list(seeds.values()) for variant, seeds in runs.items()}


def on_grid(runs: Sequence[Sequence[Row]], clock: str, grid_X: ArrayLike, key: str = "exact_return") -> Floats:
    """A column of each run at readings of a clock, [R, X], linear between the points of the run."""
    return np.stack([np.interp(np.asarray(grid_X), *_columns(run, clock, key)) for run in runs])


def _columns(run: Sequence[Row], clock: str, key: str) -> tuple[list[float], list[float]]:
    kept = [row for row in run if row[key] is not None]
    return [row[clock] for row in kept], [row[key] for row in kept]


def reach(runs: Sequence[Sequence[Row]], clock: str, target: float) -> Floats:
    """The reading of the clock when the exact return first reaches the target, [R].

    A run that never reaches it has the reading of its end.
    """
    out = []
    for run in runs:
        x, y = _columns(run, clock, "exact_return")
        above = next((i for i, value in enumerate(y) if value >= target), None)
        if above is None:
            out.append(x[-1])
        else:
            out.append(
                x[0] if above == 0 else float(np.interp(target, y[above - 1 : above + 1], x[above - 1 : above + 1]))
            )
    return np.array(out, dtype=np.float64)


def censored(runs: Sequence[Sequence[Row]], target: float) -> int:
    """How many runs never reach the target."""
    return sum(max(row["exact_return"] for row in run) < target for run in runs)


@dataclass(frozen=True)
class Reached:
    """What the runs of a variant need to reach a return; a run that never does counts with its end."""

    need: Mapping[str, Interval]  # clock to its reading
    missed: int  # runs that never reach it
    runs: int

    def missing(self, short_of: str = "short") -> str:
        """How many runs stopped short, as findings write it; nothing where all arrived."""
        return f"{self.missed} of {self.runs} runs stopped {short_of} and count with their end" if self.missed else ""


def reached(variants: Mapping[str, Sequence[Sequence[Row]]], target: float) -> dict[str, Reached]:
    """What each variant needs of each clock to reach the target."""
    return {
        name: Reached(
            {clock: interval(reach(runs, clock, target)) for clock in get_args(Clock)},
            censored(runs, target),
            len(runs),
        )
        for name, runs in variants.items()
    }
