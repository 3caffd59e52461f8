"""From a configuration to a trainer, in one process or on every rank of many."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from collections.abc import Callable

import torch

from tppo.config.run import Compute, RunConfig, validate
from tppo.data.workload import Workload
from tppo.engines.base import Engine
from tppo.engines.embedded import TorchEngine
from tppo.engines.sharded import ShardedEngine
from tppo.engines.vllm import VLLM_REMEDY
from tppo.errors import ConfigError
from tppo.loop.trainer import Trainer
from tppo.models.base import CriticModel, PackedModel, PolicyModel
from tppo.ranks.ranks import Ranks, current
from tppo.ranks.shard import shard


def build_trainer(
    config: RunConfig,
    open_engine: Callable[[RunConfig, Workload], Engine] | None = None,
    ranks: Ranks | None = None,
) -> Trainer:
    """Validate, then load models and data, then open the engine (``build_engine`` unless another is asked for).

    Under ``torchrun`` every rank calls this; models are sharded among them and each has an engine of its own, or one
    of ``vllm.tensor_parallel`` ranks together. ranks: those of this process if None.
    """
    ranks = current() if ranks is None else ranks
    validate(config)
    if config.engine == "vllm" and open_engine is None and importlib.util.find_spec("vllm") is None:
        raise ConfigError("engine", "vllm", "the package vllm", VLLM_REMEDY)  # before any weight is read
    check_ranks(config, ranks)
    device = pick_device(config.compute.device, ranks)
    workload = config.task.build(config, ranks)
    if config.algorithm.policy_loss.kl_coef > 0:
        workload = dataclasses.replace(workload, reference=copy.deepcopy(workload.policy))
    spare = copy.deepcopy(workload.policy) if config.engine == "torch" and open_engine is None else None
    for name, model in (("policy", workload.policy), ("critic", workload.critic)):
        if config.compute.packed and not isinstance(model, PackedModel):
            raise ConfigError("compute.packed", True, f"False: the {name} of this task takes padded rows only")
    for each in (workload.policy, workload.critic, workload.reference):
        if each is not None:
            place(each, workload, device, ranks, config.compute)
    if spare is not None:  # the embedded engine's own copy is never sharded
        place(spare, workload, device, ranks, None)
    engine = open_engine(config, workload) if open_engine is not None else build_engine(config, workload, ranks, spare)
    if ranks.size > 1:
        engine = ShardedEngine(engine, ranks, config.vllm.tensor_parallel if config.engine == "vllm" else 1)
    return Trainer(config, workload, engine, ranks)


def build_engine(config: RunConfig, workload: Workload, ranks: Ranks, own: PolicyModel | None = None) -> Engine:
    """The inference engine that the configuration names. own: a copy of the policy to give to the embedded engine."""
    if config.engine == "torch":
        policy = workload.policy if own is None else own
        return TorchEngine(policy, prefill_tokens=config.compute.micro_batch_tokens, given=own is not None)
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


def place(
    model: PolicyModel | CriticModel, workload: Workload, device: torch.device, ranks: Ranks, compute: Compute | None
) -> None:
    """Shard a model (unless ``compute`` is None), move it to the device, and give it weights if it has none yet."""
    assert isinstance(model, torch.nn.Module)
    empty = any(p.is_meta for p in model.parameters())
    if not empty:
        model.to(device)
    if compute is not None:
        shard(model, device, ranks, dtype=compute.dtype, offload=compute.cpu_offload)
    if empty:
        assert workload.fill is not None, "a workload whose models come without weights must bring `fill`"
        model.to_empty(device="cpu" if compute is not None and compute.cpu_offload else device)
        workload.fill(model)


def _vllm(config: RunConfig, workload: Workload, ranks: Ranks) -> Engine:
    from tppo.engines.vllm import VllmEngine

    if workload.folder is None:
        raise ConfigError("engine", "vllm", "a task with a Hugging Face folder", "use engine 'torch' for it")
    return VllmEngine(workload.folder, config.vllm, ranks, dtype=config.compute.dtype, seed=config.seed)


def pick_device(name: str, ranks: Ranks) -> torch.device:
    """Raises ConfigError when the device is unknown or absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{ranks.local}"  # each rank its own
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"{device.type} is not supported")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError("compute.device", name, "auto, cpu, or a CUDA device of this machine", str(error)) from None
    return device
