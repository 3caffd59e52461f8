"""An algorithm outside the library: REINFORCE against the mean of the group. No critic, and groups that wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from tppo.algorithms.base import Algorithm, Parts, Rollout
from tppo.algorithms.parts.advantages import outcome
from tppo.algorithms.parts.select import whole_group
from tppo.algorithms.parts.tokens import finished_tokens
from tppo.fit.terms import Columns, Loss, Now, Term
from tppo.maths.groups import grpo_advantage
from tppo.ranges import Range


@dataclass(frozen=True)
class Reinforce(Algorithm):
    """Partial rollout: windows, and a group trains when all its members have ended."""

    name: ClassVar[str] = "reinforce"

    window: Annotated[int, Range(1, unit="tokens")] = 4
    """Most new tokens of a response in a round."""
    groups: Annotated[int, Range(1, unit="groups")] = 2
    """That are complete in a step, at least."""

    def parts(self, rollout: Rollout) -> Parts:
        """No network beside the policy."""
        return Parts(
            select=whole_group, window=self.window, groups=self.groups, tokens=finished_tokens,
            terms=(Term("policy_loss", _loss, reads=frozenset({"advantages"})),),
            advantage=outcome(lambda outcome_S, batch: grpo_advantage(outcome_S, batch.group_S, scale=False)),
        )  # fmt: skip


def _loss(now: Now, data: Columns) -> Loss:
    return Loss(-data["advantages"] * now.value_X)
