"""The pair of runs that is compared at each size of model, and the same made tiny for a dry run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paper_repro.models.shrunken import PREFIX
from paper_repro.recipes import small
from paper_repro.recipes.registry import RECIPES
from paper_repro.tasks.pretrained import MathDataTask
from tppo.algorithms import PPO, ValuePretraining
from tppo.config.registry import carried
from tppo.config.run import RunConfig, VllmOptions, validate
from tppo.errors import ConfigError

VALUE_SEED = 10_000
"""Value pretraining has prompts and random numbers of its own."""
EVALUATION_SEED = 20_000
"""Every policy is asked the same with the same random numbers."""

FIXED = (*("task.train", "task.held_out", "recipe", "seed", "algorithm.critic.start", "algorithm.warmup_steps"),)
"""Fields that the reproduction itself decides."""


@dataclass(frozen=True)
class RunPair:
    """T-PPO and PPO at one size of model; they differ in the algorithm alone."""

    tppo: RunConfig
    ppo: RunConfig
    value: RunConfig
    """The run of the critic alone, with whose critic both begin."""
    target: float
    """Solve rate whose first reaching goes into the table."""
    shape: str = ""
    """Architecture of a dry run's model, empty where the task makes its own."""
    dry_run: bool = False
    """Whether this is the tiny one, whose numbers mean nothing."""

    @property
    def reads_files(self) -> bool:
        """Whether problems come from files, which the first stage prepares."""
        return isinstance(self.tppo.task, MathDataTask)


def pair(size: str, changes: Mapping[str, Any] | None = None, *, dry_run: bool = False) -> RunPair:
    """The pair of that size. Raises ConfigError.

    changes: dotted fields to values, see ``_changed``.
    dry_run: a small random model, few and short responses, three steps.
    """
    if size not in SIZES:
        raise ConfigError("size", size, "one of " + ", ".join(SIZES))
    chosen = SIZES[size]()
    if dry_run:
        chosen = _tiny(chosen)
    for path, value in (changes or {}).items():
        chosen = _changed(chosen, path, value)
    for config in (chosen.tppo, chosen.ppo, chosen.value):
        validate(config)
    return chosen


def _changed(chosen: RunPair, path: str, value: Any) -> RunPair:
    """One field changed in the runs it belongs to: a field of the windows in T-PPO alone, the number of steps and the
    evaluation in both that train the policy, one named value.* in value pretraining, all else in all three.
    """
    if any(path == name or path.startswith(f"{name}.") for name in FIXED):
        raise ConfigError("set", path, "a field that the reproduction leaves open", f"it decides {', '.join(FIXED)}")
    own, key = path.removeprefix("value."), path.removeprefix("value.").replace(".", "__")
    if own != path:
        runs = {"value"}
    elif path == "steps" or path.startswith("evaluation."):
        runs = {"tppo", "ppo"}
    elif path.startswith("algorithm."):  # where the algorithm has such a number; the window is T-PPO's own
        field = path.split(".")[1]
        runs = {name for name in ("tppo", "ppo", "value") if hasattr(getattr(chosen, name).algorithm, field)}
        runs = {"tppo"} if field == "window" or not runs else runs
    else:
        runs = {"tppo", "ppo", "value"}
    new = {name: getattr(chosen, name).with_values(**{key: value}) for name in runs}
    return dataclasses.replace(chosen, **new)


def parse_changes(texts: list[str]) -> dict[str, Any]:
    """FIELD=VALUE pairs; a value is JSON, or else text. Raises ConfigError.

    >>> parse_changes(["rollout.slots=64", "engine=torch"])
    {'rollout.slots': 64, 'engine': 'torch'}
    """
    changes: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ConfigError("set", text, "FIELD=VALUE", "for example rollout.slots=64")
        if name in changes:
            raise ConfigError("set", text, "one value", f"{name} is set to {changes[name]!r} already")
        try:
            changes[name] = json.loads(value)
        except ValueError:
            changes[name] = value
    return changes


def _paired(
    config: RunConfig, rival: RunConfig, *, value_steps: int, stop: ValuePretraining, target: float, shape: str = ""
) -> RunPair:
    """Both runs train the policy from the first step: the critic has learned before. Value pretraining generates whole
    responses: windows would show it the short ones first.
    """
    value = dataclasses.replace(rival, algorithm=carried(rival.algorithm, stop)).with_values(
        recipe=f"{config.recipe.removesuffix('-tppo')}-value",
        seed=VALUE_SEED,
        steps=value_steps,
        # The policy does not change: its score is measured by the evaluation.
        evaluation=dataclasses.replace(config.evaluation, every=0, problems=2, samples=1),
        checkpoint__keep_best=0,
        checkpoint__keep=1,
    )
    return RunPair(
        tppo=_from_the_first_step(config),
        ppo=_from_the_first_step(rival),
        value=value,
        target=target,
        shape=shape,
    )


def _from_the_first_step(config: RunConfig) -> RunConfig:
    assert isinstance(config.algorithm, PPO)
    return dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, warmup_steps=0))


def _toy() -> RunPair:
    stop = ValuePretraining(patience=8)
    return _paired(small.toy_language(), small.toy_language_ppo(), value_steps=30, stop=stop, target=0.9)


def _smollm2() -> RunPair:
    config = small.smollm2_135m()
    stop = ValuePretraining(patience=8)
    rival = small.ppo_twin(config, f"{config.recipe}-ppo")
    return _paired(config, rival, value_steps=20, stop=stop, target=0.8, shape="Qwen2.5-0.5B")


def _qwen(size: str, shape: str, target: float) -> RunPair:
    config, rival = RECIPES[f"qwen2.5-{size}-tppo"](), RECIPES[f"qwen2.5-{size}-ppo"]()
    # 50 steps as in VAPO; that they may end earlier is our choice.
    return _paired(config, rival, value_steps=50, stop=ValuePretraining(patience=15), target=target, shape=shape)


SIZES = {
    "toy": _toy,
    "smollm2": _smollm2,
    "0.5b": lambda: _qwen("0.5b", "Qwen2.5-0.5B", 0.01),
    "7b": lambda: _qwen("7b", "Qwen2.5-7B", 0.1),
    "32b": lambda: _qwen("32b", "Qwen2.5-32B", 0.5),  # DAPO's score
}


def _tiny(full: RunPair) -> RunPair:
    """The same code path in seconds. Nothing depends on the number of ranks: a run may go on with another."""
    changes: dict[str, Any] = {
        "rollout__slots": 16, "rollout__group_size": 2, "rollout__max_response_tokens": 24,
        "policy__mini_batch": 8, "policy__warmup_updates": 0,
        "algorithm__critic__mini_batch": 8, "algorithm__critic__warmup_updates": 0,
        # Float32: a CPU may have no fast bfloat16, and outside torchrun there are no master weights.
        "compute": dataclasses.replace(
            full.tppo.compute, dtype="float32", micro_batch_tokens=8192, logit_chunk_tokens=512
        ),
        "checkpoint__every": 1, "engine": "torch", "vllm": VllmOptions(max_rows=16, memory_fraction=0.2),
    }  # fmt: skip
    if full.shape:
        # A token is a byte: prompts are about four times as long.
        changes |= {"task__model": PREFIX + full.shape, "task__max_prompt_tokens": 4096, "task__grader_workers": 1}
    else:
        changes |= {"task__base__examples": 64, "task__base__layers": 1}
    evaluation = dataclasses.replace(full.tppo.evaluation, every=2, problems=2, samples=2)
    runs = [
        config.with_values(**changes, steps=3, evaluation=evaluation).with_values(**more)
        for config, more in (
            (full.tppo, {"algorithm__window": 8, "algorithm__ignore_last": 2}),
            (full.ppo, {}),
        )
    ]
    quiet = dataclasses.replace(evaluation, every=0, samples=1)
    value = full.value.with_values(
        **changes, steps=2, evaluation=quiet, algorithm__explained_variance=None, algorithm__patience=None
    )
    return RunPair(runs[0], runs[1], value, full.target, full.shape, dry_run=True)
