"""AReaL (arXiv 2505.24298): asynchronous PPO without a critic. Responses go on across versions of the policy, groups
are opened for a bounded number of steps ahead, and the loss is decoupled.

    loss = mean over tokens of w clipped(pi / pi_old, A_i),    w = pi_old / behaviour, 0 beyond ``reject``
    A_i = (R_i - mean) / std over the batch,    groups opened <= B (version + 1 + staleness)

Behaviour is, for each token, the version that sampled it: a response of several versions is a sample of one policy that
depends on the position. pi_old is the policy before the update.

Evidence: staleness 4 for code and 8 for mathematics, clip 0.2, no critic and no reference, decoupled loss, bound on
opening are confirmed (notes on the paper, and its code); normalising over the batch without 1/L and the cap 5 beyond
which a token is dropped are from the code (there an older default, now one of several). Windows stand for
interruptions: a response is interrupted after ``window`` tokens.

With staleness 0 and a window as long as the cap no token is older than the policy before the update, and this is its
base, PPO's surrogate on batch-normalised outcomes.
Exact: at most B (staleness + 1) groups are open before a step, and B of them train in it, so the average group is at
most ``staleness`` versions old. One that takes long is passed by others and may be older.
The factor repairs the choice of a token, not how its state was reached nor what follows.
Edge cases: where the bound lets no group open the slots stay empty; a step waits for ``groups`` whole groups,
and those beyond them train in the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from torch import Tensor

from tppo.algorithms.base import Parts, Rollout, Term
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.parts.terms import clipped
from tppo.algorithms.parts.weighted import corrected
from tppo.errors import ConfigError
from tppo.maths.baselines import batch_scaled
from tppo.maths.weights import Weight
from tppo.ranges import Range
from tppo.types import Batch


@dataclass(frozen=True)
class AReaL(GroupAlgorithm):
    """Asynchronous PPO without a critic: a bound on staleness, responses of mixed versions, a decoupled loss."""

    name: ClassVar[str] = "areal"

    window: Annotated[int, Range(1, 10**7, unit="tokens")] | None = 8192
    """Most new tokens of a response in a step, after which it is interrupted; None generates whole responses."""
    clip_low: Annotated[float, Range(0, 1)] = 0.2
    """Ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, Range(0, 1000)] = 0.2
    """Ratio is clipped above at 1 + clip_high."""
    reject: Annotated[float, Range(0, 10**6, above=True)] = 5.0
    """Tokens with a larger pi_old / behaviour are left out."""
    staleness: Annotated[int, Range(0, 10**4, unit="versions")] = 4
    """Steps for which groups are opened ahead (eta); the average group trains at most so many versions late."""
    groups: Annotated[int, Range(1, 10**6, unit="groups")] | None = None
    """Whole groups that a step trains on, oldest first (B); None is as many as the slots hold."""

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """Normalised over the batch."""
        return batch_scaled(R_S - R_S.mean(), eps=1e-5)

    def objective(self, rollout: Rollout) -> Term:
        """The decoupled surrogate, a mean over tokens."""
        term = clipped(clip_low=self.clip_low, clip_high=self.clip_high)
        return corrected(term, Weight(0, self.reject, outside="zero"))

    def check(self, rollout: Rollout) -> None:
        """A bound on staleness where something can be stale."""
        super().check(rollout)
        if self.window is None and self.groups is None and self.staleness:
            raise ConfigError(
                "algorithm.staleness", self.staleness, "0 without algorithm.window",
                "whole responses of all slots train at once, so that none is ever stale",
            )  # fmt: skip

    def parts(self, rollout: Rollout) -> Parts:
        """Groups are opened while they can train in time."""
        groups = self.groups or rollout.slots // rollout.group_size
        return replace(super().parts(rollout), groups=groups, staleness=(groups, self.staleness))
