"""The configuration of a run: one frozen tree. Every number has a range; combinations are checked in one place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tppo.algorithms.base import Algorithm
from tppo.errors import ConfigError
from tppo.ranges import Range, check_ranges

if TYPE_CHECKING:
    from tppo.data.workload import Workload
    from tppo.ranks.ranks import Ranks


@dataclass(frozen=True)
class ModelShape:
    """What a plan must know of a task. config: of transformers, for a causal language model. prompt_tokens: longest."""

    config: Any
    prompt_tokens: int


@dataclass(frozen=True)
class TaskConfig:
    """What is learned. A recipe brings its own subclass; building it loads models and data."""

    def build(self, config: RunConfig, ranks: Ranks) -> Workload:
        """Models, prompts, reward and held-out problems of this task. A collective call."""
        raise NotImplementedError(f"{type(self).__name__} must define build()")

    def validate(self, config: RunConfig) -> None:
        """Checks that need more than one field. Raises ConfigError."""

    def shape(self) -> ModelShape | None:
        """The model without its weights, for ``tppo plan``; None where there is no transformer to plan."""
        return None


@dataclass(frozen=True)
class Rollout:
    """Generation."""

    slots: Annotated[int, Range(1, unit="responses")] = 8192
    """Responses in flight, constant."""
    group_size: Annotated[int, Range(1, unit="responses")] = 16
    """Responses to each prompt."""
    max_response_tokens: Annotated[int, Range(1, unit="tokens")] = 24576
    """Total cap of a response; reaching it ends the response."""
    temperature: Annotated[float, Range(0, above=True)] = 1.0
    """Of sampling, and of every log-probability in training."""


@dataclass(frozen=True)
class Optimizer:
    """AdamW for one model."""

    lr: Annotated[float, Range(0)] = 8e-7
    """Peak learning rate."""
    weight_decay: Annotated[float, Range(0)] = 0.1
    """Decoupled weight decay, on matrices only."""
    beta1: Annotated[float, Range(0, 1, below=True)] = 0.9
    """Decay of AdamW's first moment."""
    beta2: Annotated[float, Range(0, 1, below=True)] = 0.999
    """Decay of AdamW's second moment."""
    warmup_updates: Annotated[int, Range(0, unit="updates")] = 0
    """Linear warm-up from zero, then constant."""
    grad_clip: Annotated[float, Range(0, above=True)] | None = 1.0
    """Largest gradient norm; None is off."""
    mini_batch: Annotated[int, Range(1, unit="responses")] = 512
    """Responses per optimiser step."""
    epochs: Annotated[int, Range(1)] = 1
    """Passes over each step's data."""


@dataclass(frozen=True)
class Compute:
    """How a model call is cut up and where it runs. Only ``dtype`` changes a result beyond round-off."""

    device: str = "auto"
    """auto is cuda where there is one, else cpu."""
    micro_batch_tokens: Annotated[int, Range(1, unit="tokens")] = 32768
    """Most tokens, padding included, in one forward and backward pass."""
    packed: bool = False
    """Rows one behind the other instead of padded rectangles; transformers only. Pays by about the share of padding."""
    logit_chunk_tokens: Annotated[int, Range(1, unit="tokens")] = 1024
    """Most tokens whose logits exist at one time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What models compute in. Under bfloat16, which needs torchrun, master weights and optimiser stay in float32."""
    recompute: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    cpu_offload: bool = False
    """Keep shards and optimiser in the machine's memory, on a GPU under torchrun."""


@dataclass(frozen=True)
class VllmOptions:
    """How vLLM runs, for engine 'vllm' only."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and cache; auto is that of the trainer's weights."""
    max_rows: Annotated[int, Range(1, unit="responses")] = 256
    """Sequences decoded at a time."""
    memory_fraction: Annotated[float, Range(0, 1, above=True)] = 0.85
    """Share of the GPU's memory (or of the machine's) that vLLM may take."""
    tensor_parallel: Annotated[int, Range(1, unit="GPUs")] = 1
    """GPUs that share one copy of the model."""
    eager: bool = True
    """No graph capture: starts sooner, decodes more slowly on a GPU."""
    sleep: bool = False
    """Give the engine's GPU memory back after every generation; the next load of weights takes it again."""
    max_model_tokens: Annotated[int, Range(1, unit="tokens")] | None = None
    """Longest prompt and response together that vLLM makes room for; None is what the model can."""
    own_process: bool = False
    """Run the engine in a process of its own. Weights then travel through files, and its death does not end the run."""
    restarts: Annotated[int, Range(0)] = 0
    """How often a run may start an engine again that died; needs own_process."""


@dataclass(frozen=True)
class Evaluation:
    """Held-out evaluation."""

    every: Annotated[int, Range(0, unit="steps")] = 0
    """Evaluate every so many steps; 0 is only before and after training."""
    problems: Annotated[int, Range(1)] = 256
    """Held-out problems."""
    samples: Annotated[int, Range(1)] = 1
    """Responses to each problem."""
    temperature: Annotated[float, Range(0)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Nucleus; 1 is off."""
    stop_at: Annotated[float, Range(0, 1)] | None = None
    """End training once an evaluation during it reaches this solve rate."""


@dataclass(frozen=True)
class CheckpointOptions:
    """What a run can be resumed from. None of these changes a result."""

    every: Annotated[int, Range(0, unit="steps")] = 20
    """Save every so many steps, before the first and after the last; 0 saves on SIGTERM only."""
    keep: Annotated[int, Range(1, unit="checkpoints")] = 2
    """Newest checkpoints that are kept."""
    keep_best: Annotated[int, Range(0, unit="checkpoints")] = 1
    """Also kept: those with the largest held-out solve rate. Above zero, an evaluation that sets a record saves one."""


@dataclass(frozen=True)
class ValueStop:
    """When a run that trains the critic alone (as many warm-up steps as steps) has done enough. All off: at the end."""

    explained_variance: Annotated[float, Range(0, 1, above=True)] | None = None
    """Stop once the explained variance of the return, averaged over ``over`` steps, reaches this."""
    patience: Annotated[int, Range(1, unit="steps")] | None = None
    """Stop once that average has not risen by ``least_gain`` for so many steps."""
    over: Annotated[int, Range(1, unit="steps")] = 5
    """Steps in the average; those without an explained variance (equal returns everywhere) do not count."""
    least_gain: Annotated[float, Range(0)] = 0.01
    """A smaller rise is none."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run."""

    recipe: str
    """Name of the recipe."""
    task: TaskConfig
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Of sampling, data order and mini-batches."""
    steps: Annotated[int, Range(1)] = 1000
    """Training steps."""
    algorithm: Algorithm = field(default_factory=Algorithm)
    rollout: Rollout = field(default_factory=Rollout)
    policy: Optimizer = field(default_factory=Optimizer)
    critic: Optimizer = field(default_factory=lambda: Optimizer(lr=2e-6))
    compute: Compute = field(default_factory=Compute)
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    critic_start: str = ""
    """A run, or one of its checkpoints, whose critic this run begins with; empty is the task's own."""
    value_pretraining: ValueStop = field(default_factory=ValueStop)
    engine: Literal["torch", "vllm"] = "torch"
    """Inference engine: the embedded one, or vLLM."""
    vllm: VllmOptions = field(default_factory=VllmOptions)
    probe_bound: Annotated[float, Range(0, above=True, unit="nats")] = 0.05
    """Largest log-prob difference between engine and trainer on the tokens probed after each load of weights."""
    grading_seconds: Annotated[float, Range(0, above=True, unit="s")] = 120.0
    """Longest time without a verdict of the reward function before the run stops."""
    phase_limit_seconds: Annotated[float, Range(0, above=True, unit="s")] | None = 1800.0
    """A phase that takes longer is reported with all stack traces, and goes on; None is off."""
    tensorboard: bool = False
    """Also log to TensorBoard (extra 'tensorboard')."""

    @property
    def window(self) -> int:
        """New tokens per response and step: the schedule's window, or the cap when there is none."""
        cap = self.rollout.max_response_tokens
        return cap if self.algorithm.schedule.window is None else self.algorithm.schedule.window

    def with_values(self, **changes: Any) -> RunConfig:
        """A copy with leaves replaced; dots in field names are double underscores.

        Example: ``config.with_values(seed=1, algorithm__schedule__window=64)``.
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
    a, r = config.algorithm, config.rollout
    if r.slots % r.group_size:
        near = max(r.group_size, r.slots // r.group_size * r.group_size)
        raise ConfigError("rollout.slots", r.slots, f"a multiple of rollout.group_size ({r.group_size})", f"use {near}")
    window = a.schedule.window
    if window is not None and window < r.max_response_tokens and window <= a.filter.ignore_last:
        raise ConfigError(
            "algorithm.schedule.window",
            window,
            f"more than algorithm.filter.ignore_last ({a.filter.ignore_last})",
            "an unfinished window would train nothing; use a longer window or drop fewer tokens",
        )
    if window is not None and r.max_response_tokens < window:
        raise ConfigError(
            "rollout.max_response_tokens",
            r.max_response_tokens,
            f"at least algorithm.schedule.window ({window})",
            "a cap shorter than the window truncates nothing; a window of None is plain PPO",
        )
    if a.advantage.estimator == "gae" and window is not None and window < r.max_response_tokens:
        raise ConfigError(
            "algorithm.advantage.estimator",
            "gae",
            "'egae' when the window is shorter than the cap",
            "gae would punish every unfinished response as if it had ended; "
            "for that ablation use egae with boundary 'terminal'",
        )
    dual_clip, clip_high = a.policy_loss.dual_clip, a.policy_loss.clip_high
    if dual_clip is not None and dual_clip <= 1 + clip_high:
        raise ConfigError(
            "algorithm.policy_loss.dual_clip", dual_clip, f"more than 1 + clip_high ({1 + clip_high:g})", "or None"
        )
    for name, value, wanted in [
        ("boundary", a.advantage.boundary, "repeat"),
        ("ignore_last", a.filter.ignore_last, 0),
    ]:
        if a.advantage.estimator == "gae" and value != wanted:
            part = "advantage" if name == "boundary" else "filter"
            raise ConfigError(f"algorithm.{part}.{name}", value, f"{wanted!r} with estimator 'gae'", "it has no effect")
    _check_waiting(a)
    if (a.policy_loss.aggregation == "constant") != (a.policy_loss.constant_length is not None):
        raise ConfigError(
            "algorithm.policy_loss.constant_length",
            a.policy_loss.constant_length,
            "a length with aggregation 'constant', and None otherwise",
        )
    if a.value_target.aggregation == "constant":
        raise ConfigError("algorithm.value_target.aggregation", "constant", "a mean: values need no length normaliser")
    if (a.value_target.clip_low is None) != (a.value_target.clip_high is None):
        raise ConfigError("algorithm.value_target.clip_low", a.value_target.clip_low, "both clips or neither")
    if config.evaluation.stop_at is not None and not config.evaluation.every:
        raise ConfigError("evaluation.every", 0, "above 0 when evaluation.stop_at is set")
    if a.value_target.warmup_steps > config.steps:
        raise ConfigError(
            "algorithm.value_target.warmup_steps",
            a.value_target.warmup_steps,
            f"at most steps ({config.steps})",
            "the policy would never train; equal numbers are value pretraining",
        )
    stop = config.value_pretraining
    if a.value_target.warmup_steps < config.steps and (stop.explained_variance or stop.patience):
        raise ConfigError(
            "value_pretraining",
            stop,
            f"no criterion where the policy trains too (warm-up {a.value_target.warmup_steps} of {config.steps} steps)",
            "set algorithm.value_target.warmup_steps to steps: then only the critic trains",
        )
    if config.vllm.restarts and not config.vllm.own_process:
        raise ConfigError(
            "vllm.restarts",
            config.vllm.restarts,
            "0 without vllm.own_process",
            "an engine inside this process dies with it",
        )
    config.task.validate(config)


def _check_waiting(a: Algorithm) -> None:
    """What has no effect, or counts twice, beside train_on 'finished' and old_logprobs 'behaviour'."""
    if a.filter.train_on == "finished":
        if a.filter.ignore_last:
            raise ConfigError(
                "algorithm.filter.ignore_last",
                a.filter.ignore_last,
                "0 with algorithm.filter.train_on 'finished'",
                "a finished response has no cut to drop tokens before",
            )
        if a.advantage.boundary != "repeat" and a.value_target.responses == "finished":
            raise ConfigError(
                "algorithm.advantage.boundary",
                a.advantage.boundary,
                "'repeat' where neither policy nor critic trains on unfinished responses",
                "it has no effect",
            )
    if a.policy_loss.old_logprobs == "behaviour" and a.policy_loss.importance_cap is not None:
        raise ConfigError(
            "algorithm.policy_loss.importance_cap",
            a.policy_loss.importance_cap,
            "None with algorithm.policy_loss.old_logprobs 'behaviour'",
            "the ratio to the behaviour policy is in the clipped surrogate already",
        )
