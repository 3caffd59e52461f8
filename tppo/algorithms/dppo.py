"""DPPO (arXiv 2602.04879): a trust region in probabilities instead of a clipped ratio.

    loss = -m min(pi / behaviour, cap) A_i log pi,    m = 0 where A_i > 0 and pi - behaviour > high,
                                                          or A_i < 0 and behaviour - pi > low

Defaults: 0.15 on both sides, of |pi - mu| ("tv"; the paper's KL form has 0.05), cap 20 (verl's code; its script 1e4,
the authors' 10), A = R - mean, every response divided by the cap of a response.

The ratio is to the policy that sampled, so engine mismatch and age are in it already.
Exact: a rare token may change by a factor and a likely one may not, where a clipped ratio says the opposite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from tppo.algorithms.base import Rollout, Term
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.parts.weighted import weighted
from tppo.maths.groups import grpo_advantage
from tppo.maths.weights import Trust, Weight
from tppo.ranges import Range
from tppo.types import Batch


@dataclass(frozen=True)
class DPPO(GroupAlgorithm):
    """A trust region in probabilities instead of a clipped ratio."""

    name: ClassVar[str] = "dppo"

    trust: Literal["tv", "kl"] = "tv"
    """Distance of a token's probability: |pi - mu|, or the Bernoulli KL(mu || pi)."""
    trust_low: Annotated[float, Range(0, 100)] = 0.15
    """A token may fall no further than this."""
    trust_high: Annotated[float, Range(0, 100)] = 0.15
    """A token may rise no further than this."""
    cap: Annotated[float, Range(0, 10**6, above=True)] = 20.0
    """Largest weight of a token."""

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """Outcome less the mean of the group."""
        return grpo_advantage(R_S, batch.group_S, scale=False)

    def objective(self, rollout: Rollout) -> Term:
        """The trusted weight, each response divided by the same length."""
        return weighted(
            Weight(0, self.cap), trust=Trust(self.trust_low, self.trust_high, self.trust), centre="behaviour",
            aggregation="constant", constant_length=rollout.max_response_tokens,
        )  # fmt: skip
