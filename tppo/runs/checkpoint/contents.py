"""What a checkpoint holds, taken from a trainer and put back: nothing that the next step reads is left out.

Models, optimisers, the responses in flight with everything that is known of their tokens, where the prompt stream
stands, the counters, and the states of the global random generators (training itself draws from counter-based ones
alone, but a task may use the others). So a resumed run repeats the lost one bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tppo.config.run import RunConfig
from tppo.config.stored import config_of
from tppo.errors import CheckpointError, ConfigError
from tppo.fit.optim import ModelOptimizer
from tppo.loop.trainer import Trainer
from tppo.models.base import CriticModel, PolicyModel
from tppo.runs.checkpoint.files import STATE, WINDOW, Contents, load_tensors, read_state
from tppo.runs.checkpoint.responses import pack_responses, read_responses
from tppo.runs.folder import as_dict, environment


@dataclass
class Progress:
    """Running totals of a run. Times in seconds, rates with their standard errors.

    evaluated_at: steps done at the newest held-out evaluation. best: largest held-out solve rate during training.
    metrics_bytes: length of metrics.jsonl. reached_target: evaluation.stop_at was reached. explained: of value
    pretraining, the explained variance of each step so far. value_stop: why that ended early, empty while it has not.
    """

    tokens_generated: int = 0
    train_seconds: float = 0.0
    wall_seconds: float = 0.0
    base_rate: float | None = None
    base_se: float | None = None
    last_rate: float | None = None
    last_se: float | None = None
    evaluated_at: int | None = None
    best: float | None = None
    metrics_bytes: int = 0
    reached_target: bool = False
    explained: list[float] = dataclasses.field(default_factory=list)
    value_stop: str = ""


def capture(trainer: Trainer, progress: Progress) -> Contents:
    """Copy everything, between two steps. What is returned shares no memory with the trainer."""
    window = trainer.window
    tensors = {name: t.detach().to("cpu", copy=True) for name, t in _tensors(trainer).items()}
    state = {
        "counters": {"steps_done": trainer.steps_done, "version": trainer.version},
        "prompt_stream": {"cursor": window.cursor, "next_uid": window.next_uid},
        "optimizer_updates": {name: o.schedule.last_epoch for name, o in _optimizers(trainer).items()},
        "optimizer_state": {name: _state_names(o) for name, o in _optimizers(trainer).items()},
        "random": _random_state(tensors),
        "progress": dataclasses.asdict(progress),
        "config": as_dict(trainer.config),
        "environment": environment(),
    }
    return Contents(
        step=trainer.steps_done,
        tensors=tensors,
        window=pack_responses([*window.in_flight, *window.waiting], {"waiting": len(window.waiting)})
        if trainer.ranks.main
        else b"",
        state=state,
        solve_rate=progress.last_rate if progress.evaluated_at == trainer.steps_done else None,
    )


def restore(trainer: Trainer, folder: Path) -> Progress:
    """Put a verified checkpoint into a newly built trainer. Raises CheckpointError or ConfigError if they disagree."""
    state = read_state(folder)
    try:
        _restore_window(trainer, folder, state["prompt_stream"])
        rng = {name: torch.empty(size, dtype=torch.uint8) for name, size in state["random"]["tensors"].items()}
        for name, optimizer in _optimizers(trainer).items():
            _allocate(optimizer, state["optimizer_state"][name])
        load_tensors(folder, _tensors(trainer) | rng)
        for name, optimizer in _optimizers(trainer).items():
            optimizer.resume_schedule(state["optimizer_updates"][name])
        _restore_random(state["random"], rng)
        trainer.steps_done, trainer.version = (state["counters"][key] for key in ("steps_done", "version"))
        return Progress(**state["progress"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / STATE}: {type(error).__name__}: {error}") from error


def load_policy(policy: PolicyModel, folder: Path) -> None:
    """Only the policy's weights. Raises CheckpointError when they are another model's."""
    assert isinstance(policy, torch.nn.Module)
    load_tensors(folder, _module_tensors("policy", policy), only="policy.")


def load_critic(critic: CriticModel, folder: Path) -> None:
    """Only the critic's weights. Raises CheckpointError when they are another model's."""
    assert isinstance(critic, torch.nn.Module)
    load_tensors(folder, _module_tensors("critic", critic), only="critic.")


def stored_config(folder: Path) -> RunConfig:
    """The configuration that a checkpoint was made with."""
    return config_of(read_state(folder).get("config"), folder / STATE)


def leaf_names(config: RunConfig) -> list[str]:
    """Dotted names of all fields."""
    return [name for name, _ in _leaves(as_dict(config))]


def changed_fields(stored: dict[str, Any], config: RunConfig) -> list[str]:
    """Dotted names of the leaves in which a configuration differs from a stored one."""
    one, two = dict(_leaves(stored)), dict(_leaves(json.loads(json.dumps(as_dict(config)))))
    absent = object()
    return sorted(name for name in one.keys() | two.keys() if one.get(name, absent) != two.get(name, absent))


def changed_packages(folder: Path) -> list[str]:
    """Versions of Python and of packages that differ from those a checkpoint was made with, in words."""
    stored, now = read_state(folder)["environment"], environment()
    one = {"python": stored.get("python"), **stored.get("packages", {})}
    two = {"python": now["python"], **now["packages"]}
    return [f"{name} {one.get(name)} -> {two[name]}" for name in two if one.get(name) != two[name]]


def _leaves(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{path}.{key}" if path else key)]


def _optimizers(trainer: Trainer) -> dict[str, ModelOptimizer]:
    return {"policy": trainer.policy_optimizer, "critic": trainer.critic_optimizer}


def _tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The live tensors of models and optimisers, by name."""
    critic, reference = trainer.critic, trainer.reference
    assert isinstance(critic, torch.nn.Module)
    out = _module_tensors("policy", trainer.policy_module) | _module_tensors("critic", critic)
    if isinstance(reference, torch.nn.Module):
        out |= _module_tensors("reference", reference)
    for name, optimizer in _optimizers(trainer).items():
        for weight, p in optimizer.named:
            for key, value in optimizer.adamw.state.get(p, {}).items():
                out[f"optimizer.{name}.{key}.{weight}"] = value
    return out


def _module_tensors(name: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters once each, tied or not, and the buffers that belong to the state."""
    everywhere = dict(module.named_parameters(remove_duplicate=False))
    buffers = {key: value for key, value in module.state_dict(keep_vars=True).items() if key not in everywhere}
    return {f"{name}.{key}": value for key, value in [*module.named_parameters(), *buffers.items()]}


def _state_names(optimizer: ModelOptimizer) -> dict[str, list[str]]:
    """Weights that have been updated, and what the optimiser keeps of each."""
    state = optimizer.adamw.state
    return {weight: sorted(state[p]) for weight, p in optimizer.named if p in state}


def _allocate(optimizer: ModelOptimizer, names: dict[str, list[str]]) -> None:
    """Room for the state of each weight; the count of updates is a number, all else has the weight's shape."""
    for weight, p in optimizer.named:
        if weight in names:
            optimizer.adamw.state[p] = {
                key: torch.zeros(()) if key == "step" else torch.zeros_like(p, requires_grad=False)
                for key in names[weight]
            }


def _restore_window(trainer: Trainer, folder: Path, stream: dict[str, int]) -> None:
    window, cap = trainer.window, trainer.config.rollout.max_response_tokens
    responses, about = read_responses(folder / WINDOW)
    for r in responses:
        if trainer.workload.prompts(r.group) != r.prompt:
            raise CheckpointError(
                f"{folder}: prompt {r.group} of the stream was {r.prompt.id!r} and is now "
                f"{trainer.workload.prompts(r.group).id!r}: the training data or their order changed"
            )
        if len(r.tokens) >= cap:
            raise ConfigError(
                "rollout.max_response_tokens",
                cap,
                f"more than {len(r.tokens)}, the length of response {r.uid} in flight",
            )
    first_waiting = len(responses) - about["waiting"]
    window.in_flight, window.waiting = responses[:first_waiting], responses[first_waiting:]
    window.cursor, window.next_uid = stream["cursor"], stream["next_uid"]


def _random_state(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Global generators: torch's go among the tensors, those of Python and NumPy are returned as JSON."""
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
    rng = {f"random.torch.{i}": state for i, state in enumerate(states)}
    tensors |= {name: state.clone() for name, state in rng.items()}
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(numpy, dict)
    keys = {"key": numpy["state"]["key"].tolist(), "pos": numpy["state"]["pos"]}
    return {
        "tensors": {name: len(state) for name, state in rng.items()},
        "python": random.getstate(),
        "numpy": {**numpy, "state": keys},
    }


def _restore_random(stored: dict[str, Any], rng: dict[str, torch.Tensor]) -> None:
    cpu, *cuda = rng.values()
    torch.set_rng_state(cpu)
    if torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
    version, internal, gauss = stored["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy = stored["numpy"]
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {"key": key, "pos": numpy["state"]["pos"]}})  # noqa: NPY002
