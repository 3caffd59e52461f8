"""Tensors that may be sharded over ranks (FSDP2): made, gathered, filled, and kept in folders of safetensors files."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tppo.files import utf8_name
from tppo.ranks.ranks import Ranks


def shard(
    model: torch.nn.Module, device: torch.device, ranks: Ranks, *, dtype: str = "float32", offload: bool = False
) -> None:
    """Shard a model's weights over all ranks, in place, one group for each of ``model.blocks()``. Without a process
    group nothing happens.

    Gradients are summed over ranks, never averaged: losses are divided once, by counts over the whole batch. With
    ``dtype`` "bfloat16" weights are gathered and used in bfloat16; the shards, their gradients, the sums of gradients
    over ranks and the optimiser stay in float32. offload: shards lie in the machine's memory.
    """
    if not ranks.joined:
        return
    narrow = torch.bfloat16 if dtype == "bfloat16" else None
    options: dict[str, Any] = {
        "mesh": ranks.mesh(device.type),
        # The root too: its weights would otherwise stay gathered, and narrowed, after a call without a backward pass.
        "reshard_after_forward": True,
        "mp_policy": MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32 if narrow else None),
        "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy(),
    }
    blocks = getattr(model, "blocks", None)
    for block in blocks() if callable(blocks) else ():
        fully_shard(block, **options)
    fully_shard(model, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # the plain sum, which every backend has


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a sharded tensor, all-gathered (a collective call); any other tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(weight: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a whole tensor, the same on every rank, into a weight that may be sharded."""
    if isinstance(weight, DTensor):
        value = distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)
    weight.copy_(value)


def full_weights(
    named: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole weights one after the other, each gathered when it is asked for: no rank ever holds two of them.

    dtype: converted before they travel; None keeps theirs. Every rank must take all of them, in this order.
    """
    for name, tensor in named:
        narrow = tensor.detach()
        yield name, full(narrow if dtype is None or not narrow.is_floating_point() else narrow.to(dtype))


def device_of(weight: torch.Tensor) -> torch.device:
    """The device on which a model with this weight computes; offloaded shards lie elsewhere."""
    if isinstance(weight, DTensor) and weight.device_mesh.device_type == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return weight.device


def shard_bytes(weight: torch.Tensor) -> int:
    """Bytes of this rank's part of a weight."""
    own = weight.to_local() if isinstance(weight, DTensor) else weight
    return own.numel() * own.element_size()


def memory_tracker(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """PyTorch's account of the memory of a sharded model, by part; a context manager around one training step."""
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker

    return FSDPMemTracker(model, optimizer)


def write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], ranks: Ranks) -> None:
    """Write tensors by name into ``folder``, each rank its own shards. Raises OSError on all ranks."""
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=ranks.size > 1)
    try:
        dcp.save(dict(tensors), storage_writer=writer, process_group=ranks.group, no_dist=ranks.size == 1)
    except dcp.CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]  # the wrapper itself is a BaseException
        raise cause if isinstance(cause, OSError) else RuntimeError(str(error)) from None


def own_files(ranks: Ranks) -> str:
    """How the names begin that `write_tensors` gives to this rank's files; several ranks are numbered from 1."""
    return f"shard-{ranks.rank + 1:05d}-" if ranks.size > 1 else ""


def stored_tensors(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each tensor in a folder of safetensors files, by name."""
    with utf8_name(folder) as path:
        found = dcp.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    return {
        name: (tuple(m.size), m.properties.dtype) for name, m in found.items() if isinstance(m, TensorStorageMetadata)
    }


@torch.no_grad()
def read_tensors(folder: Path, into: Mapping[str, torch.Tensor]) -> None:
    """Copy stored tensors in place, converted to the dtypes they go to; of a sharded one each rank reads its part."""
    quiet_torch()
    with utf8_name(folder) as path:
        dcp.load(dict(into), storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=True)


def quiet_torch() -> None:
    """Silence the warning of torch.distributed.checkpoint, at every call, that there is a single process.

    A lasting filter: the ones that end with a block are not safe beside other threads.
    """
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
