"""Networks that begin with another run's weights: a critic from value pretraining, for example."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tppo.algorithms.check import checked_parts
from tppo.config.run import RunConfig
from tppo.errors import CheckpointError, ConfigError
from tppo.loop.trainer import Trainer
from tppo.runs.checkpoint.contents import load_network
from tppo.runs.checkpoint.store import newest


def find_beginnings(config: RunConfig) -> dict[str, Path]:
    """Name of a network to the sound checkpoint that it begins with. Raises ConfigError where there is none."""
    found: dict[str, Path] = {}
    for aux in checked_parts(config.algorithm, config.rollout).auxiliaries:
        if not aux.begins_with:
            continue
        field, path = f"algorithm.{aux.name}.start", Path(os.path.expanduser(aux.begins_with))
        if not os.path.isdir(path):
            raise ConfigError(field, aux.begins_with, "the folder of a run or of one of its checkpoints")
        try:
            found[aux.name] = newest(path)
        except CheckpointError as error:
            remedy = f"checkpoint.every = 0 saves none; {error}"
            raise ConfigError(field, aux.begins_with, "a folder with a sound checkpoint", remedy) from None
    return found


def begin(trainer: Trainer, beginnings: Mapping[str, Path]) -> None:
    """Load them. Raises ConfigError when a network has other weights; then nothing of it was changed."""
    for name, checkpoint in beginnings.items():
        try:
            load_network(name, trainer.networks.models[name], checkpoint)
        except CheckpointError as error:
            field = f"algorithm.{name}.start"
            raise ConfigError(field, str(checkpoint), f"a {name} of this run's model", str(error)) from None
