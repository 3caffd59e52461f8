"""The processes of a run: one program, several ranks (SPMD), started by ``torchrun``.

Every rank runs the same loop over the same responses. Work is dealt out in three places only: each rank generates and
grades its share of the requests (``tppo.engines.sharded``, ``tppo.grading.grader``) and calls the models on its share
of the micro-batches (``tppo.models.call``). What comes back is put together again on every rank, so advantages,
whitening, counts and metrics are computed from all tokens everywhere, and no average of averages can arise.

Outside ``torchrun`` there is one rank, ``Ranks()``, and every method is the identity. A ``Ranks`` is handed to whoever
needs it; only entry points look it up (`current`).
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

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

T = TypeVar("T")
# Collectives wait for the slowest rank: a long window, an evaluation of whole responses, a checkpoint.
_TIMEOUT = datetime.timedelta(hours=4)
# Errors that keep their class on the other ranks.
_TOLD: tuple[type[TPPOError], ...] = (EngineError, EngineDied, RewardError, DataError, CheckpointError)


class Ranks:
    """This process among those of its run; ``Ranks()`` is a process alone.

    rank: of this process. size: number of ranks. local: this one's number on its machine.
    joined: in a process group, as under ``torchrun``; models are sharded then, also over a single rank.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0, *, joined: bool = False) -> None:
        self.rank, self.size, self.local, self.joined = rank, size, local, joined
        # Python objects and CPU tensors travel here, whatever the accelerators use.
        backend = "fake" if joined and pretended() else "gloo"
        self.group = dist.new_group(backend=backend, timeout=_TIMEOUT) if joined else None
        self._meshes: dict[str, DeviceMesh] = {}
        self._agreed: BaseException | None = None

    @functools.cached_property
    def background(self) -> Ranks:
        """The same ranks with a process group of their own, for another thread. A collective call."""
        return Ranks(self.rank, self.size, self.local, joined=self.joined)

    @property
    def main(self) -> bool:
        """Rank 0, which writes files and prints."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def lead(self, work: Callable[[], T]) -> T:
        """Run ``work`` on rank 0 and broadcast its result, or its failure."""
        value, failure = None, None
        if self.main:
            try:
                value = work()
            except Exception as error:
                failure = error
        return cast("T", self.together(value, failure)[0])

    def main_first(self, work: Callable[[], T]) -> T:
        """Run ``work`` on every rank, on rank 0 before the others: for results that are cached on disk."""
        if self.size == 1:
            return work()
        first = self.lead(work)
        return first if self.main else work()

    def gather(self, value: T) -> list[T]:
        """All-gather of an object: every rank's value, in the order of ranks."""
        if self.size == 1:
            return [value]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, value, group=self.group)
        return out

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        if self.size > 1:
            dist.barrier(group=self.group)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """All-reduce of a CPU tensor, in place. The same bits on every rank."""
        if self.size > 1:
            dist.all_reduce(x, group=self.group)
        return x

    def relay(self, x: torch.Tensor, source: int) -> torch.Tensor:
        """Broadcast a CPU tensor from rank ``source``, in place; shape and dtype are equal everywhere."""
        if self.size > 1:
            dist.broadcast(x, src=source, group=self.group)
        return x

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some rank."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag))))

    def together(self, value: T, error: BaseException | None) -> list[T]:
        """Gather or raise: where ``error`` is set, that rank raises it, and all others raise one of the same class that
        names the first such rank.
        """
        parts = self.gather((value, None if error is None else _like(error, self.rank)))
        for _, failure in parts:
            if failure is not None:
                kind, about = failure
                self._agreed = kind(*about) if error is None else error
                raise self._agreed
        return [part for part, _ in parts]

    def agreed(self, error: BaseException) -> bool:
        """Whether `together` raised this error, hence one on every rank: collectives may go on."""
        return error is self._agreed

    def mesh(self, device_type: str) -> DeviceMesh:
        """The one-dimensional device mesh of all ranks. A collective call the first time."""
        if device_type not in self._meshes:
            self._meshes[device_type] = init_device_mesh(device_type, (self.size,))
        return self._meshes[device_type]

    def on_own_device(self) -> None:
        """Select this rank's GPU in a new thread, where CUDA would use the first one."""
        if torch.cuda.is_available():
            torch.cuda.set_device(self.local)

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
    """Class and arguments of the error that the other ranks raise in its place."""
    if type(error) is ConfigError:
        return ConfigError, (error.field, error.found, error.expected, error.remedy)
    if isinstance(error, OSError) and error.errno is not None:
        return OutputError, (error.errno, f"rank {rank}: {error.strerror}")
    kind = next((kind for kind in _TOLD if type(error) is kind), TPPOError)
    return kind, (f"rank {rank}: {type(error).__name__}: {error}",)


@functools.cache
def current() -> Ranks:
    """The ranks of this process; under ``torchrun`` the first call initialises the process group."""
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
    """Rendezvous arguments. ``torchrun`` keeps one store for all restarts, and in it the addresses of ranks that have
    died: on one machine each restart gets a prefix of its own; on several machines their counts may differ.
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


def pretend(size: int) -> Ranks:
    """Join a fake process group as rank 0 of ``size``, until `leave`: models are sharded as over so many ranks, and
    collectives return at once and move nothing. For planning, in a process of its own.

    Raises RuntimeError in a process that has joined others.
    """
    if dist.is_initialized():
        raise RuntimeError("pretend: this process has joined other ranks already; expected a process of its own")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    current.cache_clear()
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    ranks = current()
    ranks.mesh("cpu")  # made now: under fake tensors its table of ranks would have no values
    return ranks


def pretended() -> bool:
    """Whether the process group is the fake one of `pretend`."""
    return dist.is_initialized() and dist.get_backend() == "fake"


def leave() -> None:
    """Destroy the process group, if there is one."""
    if dist.is_initialized():
        current.cache_clear()
        dist.destroy_process_group()


def end(status: int) -> None:
    """Exit at once with this status, after a barrier: the last call of a program that may run under ``torchrun``.

    Threads of the process groups that outlive the interpreter have been seen to abort ranks that had done all their
    work, which torchrun reports as a failure. Outside torchrun this does nothing.
    """
    ranks = current()
    if ranks.joined:
        ranks.barrier()  # no rank closes its connections while another still uses them
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
