"""The configuration of a run: one frozen tree. Every number has a range; combinations are checked in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

from tppo.algorithms.base import Algorithm, Rollout
from tppo.algorithms.check import checked_parts
from tppo.algorithms.tppo import TPPO
from tppo.config.need import Need
from tppo.data.chat import check_moment
from tppo.data.workload import Workload
from tppo.engines.options import VllmOptions
from tppo.errors import ConfigError
from tppo.fit.options import Optimizer
from tppo.models.options import Compute
from tppo.ranges import HOT, PROBLEMS, SECONDS, SEED, STEPS, Range, check_ranges
from tppo.ranks.ranks import Ranks

__all__ = [
    "CheckpointOptions", "Compute", "Evaluation", "ModelShape", "Optimizer", "Rollout", "RunConfig", "TaskConfig",
    "VllmOptions", "validate",
]  # fmt: skip


@dataclass(frozen=True)
class ModelShape:
    """What a plan must know of a task. config: of transformers, for a causal language model. prompt_tokens: longest."""

    config: Any
    prompt_tokens: int


@dataclass(frozen=True)
class TaskConfig:
    """What is learned. A recipe brings its own subclass; building it loads models and data."""

    model_fields: ClassVar[tuple[str, ...]] = ("task",)
    """Fields, from the root of the configuration, that decide how large the model is; the one to change comes first."""

    def build(self, config: RunConfig, ranks: Ranks) -> Workload:
        """Models, prompts, reward and held-out problems of this task. ranks: those of the run."""
        raise NotImplementedError(f"{type(self).__name__} must define build()")

    def validate(self, config: RunConfig) -> None:
        """Checks that need more than one field. Raises ConfigError."""

    def pinned(self) -> Self:
        """The same, with a digest of every file outside that decides the run, so that a resumed run finds a changed
        one. Raises ConfigError.
        """
        return self

    def shape(self) -> ModelShape | None:
        """The model without its weights, for ``tppo plan``; None where there is no transformer to plan."""
        return None

    def needs(self, config: RunConfig) -> tuple[Need, ...]:
        """Memory of what ``build`` makes beside models whose ``shape`` is known."""
        return ()

    def idle(self, config: RunConfig) -> Mapping[str, str]:
        """Fields, from the root of the configuration, that change nothing for this task, each with the reason."""
        return {}


@dataclass(frozen=True)
class Evaluation:
    """Held-out evaluation."""

    every: Annotated[int, Range(0, STEPS, unit="steps")] = 0
    """Evaluate every so many steps; 0 is only before and after training."""
    problems: Annotated[int, Range(1, PROBLEMS, unit="problems")] = 256
    """Held-out problems."""
    samples: Annotated[int, Range(1, 100_000, unit="responses")] = 1
    """Responses to each problem."""
    temperature: Annotated[float, Range(0, HOT)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Nucleus; 1 is off."""
    stop_at: Annotated[float, Range(0, 1)] | None = None
    """End training once an evaluation during it reaches this solve rate."""


@dataclass(frozen=True)
class CheckpointOptions:
    """What a run can be resumed from. None of these changes a result."""

    every: Annotated[int, Range(0, STEPS, unit="steps")] = 20
    """Save every so many steps, before the first and after the last; 0 saves on SIGTERM only."""
    keep: Annotated[int, Range(1, 1_000_000, unit="checkpoints")] = 2
    """Newest checkpoints that are kept."""
    keep_best: Annotated[int, Range(0, 1_000_000, unit="checkpoints")] = 1
    """Also kept: those with the largest held-out solve rate. Above zero, an evaluation that sets a record saves one."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run."""

    recipe: str
    """Name of the recipe."""
    task: TaskConfig
    seed: Annotated[int, Range(0, SEED)] = 0
    """Of sampling, data order and mini-batches."""
    steps: Annotated[int, Range(1, STEPS)] = 1000
    """Training steps."""
    algorithm: Algorithm = field(default_factory=TPPO)
    rollout: Rollout = field(default_factory=Rollout)
    policy: Optimizer = field(default_factory=Optimizer)
    compute: Compute = field(default_factory=Compute)
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    engine: Literal["torch", "vllm"] = "torch"
    """Inference engine: the embedded one, or vLLM."""
    vllm: VllmOptions = field(default_factory=VllmOptions)
    probe_bound: Annotated[float, Range(0, 1000, above=True, unit="nats")] | None = None
    """Largest mean log-prob difference between engine and trainer on the tokens probed after each load of weights; None
    is 0.01, or 0.15 where either computes in 16 bits."""
    grading_seconds: Annotated[float, Range(0, SECONDS, above=True, unit="s")] = 120.0
    """Longest time without a verdict of the reward function before the run stops."""
    phase_limit_seconds: Annotated[float, Range(0, SECONDS, above=True, unit="s")] | None = 1800.0
    """A phase that takes longer is reported with all stack traces, and goes on; None is off."""
    started: str = ""
    """Date and time, in ISO 8601, that chat templates take for today; empty is the run's start, which is kept."""
    tensorboard: bool = False
    """Also log to TensorBoard (extra 'tensorboard')."""

    @property
    def window(self) -> int:
        """New tokens of a response in a round of generation: the algorithm's window, or the cap when it has none."""
        return self.algorithm.parts(self.rollout).window or self.rollout.max_response_tokens

    @property
    def narrow(self) -> bool:
        """Whether trainer or engine computes in 16 bits."""
        of_engine = self.vllm.dtype if self.engine == "vllm" else "auto"
        return (
            self.compute.dtype if of_engine == "auto" else of_engine
        ) != "float32" or self.compute.dtype != "float32"

    def with_values(self, **changes: Any) -> RunConfig:
        """A copy with leaves replaced; dots in field names are double underscores.

        Example: ``config.with_values(seed=1, algorithm__window=64)``.
        """
        return _replace(self, {tuple(k.split("__")): v for k, v in changes.items()})


def _replace(node: Any, changes: dict[tuple[str, ...], Any]) -> Any:
    direct: dict[str, Any] = {}
    nested: dict[str, dict[tuple[str, ...], Any]] = {}
    for path, value in changes.items():
        if len(path) == 1:
            direct[path[0]] = value
        else:
            nested.setdefault(path[0], {})[path[1:]] = value
    known = {f.name for f in dataclasses.fields(node)}
    for name in [*direct, *nested]:
        if name not in known:
            raise ConfigError(name, "unknown", "one of " + ", ".join(sorted(known)))
    for name, rest in nested.items():
        direct[name] = _replace(getattr(node, name), rest)
    return dataclasses.replace(node, **direct)


def validate(config: RunConfig) -> None:
    """Every range, then every impossible combination. Raises ConfigError before anything is loaded."""
    check_ranges(config)
    check_moment("started", config.started)
    r = config.rollout
    if r.slots % r.group_size:
        near = max(r.group_size, r.slots // r.group_size * r.group_size)
        raise ConfigError("rollout.slots", r.slots, f"a multiple of rollout.group_size ({r.group_size})", f"use {near}")
    parts = checked_parts(config.algorithm, r)
    if parts.once and config.policy.epochs > 1:
        raise ConfigError(
            "policy.epochs",
            config.policy.epochs,
            f"1 with the algorithm {config.algorithm.name!r}",
            "its loss has neither ratio nor clip, so that further passes have no lower bound",
        )
    if parts.policy_from > config.steps:
        raise ConfigError(
            "algorithm.warmup_steps",
            parts.policy_from,
            f"at most steps ({config.steps})",
            "the policy would never train; the algorithm 'value-pretraining' trains the critic alone",
        )
    if config.evaluation.stop_at is not None and not config.evaluation.every:
        raise ConfigError("evaluation.every", 0, "above 0 when evaluation.stop_at is set")
    if config.vllm.restarts and not config.vllm.own_process:
        raise ConfigError(
            "vllm.restarts",
            config.vllm.restarts,
            "0 without vllm.own_process",
            "an engine inside this process dies with it",
        )
    config.task.validate(config)
