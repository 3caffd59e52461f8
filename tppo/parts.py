"""From a configuration to a trainer."""

from __future__ import annotations

import torch

from tppo.config import RunConfig, validate
from tppo.engines.base import Engine
from tppo.engines.torch_engine import TorchEngine
from tppo.errors import ConfigError
from tppo.models.base import PolicyModel
from tppo.trainer import Trainer


def build_trainer(config: RunConfig) -> Trainer:
    """Validate, then load models and data, then open the engine."""
    validate(config)
    device = pick_device(config.compute.device)
    workload = config.task.build(config)
    for model in (workload.policy, workload.critic):
        assert isinstance(model, torch.nn.Module)
        model.to(device)
    return Trainer(config, workload, build_engine(config, workload.policy))


def build_engine(config: RunConfig, policy: PolicyModel) -> Engine:
    """The inference engine that the configuration names."""
    return TorchEngine(policy, prefill_tokens=config.compute.micro_batch_tokens)


def pick_device(name: str) -> torch.device:
    """Raises ConfigError when the device is unknown or absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError("compute.device", name, "auto, cpu, or a CUDA device of this machine", str(error)) from None
    return device
