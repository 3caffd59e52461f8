"""What one rank holds during a training step, by PyTorch's memory tracker, without a GPU and without the memory.

The project's own models, sharding, model call, losses and AdamW run under fake tensors, which have shapes and no data,
in a fake process group. It happens in a process of its own, so that neither leaks into the caller:

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
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

from tppo.algorithms.base import PolicyLoss, ValueTarget
from tppo.config.run import Compute, Optimizer
from tppo.errors import TPPOError

if TYPE_CHECKING:
    import torch

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
    """shape: of transformers. rows, width: the micro-batch [sequences, tokens]. needed: tokens of it that train.

    foreach: AdamW's many-at-a-time form, which PyTorch takes on a GPU; it needs more memory than one at a time.
    """

    shape: Any
    ranks: int
    rows: int
    width: int
    needed: int
    compute: Compute = field(default_factory=Compute)
    policy: Optimizer = field(default_factory=Optimizer)
    critic: Optimizer = field(default_factory=Optimizer)
    policy_loss: PolicyLoss = field(default_factory=PolicyLoss)
    value_target: ValueTarget = field(default_factory=ValueTarget)
    foreach: bool = True


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
    """Figures of "policy" and "critic", from a process of its own. Raises TPPOError when that one fails."""
    hidden = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "PYTHONWARNINGS")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, "-W", "ignore", "-m", "tppo.plan.track"]
    done = subprocess.run(command, input=pickle.dumps(job), stdout=subprocess.PIPE, env=env | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise TPPOError(f"plan: the tracking process ended with status {done.returncode}; its message is above")
    return {name: Figures(**figures) for name, figures in json.loads(done.stdout).items()}


def _track(job: Job) -> dict[str, dict[str, Any]]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    from tppo.models.folder import as_policy_and_critic
    from tppo.ranks.ranks import leave, pretend
    from tppo.ranks.shard import shard

    torch.set_num_threads(1)
    ranks = pretend(job.ranks)
    out = {}
    cpu = torch.device("cpu")
    # transformers looks at the positions for several sequences in one row. Fake ones have no values, so it would play
    # safe and make a mask of every pair of positions, which no run makes: a row here is one sequence.
    whole_rows = mock.patch("transformers.masking_utils.find_packed_sequence_indices", return_value=None)
    with whole_rows, FakeTensorMode():
        with torch.device("meta"):
            # A copy for each: a model notes in it which attention it uses.
            job.shape._attn_implementation = "sdpa"
            models = [AutoModelForCausalLM.from_config(copy.deepcopy(job.shape), dtype=torch.float32) for _ in range(2)]
        pair = as_policy_and_critic(models[0], models[1], recompute=job.compute.recompute)
        for name, model in zip(("policy", "critic"), pair, strict=True):
            began = time.perf_counter()
            numbers = [p.numel() for p in model.parameters()]
            _say(f"{name}: {count(sum(numbers))} parameters among {job.ranks} ranks, "
                 f"{job.rows} x {job.width} tokens")  # fmt: skip
            shard(model, cpu, ranks, dtype=job.compute.dtype, offload=job.compute.cpu_offload)
            model.to_empty(device=cpu)
            peak, resident = _step(job, model, name)
            out[name] = {"peak": peak, "resident": resident, "numbers": sum(numbers), "largest": max(numbers)}
            _say(f"{name}: {sum(peak.values()) / 2**30:.2f} GiB at its peak ({time.perf_counter() - began:.0f} s)")
    leave()
    return out


def _step(job: Job, model: Any, name: str) -> tuple[dict[str, int], dict[str, int]]:
    """A step as it is in the middle of a run: moments are there, and gradients of the micro-batch before."""
    import torch

    from tppo.fit.optim import ModelOptimizer
    from tppo.ranks.shard import full, memory_tracker

    config = job.policy if name == "policy" else job.critic
    optimizer = ModelOptimizer(model, config)
    for group in optimizer.adamw.param_groups:
        group["foreach"] = job.foreach
    weights = [p for _, p in optimizer.named]
    for p in weights:
        p.grad = torch.zeros_like(p)

    def update() -> None:  # as ModelOptimizer.step, which looks at the norm: a fake one has no value
        norm = full(torch.nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None]))
        if config.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(weights, config.grad_clip, norm)
        optimizer.adamw.step()

    update()
    loss = _policy_loss(job, model) if name == "policy" else _critic_loss(job, model)
    tracker = memory_tracker(model, optimizer.adamw)
    with tracker:
        loss().backward()
        update()
    return _parts(tracker.get_tracker_snapshot("peak")), _parts(tracker.get_tracker_snapshot("current"))


def _policy_loss(job: Job, policy: Any) -> Callable[[], torch.Tensor]:
    import torch

    from tppo.maths import objectives as losses
    from tppo.models.call import micro_scores

    micro, loss = _micro(job), job.policy_loss
    given = torch.zeros(len(micro.at_X))

    def work() -> torch.Tensor:
        logprobs, entropy = micro_scores(
            policy,
            micro,
            torch.zeros_like(micro.at_X),
            temperature=1.0,
            chunk=job.compute.logit_chunk_tokens,
            with_entropy=loss.entropy_coef > 0,
        )
        terms = losses.ppo_loss(
            logprobs, given, given, clip_low=loss.clip_low, clip_high=loss.clip_high, dual_clip=loss.dual_clip
        )
        total = terms.loss_N.sum()
        if loss.lm_coef > 0:
            total = total + loss.lm_coef * losses.lm_loss(logprobs).sum()
        return total - loss.entropy_coef * entropy.sum() if loss.entropy_coef > 0 else total

    return work


def _critic_loss(job: Job, critic: Any) -> Callable[[], torch.Tensor]:
    import torch

    from tppo.maths import objectives as losses
    from tppo.models.call import micro_values

    micro, loss = _micro(job), job.value_target
    given = torch.zeros(len(micro.at_X))

    def work() -> torch.Tensor:
        values = micro_values(critic, micro)
        terms = losses.value_loss(values, given, given, clip_low=loss.clip_low, clip_high=loss.clip_high)
        return terms.loss_N.sum()

    return work


def _micro(job: Job) -> Any:
    """Rows of equal length whose last tokens train."""
    import torch

    from tppo.models.call import MicroBatch

    each = job.needed // job.rows
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
