"""Options that change nothing where they are given: each is said once, to whoever gave it.

A recipe brings every field, and most runs have no use for some; so only what was asked for is worth a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter

from tppo.algorithms.base import Algorithm
from tppo.algorithms.parts.select import every_window
from tppo.config.run import RunConfig
from tppo.fit.options import Optimizer
from tppo.ranges import fields_of


def idle(config: RunConfig) -> dict[str, str]:
    """Fields that change nothing in this run, each with the reason; a name stands for all fields below it too.

    The configuration must be valid (``tppo.config.run.validate``).
    """
    algorithm, rollout, steps = config.algorithm, config.rollout, config.steps
    parts = algorithm.parts(rollout)
    found = {f"algorithm.{name}": why for name, why in algorithm.idle(rollout).items()}
    found |= _evaluation(config) | dict(config.task.idle(config))
    if config.checkpoint.every > steps:
        found["checkpoint.every"] = f"the run has {steps} steps, and is saved before the first and after the last"
    if config.engine != "vllm":
        found["vllm"] = f"the engine is {config.engine!r}"
    if not parts.terms:
        found["policy"] = f"{algorithm.name or type(algorithm).__name__} does not train the policy"
    if parts.select is every_window and parts.groups is None:
        for path, optimizer in {"policy": config.policy, **_optimizers(algorithm)}.items():
            if optimizer.mini_batch > rollout.slots:
                why = f"a step has {rollout.slots} responses at most (rollout.slots), all in one mini-batch"
                found.setdefault(f"{path}.mini_batch", why)
    return found


def unused(config: RunConfig, given: Iterable[str], more: Mapping[str, str] | None = None) -> list[str]:
    """One line for each given field that has no effect. A field that is switched off (0, False, None) says nothing.

    given: paths from the root of the configuration. more: what else has none, of the command that reads it.
    """
    reasons = {**idle(config), **(more or {})}
    lines = []
    for path in dict.fromkeys(given):
        why = next((why for name, why in reasons.items() if path == name or path.startswith(f"{name}.")), None)
        if why is not None and (value := attrgetter(path)(config)):
            lines.append(f"{path} = {value!r} has no effect: {why}")
    return lines


def _evaluation(config: RunConfig) -> dict[str, str]:
    """What belongs to evaluations during training, where there are none."""
    every, steps = config.evaluation.every, config.steps
    if 0 < every <= steps:
        return {} if config.checkpoint.every else {"checkpoint.keep_best": "checkpoint.every is 0"}
    why = "nothing is evaluated while the run trains (evaluation.every is 0)"
    if every > steps:
        why = f"the run has {steps} steps: it is evaluated before the first and after the last alone"
    return dict.fromkeys(("evaluation.every", "evaluation.stop_at", "checkpoint.keep_best"), why)


def _optimizers(algorithm: Algorithm) -> dict[str, Optimizer]:
    """Of the algorithm's own networks, by their path."""
    return {f"algorithm.{name}": value for name, _, value in fields_of(algorithm) if isinstance(value, Optimizer)}
