"""The initial policy, frozen: what a KL penalty pulls towards."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from tppo.algorithms.base import Auxiliary, Columns, Context
from tppo.models.base import PolicyModel
from tppo.types import Batch

if TYPE_CHECKING:
    from tppo.data.workload import Workload


@dataclass(frozen=True)
class Reference(Auxiliary):
    """Gives "reference" [N]: log-probabilities of the tokens that train, under the policy as it was at the start."""

    name: ClassVar[str] = "reference"
    gives: ClassVar[frozenset[str]] = frozenset({"reference"})

    def start(self, workload: Workload) -> PolicyModel:
        """A copy that is never trained."""
        policy: PolicyModel = copy.deepcopy(workload.policy).requires_grad_(False)
        return policy

    def columns(self, at: Context, batch: Batch, train_N: Tensor) -> Columns:
        """One pass over the tokens that train."""
        assert isinstance(at.model, PolicyModel)
        return {"reference": at.call.logprobs(at.model, batch, train_N)[0]}
