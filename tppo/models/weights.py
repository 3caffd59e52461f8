"""Weights of a Hugging Face folder, read to where they belong, sharded or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from tppo.ranks.shard import read_tensors, stored_tensors


def read_weights(folder: Path, into: Mapping[str, torch.Tensor]) -> None:
    """Copy weights in place, converted to the dtypes they go to. ``into``: by their names in the folder, which may hold
    more of them. Raises ValueError, before the first copy, for a name that is missing or a shape that differs.
    """
    stored = stored_tensors(folder)
    for name, tensor in into.items():
        if name not in stored:
            raise ValueError(f"no weight is called {name!r}")
        shape, _ = stored[name]
        if shape != tuple(tensor.shape):
            raise ValueError(f"weight {name!r} has shape {shape}, expected {tuple(tensor.shape)}")
    read_tensors(folder, into)


def read_weight(folder: Path, ending: str) -> torch.Tensor | None:
    """The one weight of a folder whose name ends so, whole; None where there is none."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (it is no dictionary)
                if name.endswith(ending):
                    return file.get_tensor(name)
    return None
