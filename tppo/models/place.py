"""Where models are: sharded, moved to a device, and given their first weights."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tppo.errors import ConfigError
from tppo.models.base import Model
from tppo.models.options import Compute
from tppo.ranks.ranks import Ranks
from tppo.ranks.shard import shard


def place(
    model: Model,
    fill: Callable[[Model], None] | None,
    device: torch.device,
    ranks: Ranks,
    compute: Compute | None = None,
) -> None:
    """Shard a model (unless ``compute`` is None), move it to the device, and fill it if it has no weights yet."""
    empty = any(p.is_meta for p in model.parameters())
    if not empty:
        model.to(device)
    if compute is not None:
        shard(model, device, ranks, dtype=compute.dtype, offload=compute.cpu_offload)
    if empty:
        assert fill is not None, "a workload whose models come without weights must bring `fill`"
        model.to_empty(device="cpu" if compute is not None and compute.cpu_offload else device)
        fill(model)


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
