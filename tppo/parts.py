"""From a configuration to a trainer."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from tppo.config import RunConfig, validate
from tppo.engines.base import Engine
from tppo.engines.torch_engine import TorchEngine
from tppo.engines.vllm_engine import VLLM_REMEDY
from tppo.errors import ConfigError
from tppo.trainer import Trainer
from tppo.workload import Workload


def build_trainer(config: RunConfig, open_engine: Callable[[RunConfig, Workload], Engine] | None = None) -> Trainer:
    """Validate, then load models and data, then open the engine (``build_engine`` unless another is asked for)."""
    validate(config)
    if config.engine == "vllm" and open_engine is None and importlib.util.find_spec("vllm") is None:
        raise ConfigError("engine", "vllm", "the package vllm", VLLM_REMEDY)  # before any weight is read
    device = pick_device(config.compute.device)
    workload = config.task.build(config)
    for model in (workload.policy, workload.critic):
        assert isinstance(model, torch.nn.Module)
        model.to(device)
    return Trainer(config, workload, (open_engine or build_engine)(config, workload))


def build_engine(config: RunConfig, workload: Workload) -> Engine:
    """The inference engine that the configuration names."""
    if config.engine == "torch":
        return TorchEngine(workload.policy, prefill_tokens=config.compute.micro_batch_tokens)
    if not config.vllm.restarts:
        return _vllm(config, workload)
    from tppo.engines.restarting import RestartingEngine

    return RestartingEngine(lambda: _vllm(config, workload), config.vllm.restarts)


def _vllm(config: RunConfig, workload: Workload) -> Engine:
    from tppo.engines.vllm_engine import VllmEngine

    with tempfile.TemporaryDirectory(prefix="tppo-vllm-") as folder:
        workload.save(workload.policy, Path(folder))
        if not (Path(folder) / "config.json").exists():
            raise ConfigError("engine", "vllm", "a policy saved as a Hugging Face folder", "use engine 'torch' for it")
        dtype = str(next(iter(workload.policy.weights()))[1].dtype).removeprefix("torch.")
        return VllmEngine(Path(folder), config.vllm, dtype=dtype, seed=config.seed)


def pick_device(name: str) -> torch.device:
    """Raises ConfigError when the device is unknown or absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"{device.type} is not supported")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError("compute.device", name, "auto, cpu, or a CUDA device of this machine", str(error)) from None
    return device
