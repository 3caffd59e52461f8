"""What one rank holds during a training step, by PyTorch's memory tracker, without a GPU and without the memory.

The project's own models, sharding, model call and AdamW, and the algorithm's own terms, run under fake tensors, which
have shapes and no data, in a fake process group. It happens in a process of its own, so that neither leaks out:

    python -m tppo.plan.track < job.pickle > figures.json        progress on stderr

Fake tensors are on the device "cpu", the only one that needs no driver; sizes are those of a GPU's tensors. What a
GPU adds (its context, its allocator's rounding) is no tensor, and nowhere in here.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

from tppo.algorithms.base import Algorithm, Parts, Rollout
from tppo.algorithms.check import checked_parts
from tppo.errors import ConfigError, TPPOError
from tppo.fit.options import Optimizer
from tppo.fit.terms import Columns, Term
from tppo.models.options import Compute

if TYPE_CHECKING:
    import torch

    from tppo.data.workload import Workload

PARTS = ("parameters", "gradients", "optimizer", "gathered", "reduced", "activations", "temporary", "buffers")
"""Of a model: its shards; gradients and moments of these; whole weights and what they travel in; whole gradients and
what they travel in; activations; gradients of activations; rotary tables and inputs."""
_OF_TRACKER = {
    "Sharded Param": "parameters",
    "Sharded Grad": "gradients",
    "OptState": "optimizer",
    "Unsharded Param": "gathered",
    "All Gather": "gathered",
    "Unsharded Grad": "reduced",
    "Reduce Scatter": "reduced",
    "Activation": "activations",
    "Temp": "temporary",
    "Buffer": "buffers",
    "Inputs": "buffers",
}


@dataclass(frozen=True)
class Job:
    """A micro-batch of the largest size, and what is computed from it."""

    shape: Any
    """Configuration of transformers."""
    ranks: int
    rows: int
    """Sequences of the micro-batch."""
    width: int
    """Tokens of each."""
    needed: Mapping[str, int]
    """By network, the tokens of the micro-batch that train it."""
    algorithm: Algorithm
    rollout: Rollout
    policy: Optimizer
    compute: Compute = field(default_factory=Compute)
    foreach: bool = True
    """AdamW's many-at-a-time form, which PyTorch takes on a GPU; it needs more memory than one at a time."""


@dataclass(frozen=True)
class Figures:
    """Bytes of one model on one rank. peak: by part, at the highest moment of a step. resident: by part, between
    steps. numbers: parameters of the whole model. largest: numbers of its largest weight.
    """

    peak: dict[str, int]
    resident: dict[str, int]
    numbers: int
    largest: int

    @property
    def peak_total(self) -> int:
        """At the highest moment."""
        return sum(self.peak.values())

    @property
    def resident_total(self) -> int:
        """Between steps."""
        return sum(self.resident.values())


def count(numbers: int) -> str:
    """A number of parameters in words.

    >>> count(32_763_876_352), count(494_032_768)
    ('32.76 billion', '494.03 million')
    """
    return f"{numbers / 1e9:.2f} billion" if numbers >= 1e9 else f"{numbers / 1e6:.2f} million"


def track(job: Job) -> dict[str, Figures]:
    """Figures of every network by name, from a process of its own. Raises TPPOError when that one fails."""
    hidden = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "PYTHONWARNINGS")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, "-W", "ignore", "-m", "tppo.plan.track"]
    done = subprocess.run(command, input=pickle.dumps(job), stdout=subprocess.PIPE, env=env | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise TPPOError(f"plan: the tracking process ended with status {done.returncode}; its message is above")
    return {name: Figures(**figures) for name, figures in json.loads(done.stdout).items()}


def trained(parts: Parts, policy: Optimizer) -> dict[str, tuple[Optimizer, tuple[Term, ...]]]:
    """Optimiser and terms of each network that is trained, by name. Raises ConfigError for one without terms."""
    out = {a.name: (a.optimizer, a.terms()) for a in parts.auxiliaries if a.optimizer is not None}
    if parts.terms:
        out["policy"] = (policy, parts.terms)
    for name, (_, terms) in out.items():
        if not terms:
            raise ConfigError(
                "algorithm", name, "an auxiliary that names its terms", "without them it cannot be planned"
            )
    return out


def _track(job: Job) -> dict[str, dict[str, Any]]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from tppo.ranks.ranks import leave, pretend
    from tppo.ranks.shard import shard

    torch.set_num_threads(1)
    ranks = pretend(job.ranks)
    out = {}
    cpu = torch.device("cpu")
    parts = checked_parts(job.algorithm, job.rollout)
    jobs = trained(parts, job.policy)
    # transformers looks at the positions for several sequences in one row. Fake ones have no values, so it would play
    # safe and make a mask of every pair of positions, which no run makes: a row here is one sequence.
    whole_rows = mock.patch("transformers.masking_utils.find_packed_sequence_indices", return_value=None)
    # A network that begins as a copy of another is of the same mode: two modes do not mix.
    one_mode = mock.patch.object(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, create=True)
    with whole_rows, one_mode, FakeTensorMode():
        workload = _workload(job)
        networks: dict[str, Any] = {"policy": workload.policy}
        networks |= {aux.name: aux.start(workload) for aux in parts.auxiliaries}
        for name, model in networks.items():
            began = time.perf_counter()
            numbers = [p.numel() for p in model.parameters()]
            _say(f"{name}: {count(sum(numbers))} parameters among {job.ranks} ranks, {job.rows} x {job.width} tokens")
            shard(model, cpu, ranks, dtype=job.compute.dtype, offload=job.compute.cpu_offload)
            model.to_empty(device=cpu)
            if name in jobs:
                peak, resident = _step(job, model, name, *jobs[name])
            else:
                resident = dict.fromkeys(PARTS, 0) | {"parameters": _shards(model)}
                peak = resident
            out[name] = {"peak": peak, "resident": resident, "numbers": sum(numbers), "largest": max(numbers)}
            _say(f"{name}: {sum(peak.values()) / 2**30:.2f} GiB at its peak ({time.perf_counter() - began:.0f} s)")
    leave()
    return out


def _workload(job: Job) -> Workload:
    """The models of the task without weights; the rest of a task has no part in a step's memory."""
    import torch
    from transformers import AutoModelForCausalLM

    from tppo.data.workload import Workload
    from tppo.models.folder import as_critic, as_policy

    def model() -> Any:
        with torch.device("meta"):
            # A copy for each: a model notes in it which attention it uses.
            return AutoModelForCausalLM.from_config(copy.deepcopy(job.shape), dtype=torch.float32)

    def nothing(*_: Any) -> Any:
        raise AssertionError("a plan asks for no data")

    job.shape._attn_implementation = "sdpa"
    recompute = job.compute.recompute
    return Workload(
        policy=as_policy(model(), recompute=recompute), critic=lambda: as_critic(model(), recompute=recompute),
        prompts=nothing, held_out=nothing, reward=nothing, decode=nothing, stop_ids=frozenset(), save=nothing,
        load=nothing,
    )  # fmt: skip


def _shards(model: Any) -> int:
    """Bytes of this rank's shards of the weights."""
    from tppo.ranks.shard import shard_bytes

    return sum(shard_bytes(p) for p in model.parameters())


def _step(
    job: Job, model: Any, name: str, options: Optimizer, terms: tuple[Term, ...]
) -> tuple[dict[str, int], dict[str, int]]:
    """A step as it is in the middle of a run: moments are there, and gradients of the micro-batch before."""
    import torch

    from tppo.fit.optim import ModelOptimizer
    from tppo.ranks.shard import full, memory_tracker

    optimizer = ModelOptimizer(model, options)
    for group in optimizer.adamw.param_groups:
        group["foreach"] = job.foreach
    weights = [p for _, p in optimizer.named]
    for p in weights:
        p.grad = torch.zeros_like(p)

    def update() -> None:  # as ModelOptimizer.step, which looks at the norm: a fake one has no value
        norm = full(torch.nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None]))
        if options.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(weights, options.grad_clip, norm)
        optimizer.adamw.step()

    update()
    micro = _micro(job, name)
    given = torch.zeros(len(micro.at_X))
    columns = {column: given for term in terms for column in term.reads}
    tracker = memory_tracker(model, optimizer.adamw)
    with tracker:
        _loss(job, model, micro, terms, columns).backward()
        update()
    return _parts(tracker.get_tracker_snapshot("peak")), _parts(tracker.get_tracker_snapshot("current"))


def _loss(job: Job, model: Any, micro: Any, terms: tuple[Term, ...], columns: Columns) -> torch.Tensor:
    """The algorithm's own terms. Sums are not divided by counts, which fake tensors cannot know."""
    import torch

    from tppo.fit.terms import Now
    from tppo.models.base import PolicyModel
    from tppo.models.call import Call
    from tppo.ranks.ranks import Ranks

    call = Call(Ranks(), 1.0, job.compute.micro_batch_tokens, False, job.compute.logit_chunk_tokens)
    rows = torch.tensor([0])
    if isinstance(model, PolicyModel):
        entropy = any(term.entropy for term in terms)
        now = Now(*call.scores(model, micro, torch.zeros_like(micro.at_X), with_entropy=entropy), rows)
    else:
        values = call.state_values(model, micro)
        now = Now(values, torch.zeros_like(values), rows)
    total = now.value_X.new_zeros(())
    for term in terms:
        total = total + term.weight * term.loss(now, columns).loss_X.sum()
    return total


def _micro(job: Job, name: str) -> Any:
    """Rows of equal length whose last tokens train."""
    import torch

    from tppo.models.call import MicroBatch

    each = job.needed[name] // job.rows
    at = torch.cat([torch.arange(each) + (i + 1) * job.width - 1 - each for i in range(job.rows)])
    ids = torch.zeros(job.rows, job.width, dtype=torch.int64)
    return MicroBatch(rows=torch.arange(job.rows), index_X=torch.zeros_like(at), ids_BT=ids, at_X=at)


def _parts(snapshot: Any) -> dict[str, int]:
    """Bytes by the names of ``PARTS``, over all devices of a snapshot."""
    out = dict.fromkeys(PARTS, 0)
    for of_device in snapshot.values():
        for kind, size in of_device.items():
            if getattr(kind, "value", kind) != "Total":
                out[_OF_TRACKER[getattr(kind, "value", kind)]] += int(size)
    return out


def _say(text: str) -> None:
    print(f"tppo plan: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    # The classes of the job belong to the module by its name, not to this run of it.
    from tppo.plan import track as by_name

    print(json.dumps(by_name._track(pickle.load(sys.stdin.buffer))))
