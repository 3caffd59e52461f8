"""Value pretraining, VC-PPO (arXiv 2503.01491): the policy is fixed, the critic learns Monte-Carlo returns until it
explains them; a later run starts with this critic (``--algorithm.critic.start``).

    explained variance = 1 - Var(G - V) / Var(G)

The paper stops "when value loss and explained variance are satisfactory" (as VAPO, arXiv 2504.05118, puts it, after 50
steps); the two criteria here make that a rule. The explained variance is that of ``explained_variance_finished`` in the
metrics: by values from before the step's update, so of data that the critic has not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from tppo.algorithms.auxiliaries import Critic
from tppo.algorithms.auxiliaries.critic import CriticOptions
from tppo.algorithms.base import Algorithm, Parts, Rollout, Stop
from tppo.algorithms.parts.select import every_window
from tppo.algorithms.parts.window import check_window
from tppo.ranges import BOUND, STEPS, TOKENS, Range


@dataclass(frozen=True)
class ValuePretraining(Algorithm):
    """Trains the critic alone. With neither criterion it ends with the run's last step."""

    name: ClassVar[str] = "value-pretraining"

    window: Annotated[int, Range(1, TOKENS, unit="tokens")] | None = None
    """Most new tokens of a response in a step; None generates whole responses."""
    gamma: Annotated[float, Range(0, 1)] = 1.0
    """Discount."""
    explained_variance: Annotated[float, Range(0, 1, above=True)] | None = None
    """Stop once the explained variance of the return, averaged over ``over`` steps, reaches this."""
    patience: Annotated[int, Range(1, STEPS, unit="steps")] | None = None
    """Stop once that average has not risen by ``least_gain`` for so many steps."""
    over: Annotated[int, Range(1, STEPS, unit="steps")] = 5
    """Steps in the average; those without an explained variance (equal returns everywhere) do not count."""
    least_gain: Annotated[float, Range(0, BOUND)] = 0.01
    """A smaller rise is none."""
    critic: CriticOptions = field(default_factory=CriticOptions)

    def parts(self, rollout: Rollout) -> Parts:
        """A critic and no terms: the policy has no optimiser."""
        return Parts(
            select=every_window,
            window=self.window,
            auxiliaries=(Critic(self.critic, self.gamma),),
            stop=Stop("explained_variance_finished", self.why_stop),
        )

    def check(self, rollout: Rollout) -> None:
        """A window that truncates."""
        if self.window is not None:
            check_window(self.window, rollout)

    def idle(self, rollout: Rollout) -> Mapping[str, str]:
        """What belongs to a criterion that is off."""
        found = {} if self.patience is not None else {"least_gain": "patience is off"}
        if self.patience is None and self.explained_variance is None:
            found["over"] = "explained_variance and patience are off"
        return found

    def why_stop(self, series: Sequence[float]) -> str:
        """What ends the run after these explained variances, one a step; empty when nothing does.

        >>> ValuePretraining(explained_variance=0.5, over=2).why_stop([0.1, 0.4, 0.6])
        'explained variance 0.500 reached 0.5'
        >>> ValuePretraining(patience=2, over=1).why_stop([0.3, 0.3, 0.3])
        'explained variance has not risen above 0.300 for 2 steps'
        >>> ValuePretraining(patience=2, over=1).why_stop([0.3, 0.3])
        ''
        """
        means = [sum(series[i - self.over : i]) / self.over for i in range(self.over, len(series) + 1)]
        if not means:
            return ""
        if self.explained_variance is not None and means[-1] >= self.explained_variance:
            return f"explained variance {means[-1]:.3f} reached {self.explained_variance:g}"
        best, since = means[0], 0
        for mean in means[1:]:
            best, since = (mean, 0) if mean > best + self.least_gain else (best, since + 1)
        if self.patience is not None and since >= self.patience:
            return f"explained variance has not risen above {best:.3f} for {since} steps"
        return ""
