"""A moving average of the policy's weights, which follows every step of its optimiser (PPO-EWMA, arXiv 2110.00641)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor

from tppo.algorithms.base import Auxiliary, Columns, Context
from tppo.models.base import Model, PolicyModel
from tppo.types import Batch

if TYPE_CHECKING:
    from tppo.data.workload import Workload


@dataclass(frozen=True)
class Average(Auxiliary):
    """Gives "average" [N]: log-probabilities under the averaged policy, bias-corrected:

    w <- decay w + 1,    average <- average + (policy - average) / w,    from w = 1 and the policy itself
    """

    decay: float

    name: ClassVar[str] = "average"
    gives: ClassVar[frozenset[str]] = frozenset({"average"})

    def start(self, workload: Workload) -> PolicyModel:
        """A copy, and the weight of what is in it."""
        policy: PolicyModel = copy.deepcopy(workload.policy).requires_grad_(False)
        policy.register_buffer("weight_of_average", torch.ones((), dtype=torch.float64))
        return policy

    def columns(self, at: Context, batch: Batch, train_N: Tensor) -> Columns:
        """One pass over the tokens that train."""
        assert isinstance(at.model, PolicyModel)
        return {"average": at.call.logprobs(at.model, batch, train_N)[0]}

    @torch.no_grad()
    def follow(self, own: Model, policy: PolicyModel) -> None:
        """Move towards the policy."""
        weight = cast(Tensor, own.weight_of_average).mul_(self.decay).add_(1)
        for mean, p in zip(own.parameters(), policy.parameters(), strict=True):
            mean.lerp_(p.to(mean.dtype), 1 / float(weight))
