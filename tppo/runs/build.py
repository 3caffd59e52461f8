"""From a configuration to a trainer, in one process or on every rank of many."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import os
from collections.abc import Callable

import torch

from tppo.algorithms.check import checked_parts
from tppo.config.demand import check_demand, demand, shape_of
from tppo.config.run import RunConfig, validate
from tppo.data.chat import now
from tppo.data.workload import Workload
from tppo.engines.base import Engine
from tppo.engines.embedded import EmbeddedEngine
from tppo.engines.sharded import ShardedEngine
from tppo.engines.vllm import VLLM_REMEDY
from tppo.environment import machine_memory
from tppo.errors import ConfigError
from tppo.loop.trainer import Trainer
from tppo.models.base import Model, PackedModel, PolicyModel
from tppo.models.place import pick_device, place
from tppo.ranks.ranks import Ranks, current

OpenEngine = Callable[[RunConfig, Workload], Engine]


def build_trainer(config: RunConfig, open_engine: OpenEngine | None = None, *, ranks: Ranks | None = None) -> Trainer:
    """Validate, then load models and data, then open the engine (``build_engine`` unless another is asked for).

    Under ``torchrun`` every rank calls this; models are sharded among them and each has an engine of its own, or one
    of ``vllm.tensor_parallel`` ranks together. ranks: None is those of this process.
    """
    ranks = current() if ranks is None else ranks
    validate(config)
    config = with_start(config, ranks)
    if config.engine == "vllm" and open_engine is None and importlib.util.find_spec("vllm") is None:
        raise ConfigError("engine", "vllm", "the package vllm", VLLM_REMEDY)  # before any weight is read
    check_ranks(config, ranks)
    device = pick_device(config.compute.device, ranks)
    check_memory(config, ranks, device, generates=open_engine is None)
    workload = config.task.build(config, ranks)
    models = networks(config, workload)
    spare = copy.deepcopy(workload.policy) if config.engine == "torch" and open_engine is None else None
    longest = longest_row(config)
    for model in models.values():
        place(model, workload.fill, device, ranks, config.compute)
        model.check(longest=longest, decodes=False, packed=config.compute.packed)
    if spare is not None:  # the embedded engine's own copy is never sharded
        place(spare, workload.fill, device, ranks)
        spare.check(longest=longest, decodes=True, packed=False)
    if open_engine is not None:
        engine = open_engine(config, workload)
    else:
        engine = build_engine(config, workload, spare, ranks=ranks)
    if ranks.size > 1:
        engine = ShardedEngine(engine, ranks, config.vllm.tensor_parallel if config.engine == "vllm" else 1)
    return Trainer(config, workload, models, engine, ranks)


def with_start(config: RunConfig, ranks: Ranks, before: str = "") -> RunConfig:
    """The configuration with the moment of the run's start in it, the same on all ranks. before: of a run that goes on;
    empty is now.
    """
    return dataclasses.replace(config, started=config.started or ranks.lead(lambda: before or now()))


def check_memory(config: RunConfig, ranks: Ranks, device: torch.device, *, generates: bool) -> None:
    """Raise ConfigError for a run that cannot fit this machine, shared among its ranks. generates: with an engine."""
    memory, of_gpu = machine_memory(), None
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if ranks.joined else 1
    if device.type == "cuda":
        of_gpu = torch.cuda.get_device_properties(device).total_memory
    needs = demand(config, ranks=ranks.size, generates=generates)
    check_demand(config, needs, machine=None if memory is None else memory / here, device=of_gpu)


def longest_row(config: RunConfig) -> int | None:
    """Most tokens of prompt and response together; None where the task cannot say."""
    shape = shape_of(config)
    return None if shape is None else shape.prompt_tokens + config.rollout.max_response_tokens


def networks(config: RunConfig, workload: Workload) -> dict[str, Model]:
    """The policy, and what the auxiliaries of the algorithm start with, by name. Raises ConfigError."""
    parts = checked_parts(config.algorithm, config.rollout)
    models: dict[str, Model] = {"policy": workload.policy}
    models |= {aux.name: aux.start(workload) for aux in parts.auxiliaries}
    for name, model in models.items():
        if config.compute.packed and not isinstance(model, PackedModel):
            raise ConfigError("compute.packed", True, f"False: the {name} of this task takes padded rows only")
    return models


def build_engine(config: RunConfig, workload: Workload, own: PolicyModel | None = None, *, ranks: Ranks) -> Engine:
    """The inference engine that the configuration names. own: a copy of the policy to give to the embedded engine."""
    if config.engine == "torch":
        policy = workload.policy if own is None else own
        return EmbeddedEngine(policy, prefill_tokens=config.compute.micro_batch_tokens, given=own is not None)
    if not config.vllm.restarts:
        return _vllm(config, workload, ranks)
    from tppo.engines.restarting import RestartingEngine

    return RestartingEngine(lambda: _vllm(config, workload, ranks), config.vllm.restarts)


def check_ranks(config: RunConfig, ranks: Ranks) -> None:
    """What depends on how the program was started. Raises ConfigError."""
    launch = "start it with torchrun --nproc-per-node N -m tppo (N = 1 will do)"
    if not ranks.joined:
        if config.compute.dtype != "float32":
            raise ConfigError("compute.dtype", config.compute.dtype, "float32 outside torchrun", launch)
        if config.compute.cpu_offload:
            raise ConfigError("compute.cpu_offload", True, "False outside torchrun", launch)
        return
    if config.engine == "vllm":
        tensor_parallel = config.vllm.tensor_parallel
        if ranks.size % tensor_parallel:
            raise ConfigError(
                "vllm.tensor_parallel", tensor_parallel, f"a divisor of the number of ranks ({ranks.size})"
            )
        if config.vllm.own_process:
            raise ConfigError(
                "vllm.own_process", True, "False under torchrun", "engines live in the ranks' own processes there"
            )
    if config.compute.cpu_offload and not torch.cuda.is_available():
        raise ConfigError("compute.cpu_offload", True, "False without a GPU", "the shards are in the machine's memory")


def _vllm(config: RunConfig, workload: Workload, ranks: Ranks) -> Engine:
    from tppo.engines.vllm import VllmEngine

    if workload.folder is None:
        raise ConfigError("engine", "vllm", "a task with a Hugging Face folder", "use engine 'torch' for it")
    return VllmEngine(workload.folder, config.vllm, dtype=config.compute.dtype, seed=config.seed, ranks=ranks)
