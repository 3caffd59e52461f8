"""Several processes, one program (SPMD, started by ``torchrun``), and models sharded among them (FSDP2).

Every rank runs the same loop over the same responses. Work is dealt out in three places only: each rank generates and
grades its share of the requests (``tppo.engines.sharded``, ``tppo.grading.grader``) and calls the models on its share
of the micro-batches (``tppo.models.call``). What comes back is put together again on every rank, so advantages,
whitening, counts and metrics are computed from all tokens everywhere, and no average of averages can arise.

Outside ``torchrun`` there is one rank, and every function here is the identity.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tppo.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EngineDied,
    EngineError,
    OutputError,
    RanksDiffer,
    RewardError,
    TPPOError,
)

if TYPE_CHECKING:
    Compute = object

T = TypeVar("T")
# A rank waits here for the slowest one: a long window, an evaluation of whole responses, a checkpoint.
_TIMEOUT = datetime.timedelta(hours=4)
_TOLD: tuple[type[TPPOError], ...] = (EngineError, EngineDied, RewardError, DataError, CheckpointError)


class Ranks:
    """The processes of this run. rank: this one. size: how many. local: this one's number on its machine.

    joined: whether ``torchrun`` started it; models are sharded then, also with a single rank.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0, *, joined: bool = False) -> None:
        self.rank, self.size, self.local, self.joined = rank, size, local, joined
        # Python objects and CPU tensors travel here, whatever the accelerators use.
        backend = "fake" if joined and pretended() else "gloo"
        self.group = dist.new_group(backend=backend, timeout=_TIMEOUT) if joined else None
        self._agreed: BaseException | None = None

    @functools.cached_property
    def background(self) -> Ranks:
        """The same ranks for one more thread, which must not share the first one's messages. All must ask at once."""
        return Ranks(self.rank, self.size, self.local, joined=self.joined)

    @property
    def main(self) -> bool:
        """The rank that writes and speaks."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def lead(self, work: Callable[[], T]) -> T:
        """What rank 0 makes of it, on every rank; if it fails there, it fails everywhere."""
        value, failure = None, None
        if self.main:
            try:
                value = work()
            except Exception as error:
                failure = error
        return cast("T", self.together(value, failure)[0])

    def main_first(self, work: Callable[[], T]) -> T:
        """What each rank makes of it, rank 0 before the others: for what is kept in a cache they may share."""
        if self.size == 1:
            return work()
        first = self.lead(work)
        return first if self.main else work()

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, value, group=self.group)
        return out

    def barrier(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier(group=self.group)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of a CPU tensor, in place. The same bits on every rank."""
        if self.size > 1:
            dist.all_reduce(x, group=self.group)
        return x

    def relay(self, x: torch.Tensor, source: int) -> torch.Tensor:
        """The CPU tensor of rank ``source``, into that of every other one, which has its shape and type."""
        if self.size > 1:
            dist.broadcast(x, src=source, group=self.group)
        return x

    def any(self, flag: bool) -> bool:
        """True on every rank if it is on one."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag))))

    def together(self, value: T, error: BaseException | None) -> list[T]:
        """`gather`, unless some rank failed: that one raises its own error, and the others the first one's like."""
        parts = self.gather((value, None if error is None else _like(error, self.rank)))
        for _, failure in parts:
            if failure is not None:
                kind, about = failure
                self._agreed = kind(*about) if error is None else error
                raise self._agreed
        return [part for part, _ in parts]

    def agreed(self, error: BaseException) -> bool:
        """Whether every rank has raised this error or its like, so that they can go on together."""
        return error is self._agreed

    def check_same(self, what: str, *tensors: torch.Tensor) -> None:
        """Raise RanksDiffer unless these CPU tensors are the same, bit for bit, on every rank."""
        if self.size == 1:
            return
        digest = hashlib.blake2b(digest_size=8)
        for x in tensors:
            digest.update(x.contiguous().view(torch.uint8).numpy().data)
        found = self.gather(digest.hexdigest())
        if len(set(found)) > 1:
            others = [rank for rank, d in enumerate(found) if d != found[0]]
            raise RanksDiffer(
                f"{what} on ranks {others[:8]} differ from those on rank 0: every rank must run the same program with "
                "the same data, package versions and kind of machine"
            )


def _like(error: BaseException, rank: int) -> tuple[type[TPPOError], tuple[Any, ...]]:
    """Class and arguments of an error for the other ranks, of those that the loop tells apart."""
    if isinstance(error, OSError) and error.errno is not None:
        return OutputError, (error.errno, f"rank {rank}: {error.strerror}")
    kind = next((kind for kind in _TOLD if type(error) is kind), TPPOError)
    return kind, (f"rank {rank}: {type(error).__name__}: {error}",)


@functools.cache
def current() -> Ranks:
    """The ranks of this process. The first call joins the others if ``torchrun`` started it."""
    if pretended():
        return Ranks(0, dist.get_world_size(), joined=True)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Ranks()
    local = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=_TIMEOUT, **_meeting_point())
    return Ranks(dist.get_rank(), dist.get_world_size(), local, joined=True)


def _meeting_point() -> dict[str, Any]:
    """Where ranks find each other. ``torchrun`` keeps one store for all restarts, and in it the addresses of ranks that
    are no more: on one machine each restart gets a part of its own; on several their counts may differ.
    """
    env = os.environ
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    if env["GROUP_WORLD_SIZE"] == "1":
        size = int(env["WORLD_SIZE"])
        store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), size, is_master=False, timeout=_TIMEOUT)
        fresh = dist.PrefixStore(f"restart-{env['TORCHELASTIC_RESTART_COUNT']}", store)
        return {"store": fresh, "rank": int(env["RANK"]), "world_size": size}
    if env.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise ConfigError(
            "torchrun --max-restarts",
            env["TORCHELASTIC_MAX_RESTARTS"],
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment of torchrun on several machines",
            "without it restarted ranks wait for the addresses of dead ones",
        )
    return {}


def pretend(size: int) -> None:
    """Be rank 0 of ``size`` ranks that do not exist, until `leave`: models are sharded as among so many, collectives
    return at once and move nothing. For planning, in a process of its own. Raises RuntimeError beside real ranks.
    """
    if dist.is_initialized():
        raise RuntimeError("pretend: this process has joined other ranks already; expected a process of its own")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    current.cache_clear()
    _mesh.cache_clear()
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    _mesh("cpu", size)  # made now, of real numbers: under fake tensors there are none


def pretended() -> bool:
    """Whether the other ranks are those of `pretend`."""
    return dist.is_initialized() and dist.get_backend() == "fake"


def memory_tracker(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """PyTorch's account of the memory of a sharded model, by part; a context manager around one training step."""
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker

    return FSDPMemTracker(model, optimizer)


def leave() -> None:
    """Part from the others."""
    if dist.is_initialized():
        current.cache_clear()
        _mesh.cache_clear()
        dist.destroy_process_group()


def end(status: int) -> None:
    """The last call of a program that may run under ``torchrun``: part from the others and end this process at once.

    Threads of the process groups that outlive the interpreter have been seen to abort ranks that had done all their
    work, and torchrun would take that for a failure. Outside torchrun this does nothing.
    """
    ranks = current()
    if ranks.joined:
        ranks.barrier()  # no rank closes its connections while another still talks
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def shard(model: torch.nn.Module, compute: Compute, device: torch.device) -> None:
    """Shard a model's weights among all ranks, in place (FSDP2), one group for each of ``model.blocks()``.

    Gradients are summed over ranks, never averaged: losses are divided once, by counts over the whole batch. With
    ``compute.dtype`` bfloat16, weights are gathered and used in bfloat16; the shards, their gradients, the sums of
    gradients over ranks and the optimiser stay in float32.
    """
    ranks = current()
    if not ranks.joined:
        return
    mesh = _mesh(device.type, ranks.size)
    narrow = torch.bfloat16 if compute.dtype == "bfloat16" else None
    options: dict[str, Any] = {
        "mesh": mesh,
        # Also of the root, whose weights would else stay whole, and narrowed, after a call without a backward pass.
        "reshard_after_forward": True,
        "mp_policy": MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32 if narrow else None),
        "offload_policy": CPUOffloadPolicy() if compute.cpu_offload else OffloadPolicy(),
    }
    blocks = getattr(model, "blocks", None)
    for block in blocks() if callable(blocks) else ():
        fully_shard(block, **options)
    fully_shard(model, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # the plain sum, which every backend has


@functools.cache
def _mesh(kind: str, size: int) -> Any:
    return init_device_mesh(kind, (size,))


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a sharded tensor, gathered from all ranks (who must all ask); any other tensor itself."""
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


def on_own_device() -> None:
    """For a new thread: CUDA would take it to be on the first GPU, whatever the rank's own is."""
    if torch.cuda.is_available():
        torch.cuda.set_device(current().local)


def device_of(weight: torch.Tensor) -> torch.device:
    """Where a model computes that has this weight; offloaded shards lie elsewhere."""
    if isinstance(weight, DTensor) and weight.device_mesh.device_type == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return weight.device
