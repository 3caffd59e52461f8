"""What the learning studies share: runs of the one trainer with exact returns along the way, and their statistics.

A study is a list of trials. `train` steps `tppo.loop.trainer.Trainer` and asks the simulator for the return of the
policy as it is, so no curve carries evaluation noise; what varies between seeds is training.

Clocks of a run: generated tokens, and decode steps. The decode steps of a training step are the tokens that its longest
request sampled: slots decode side by side, so a step lasts as long as its longest response. Time to train is not in it.

Shape suffixes: _R runs (seeds), _X points of a grid, _S states.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from paper_repro.recipes.small import token_mdp
from paper_repro.studies.intervals import Interval
from paper_repro.studies.learning.bootstrap import Floats, band
from paper_repro.tasks.token_mdp import TokenMDPTask
from sim import exact
from sim.mdp.table import TokenMDP
from tppo.algorithms import Algorithm
from tppo.config.run import RunConfig
from tppo.figures import PALETTE
from tppo.models.tabular import TabularCritic
from tppo.studies.study import Ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tppo.loop.metrics import Step
    from tppo.loop.trainer import Trainer

Row = dict[str, Any]
Clock = Literal["step", "tokens", "decode_steps"]
LABELS: dict[str, str] = {
    "step": "training steps",
    "tokens": "generated tokens [thousands]",
    "decode_steps": "clock time [decode steps]",
    "exact_return": "exact return of the policy",
}


DEMANDS = TokenMDPTask(family="tailed_length", size=31, num_tokens=6, tail=0.5, base_skill=0.3, base_stop_prob=0.1)
"""A Pareto tail of index 1/2, cut at 31; the start policy solves 59% in 7.4 tokens on average."""


def heavy_tailed(
    algorithm: Algorithm,
    *,
    seed: int,
    rate: float = 0.05,
    slots: int = 32,
    mini_batch: int = 32,
    task: TokenMDPTask = DEMANDS,
) -> RunConfig:
    """The token-mdp recipe on demands with a heavy tail and a cap of 64 tokens.

    Of the start policy's responses 50, 90 and 99% have at most 5, 15, 33 tokens. 32 slots and one optimiser step a
    training step, so that data are scarce. rate: learning rate of the policy.
    """
    recipe = token_mdp()
    return replace(
        recipe,
        task=task,
        algorithm=algorithm,
        seed=seed,
        steps=10**6,
        rollout=replace(recipe.rollout, slots=slots, max_response_tokens=64),
        policy=replace(recipe.policy, lr=rate, mini_batch=mini_batch),
        evaluation=replace(recipe.evaluation, every=0),
        compute=replace(recipe.compute, device="cpu"),
    )  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One training run of a study."""

    variant: str
    """Its name in the study."""
    config: RunConfig
    """Its seed is the run's."""
    until: tuple[Clock, int]
    """The clock that ends it, and its reading then."""
    points: int = 30
    """How often the run is looked at, evenly on that clock, the start not counted."""
    critic: Literal["zero", "exact"] = "zero"
    """The table it starts from: V = 0, or the exact values of the start policy."""
    observe: Callable[[Trainer, Row, Truth], Row] | None = None
    """More columns, from the trainer after a step, the step's metrics and the simulator."""


class Truth:
    """Exact answers about the policy of a run."""

    def __init__(self, config: RunConfig) -> None:
        assert isinstance(config.task, TokenMDPTask)
        self.mdp: TokenMDP = config.task.mdp(config.rollout.max_response_tokens)
        self.temperature = config.rollout.temperature

    def policy(self, trainer: Trainer) -> Floats:
        """[S, A] probabilities."""
        [(_, logits)] = trainer.policy.weights()
        return exact.softmax(logits.double().cpu().numpy() / self.temperature)

    def mean_return(self, policy: Floats) -> float:
        """J, which is the solve rate: rewards are 0 or 1."""
        for backup in exact.iter_evaluate(self.mdp, policy):
            first_S = backup.V_S
        return float(self.mdp.initial_S @ first_S)

    def values(self, policy: Floats) -> tuple[Floats, Floats]:
        """Values a critic without a clock should have [S], and the expected visits of each state [S].

        V(s) is the mean of V_t(s) over the times t at which s is visited: the least-squares fit to all returns.
        """
        visits_HS = exact.occupancy(self.mdp, policy)
        V_HS = np.zeros_like(visits_HS)
        for backup in exact.iter_evaluate(self.mdp, policy):
            V_HS[backup.t] = backup.V_S
        visits_S = visits_HS.sum(axis=0)
        return (visits_HS * V_HS).sum(axis=0) / np.maximum(visits_S, 1e-300), visits_S


def decode_steps(step: Step) -> int:
    """Decode steps of one training step: new tokens of the response that got most."""
    return max(len(r.tokens) - r.start for r in step.responses)


def critic_table(trainer: Trainer) -> TabularCritic:
    """The critic, a value for each state."""
    critic = trainer.networks.models["critic"]
    assert isinstance(critic, TabularCritic)
    return critic


def train(run: Trial) -> list[Row]:
    """Rows of one run: where it stands at the start and at each point, and what `observe` adds from the first step on.

    A point is the first step whose clock has passed it.
    """
    import torch

    from tppo.runs.build import build_trainer

    trainer, truth = build_trainer(run.config), Truth(run.config)
    if run.critic == "exact":
        V_S, _ = truth.values(truth.policy(trainer))
        with torch.no_grad():
            critic_table(trainer).values_S.copy_(torch.from_numpy(V_S))
    now: dict[str, int] = {"step": 0, "tokens": 0, "decode_steps": 0}

    def row() -> Row:
        place = {"variant": run.variant, "seed": run.config.seed, **now}
        return place | {"exact_return": round(truth.mean_return(truth.policy(trainer)), 6)}

    rows = [row()]
    clock, end = run.until
    while now[clock] < end:
        step = trainer.step()
        metrics = step.metrics
        now = {
            "step": trainer.steps_done,
            "tokens": now["tokens"] + metrics["new_tokens"],
            "decode_steps": now["decode_steps"] + decode_steps(step),
        }
        if now[clock] * run.points // end > rows[-1][clock] * run.points // end:
            rows.append(row() | (run.observe(trainer, metrics, truth) if run.observe else {}))
    trainer.engine.close()
    return rows


def train_all(runs: Sequence[Trial], progress: Ticks) -> list[Row]:
    """All rows, run after run, with the same columns."""
    # The first row of a file names its columns, and the start of a run has nothing to observe.
    rows = [row for part in progress.map(train, runs, unit="run") for row in part]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in columns} for row in rows]


def by_variant(rows: Iterable[Row]) -> dict[str, list[list[Row]]]:
    """The rows of each run of each variant, both in the order they came."""
    runs: dict[str, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        runs[row["variant"]][row["seed"]].append(row)
    return {variant: list(seeds.values()) for variant, seeds in runs.items()}


def on_grid(runs: Sequence[Sequence[Row]], clock: str, grid_X: ArrayLike, key: str = "exact_return") -> Floats:
    """[R, X] a column of each run at readings of a clock, linear between the points of the run."""
    return np.stack([np.interp(np.asarray(grid_X), *_columns(run, clock, key)) for run in runs])


def _columns(run: Sequence[Row], clock: str, key: str) -> tuple[list[float], list[float]]:
    kept = [row for row in run if row[key] is not None]
    return [row[clock] for row in kept], [row[key] for row in kept]


def reach(runs: Sequence[Sequence[Row]], clock: str, target: float) -> Floats:
    """[R] reading of the clock when the exact return first reaches the target; the run's end where it never does."""
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
    """Runs that never reach the target."""
    return sum(max(row["exact_return"] for row in run) < target for run in runs)


def draw_curves(
    ax: Axes,
    variants: Mapping[str, Sequence[Sequence[Row]]],
    clock: Clock,
    *,
    end: float | None = None,
    points: int = 60,
) -> None:
    """IQM and interval of the exact return of each variant against a clock, to where its shortest run ends."""
    scale = 1e-3 if clock == "tokens" else 1.0
    for i, (name, runs) in enumerate(variants.items()):
        last = min(run[-1][clock] for run in runs)
        grid_X = np.linspace(0, last if end is None else min(last, end), points)
        curve = band(on_grid(runs, clock, grid_X), resamples=500)
        colour, style = PALETTE[i % len(PALETTE)], "-" if i < len(PALETTE) else "--"
        ax.plot(grid_X * scale, curve.mid_X, color=colour, ls=style, lw=1.6, label=name)
        ax.fill_between(grid_X * scale, curve.low_X, curve.high_X, color=colour, alpha=0.18, lw=0)
    ax.set(xlabel=LABELS[clock], xlim=(0, None))
    tidy(ax)


def tidy(ax: Axes) -> None:
    """A light grid and no box."""
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def draw_intervals(ax: Axes, bars: Mapping[str, Interval], label: str) -> None:
    """One line a variant, first on top: estimate and interval."""
    names = list(bars)
    for i, name in enumerate(names):
        mid, low, high = bars[name]
        # With few runs the estimate of a ratio may lie outside its percentile interval.
        error = [[max(mid - low, 0.0)], [max(high - mid, 0.0)]]
        ax.errorbar(mid, i, xerr=error, fmt="o", color=PALETTE[i % len(PALETTE)], capsize=3, ms=5)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel(label)
    ax.locator_params(axis="x", nbins=6)
    tidy(ax)
