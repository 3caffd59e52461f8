"""PPO-EWMA (arXiv 2110.00641): the trust region is around a moving average of the policy, refreshed by every update.

    loss = mean of (average / behaviour) clipped(pi / average, A_t),    average / behaviour at most 100

so that clipping does not depend on how many updates a batch is cut into.

Evidence: the equations, the bias correction and the bound 100 are from the authors' code; clip 0.2 likewise. The decays
of the paper and of T-PPO's baseline are unknown; 0.889 (a centre of mass of 8 updates) is ours. Advantages are PPO's,
without the likelihood of right answers.

Exact: with decay 0 the average is the policy, the ratio is 1 and no clip ever binds. A constant drift d per update
leaves the average d decay / (1 - decay) behind.
Edge cases: averages in 16 bits lose updates; the average has the dtype of the policy's own weights, float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from tppo.algorithms.auxiliaries import Average
from tppo.algorithms.base import Parts, Rollout
from tppo.algorithms.ppo import PPO
from tppo.ranges import Range


@dataclass(frozen=True)
class PPOEWMA(PPO):
    """PPO around a moving average of the policy."""

    name: ClassVar[str] = "ppo-ewma"
    centre: ClassVar[Literal["old", "behaviour", "average"]] = "average"

    decay: Annotated[float, Range(0, 1, below=True)] = 0.889
    """Of the average, for each step of the policy's optimiser."""
    clip_high: Annotated[float, Range(0, 1000)] = 0.2
    """Ratio is clipped above at 1 + clip_high."""
    dual_clip: Annotated[float, Range(1, 10**6, above=True)] | None = None
    """Bound c of the loss for negative advantages; None is off."""
    imitate: Annotated[float, Range(0, 1000)] = 0.0
    """Weight of the negative log-likelihood of responses with positive reward (mu)."""
    importance_cap: Annotated[float, Range(0, 10**6, above=True)] | None = 100.0
    """Largest weight average / behaviour of a token; None leaves the weight out."""

    def parts(self, rollout: Rollout) -> Parts:
        """PPO's, with the average beside the policy."""
        parts = super().parts(rollout)
        return replace(parts, auxiliaries=(*parts.auxiliaries, Average(self.decay)), live=frozenset({"average"}))
