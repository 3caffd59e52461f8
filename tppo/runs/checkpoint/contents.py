"""What a checkpoint holds, taken from a trainer and put back: nothing that the next step reads is left out.

Networks and optimisers by name, the responses in flight with everything that is known of their tokens, where the prompt
stream stands, the counters, and the states of the global random generators (training itself draws from counter-based
ones alone, but a task may use the others). So a resumed run repeats the lost one bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tppo.config.run import RunConfig
from tppo.config.stored import as_dict
from tppo.environment import environment
from tppo.errors import CheckpointError, ConfigError
from tppo.fit.optim import ModelOptimizer
from tppo.loop.trainer import Trainer
from tppo.models.base import Model
from tppo.runs.checkpoint.files import Contents, load_tensors
from tppo.runs.checkpoint.responses import pack_responses
from tppo.runs.checkpoint.stored import (
    POOLS,
    Checkpoint,
    Environment,
    Progress,
    Random,
    read_checkpoint,
    restored_generators,
    shelf_names,
)


def capture(trainer: Trainer, progress: Progress) -> Contents:
    """Copy everything, between two steps. What is returned shares no memory with the trainer."""
    slots, optimizers = trainer.slots, trainer.networks.optimizers
    tensors = {name: t.detach().to("cpu", copy=True) for name, t in _tensors(trainer).items()}
    pools = {name: getattr(slots, name) for name in POOLS} | dict(zip(shelf_names(), slots.shelf, strict=False))
    state = {
        "counters": {"steps_done": trainer.steps_done, "version": trainer.version},
        "prompt_stream": {"cursor": slots.cursor, "next_uid": slots.next_uid, "new_tokens": slots.new_tokens},
        "optimizer_updates": {name: o.schedule.last_epoch for name, o in optimizers.items()},
        "optimizer_state": {name: _state_names(o) for name, o in optimizers.items()},
        "random": _random_state(tensors),
        "progress": dataclasses.asdict(progress),
        "config": as_dict(trainer.config),
        "environment": environment(),
    }
    everyone = {r.uid: r for pool in pools.values() for r in pool}  # one in flight may be ready too
    about = {"pools": {name: [r.uid for r in pool] for name, pool in pools.items()}}
    return Contents(
        step=trainer.steps_done,
        tensors=tensors,
        window=pack_responses(list(everyone.values()), about) if trainer.ranks.main else b"",
        state=state,
        solve_rate=progress.last_rate if progress.evaluated_at == trainer.steps_done else None,
    )


def restore(trainer: Trainer, folder: Path) -> Progress:
    """Put a verified checkpoint into a newly built trainer. Raises CheckpointError or ConfigError if they disagree."""
    found, optimizers = read_checkpoint(folder), trainer.networks.optimizers
    state = found.state
    _restore_slots(trainer, found)
    rng = {name: torch.empty(size, dtype=torch.uint8) for name, size in state["random"]["tensors"].items()}
    if not set(optimizers) == set(state["optimizer_state"]) == set(state["optimizer_updates"]):
        raise CheckpointError(
            f"{folder}: optimisers of {sorted(state['optimizer_state'])}, this run trains {sorted(optimizers)}"
        )
    for name, optimizer in optimizers.items():
        _allocate(optimizer, state["optimizer_state"][name])
    load_tensors(folder, _tensors(trainer) | rng)
    for name, optimizer in optimizers.items():
        optimizer.resume_schedule(state["optimizer_updates"][name])
    try:
        _restore_random(state["random"], rng)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: a generator cannot be restored: {error}") from None
    trainer.steps_done, trainer.version = state["counters"]["steps_done"], state["counters"]["version"]
    return found.progress


def load_network(name: str, model: Model, folder: Path) -> None:
    """Only the weights of one network. Raises CheckpointError when they are another model's."""
    load_tensors(folder, _module_tensors(name, model), only=f"{name}.")


def leaf_names(config: RunConfig) -> list[str]:
    """Dotted names of all fields."""
    return [name for name, _ in _leaves(as_dict(config))]


def changed_fields(stored: dict[str, Any], config: RunConfig) -> list[str]:
    """Dotted names of the leaves in which a configuration differs from a stored one. One that does not say when the run
    started goes on with its start.
    """
    one, two = dict(_leaves(stored)), dict(_leaves(json.loads(json.dumps(as_dict(config)))))
    absent = object()
    names = (one.keys() | two.keys()) - (set() if config.started else {"started"})
    return sorted(name for name in names if one.get(name, absent) != two.get(name, absent))


def changed_packages(stored: Environment) -> list[str]:
    """Versions of Python and of packages that differ from those a checkpoint was made with, in words."""
    now = environment()
    one = {"python": stored["python"], **stored["packages"]}
    two = {"python": now["python"], **now["packages"]}
    return [f"{name} {one.get(name)} -> {two[name]}" for name in two if one.get(name) != two[name]]


def _leaves(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{path}.{key}" if path else key)]


def _tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The live tensors of networks and optimisers, by name."""
    out: dict[str, torch.Tensor] = {}
    for name, model in trainer.networks.models.items():
        out |= _module_tensors(name, model)
    for name, optimizer in trainer.networks.optimizers.items():
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


def _restore_slots(trainer: Trainer, found: Checkpoint) -> None:
    slots, cap, stream = trainer.slots, trainer.config.rollout.max_response_tokens, found.state["prompt_stream"]
    for r in (r for pool in found.pools.values() for r in pool):
        if trainer.workload.prompts(r.group) != r.prompt:
            raise CheckpointError(
                f"{found.folder}: prompt {r.group} of the stream was {r.prompt.id!r} and is now "
                f"{trainer.workload.prompts(r.group).id!r}: the training data or their order changed"
            )
        if len(r.tokens) >= cap and not r.status.finished:
            raise ConfigError(
                "rollout.max_response_tokens",
                cap,
                f"more than {len(r.tokens)}, the length of response {r.uid} in flight",
            )
    for name in POOLS:
        setattr(slots, name, found.pools[name])
    slots.shelf = [pool for name, pool in found.pools.items() if name not in POOLS]
    slots.cursor, slots.next_uid, slots.new_tokens = stream["cursor"], stream["next_uid"], stream["new_tokens"]


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


def _restore_random(stored: Random, rng: dict[str, torch.Tensor]) -> None:
    cpu, *cuda = rng.values()
    torch.set_rng_state(cpu)
    if torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
    python, legacy = restored_generators(stored)
    random.setstate(python.getstate())
    np.random.set_state(legacy.get_state(legacy=False))  # noqa: NPY002
