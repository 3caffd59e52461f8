"""What methods without a critic share: one advantage for a whole response, from the outcomes of its group.

A response trains when its whole group has ended. Without a window that is the round that generated it. With one this is
partial rollout: unfinished responses go on in the next step, finished ones wait outside the slots for their group, and
the first token of a response of L tokens trains ceil(L / W) - 1 versions, and the wait, after it was sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from tppo.algorithms.auxiliaries import Reference
from tppo.algorithms.base import Algorithm, Parts, Reward, Rollout, Select, Term
from tppo.algorithms.parts.advantages import outcome
from tppo.algorithms.parts.select import whole_group
from tppo.algorithms.parts.terms import kl_to_reference
from tppo.algorithms.parts.tokens import finished_tokens
from tppo.algorithms.parts.window import check_window
from tppo.errors import ConfigError
from tppo.maths.aggregate import Aggregation
from tppo.ranges import Range
from tppo.types import Batch


@dataclass(frozen=True)
class GroupAlgorithm(Algorithm):
    """Base of the methods that judge a response beside the others of its group. Not an algorithm by itself."""

    once: ClassVar[bool] = False
    """Whether a batch trains in one pass only."""
    alone: ClassVar[bool] = False
    """Whether a response can be judged without others."""

    window: Annotated[int, Range(1, 10**7, unit="tokens")] | None = None
    """Most new tokens of a response in a step; None generates whole responses."""
    kl: Annotated[float, Range(0, 1000)] = 0.0
    """Weight of the KL penalty (k3) towards the initial policy; above zero a frozen copy is kept."""

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """(outcomes [S], batch) -> advantage of each response [S]."""
        raise NotImplementedError(f"{type(self).__name__} must define advantage_S()")

    def objective(self, rollout: Rollout) -> Term:
        """What is descended, without the KL penalty."""
        raise NotImplementedError(f"{type(self).__name__} must define objective()")

    def rewards(self, rollout: Rollout) -> tuple[Reward, ...]:
        """How outcomes are shaped."""
        return ()

    def select(self) -> Select:
        """Which groups train."""
        return whole_group

    def parts(self, rollout: Rollout) -> Parts:
        """No network beside the policy, unless there is a KL penalty."""
        objective = self.objective(rollout)
        return Parts(
            select=self.select(),
            tokens=finished_tokens,
            terms=(objective, *self.penalty(objective.aggregation, objective.constant_length)),
            advantage=outcome(self.advantage_S),
            window=self.window,
            once=self.once,
            rewards=self.rewards(rollout),
            auxiliaries=(Reference(),) if self.kl else (),
        )

    def penalty(self, aggregation: Aggregation, constant_length: int | None) -> tuple[Term, ...]:
        """KL in the loss, aggregated as the objective is."""
        return (kl_to_reference(self.kl, aggregation=aggregation, constant_length=constant_length),) if self.kl else ()

    def check(self, rollout: Rollout) -> None:
        """Groups of one, whose advantage is always 0; a window that truncates nothing."""
        if rollout.group_size < 2 and not self.alone:
            raise ConfigError(
                "rollout.group_size", rollout.group_size, f"at least 2 with the algorithm {self.name!r}",
                "a response is judged beside the others of its group; alone it has advantage 0",
            )  # fmt: skip
        if self.window is not None:
            check_window(self.window, rollout)
