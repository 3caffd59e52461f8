"""Waiting for the end of a response, T-PPO's rival at the same schedule: windows, yet no token trains before its
response has ended.

    w_t = min(pi_old / pi_behaviour, cap),     loss = mean of w_t * clipped(pi / pi_old, A_t)        decoupled PPO

Nothing is bootstrapped. The price is age: the first token of a response of L tokens trains ceil(L / W) - 1 versions
after it was sampled. ``Waiting`` keeps the ratio to the policy before the update, decoupled where ``importance_cap``
is a number (arXiv 2110.00641; AReaL, arXiv 2505.24298, for language models); ``WaitingBehaviour`` takes the ratio to
the policy that sampled the token, the plain off-policy PPO.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from tppo.algorithms.auxiliaries.critic import WindowedCriticOptions, windowed_critic
from tppo.algorithms.base import Parts, Rollout
from tppo.algorithms.parts.window import check_window
from tppo.algorithms.ppo import PPO
from tppo.algorithms.tppo import UNCUT
from tppo.errors import ConfigError
from tppo.ranges import TOKENS, Range


@dataclass(frozen=True)
class Waiting(PPO):
    """PPO on finished responses that were generated in windows."""

    name: ClassVar[str] = "waiting"

    window: Annotated[int, Range(1, TOKENS, unit="tokens")] = 8192
    """Most new tokens of a response in a step (W)."""
    critic: WindowedCriticOptions = field(default_factory=WindowedCriticOptions)

    def parts(self, rollout: Rollout) -> Parts:
        """PPO's, in windows."""
        critic = windowed_critic(self.critic, self.gamma)
        return replace(super().parts(rollout), window=self.window, auxiliaries=(critic, *self.reference()))

    def check(self, rollout: Rollout) -> None:
        """A window that truncates."""
        super().check(rollout)
        check_window(self.window, rollout)

    def idle(self, rollout: Rollout) -> Mapping[str, str]:
        """What is about cuts, where there are none."""
        if self.window < rollout.max_response_tokens:
            return {}
        return dict.fromkeys(("critic.responses", "critic.old_values"), UNCUT)


@dataclass(frozen=True)
class WaitingBehaviour(Waiting):
    """Waiting, with the ratio to the policy that sampled the token."""

    name: ClassVar[str] = "waiting-behaviour"
    centre: ClassVar[Literal["old", "behaviour", "average"]] = "behaviour"

    def check(self, rollout: Rollout) -> None:
        """A correction that would count twice."""
        super().check(rollout)
        if self.importance_cap is not None:
            raise ConfigError(
                "algorithm.importance_cap",
                self.importance_cap,
                "None with the ratio to the behaviour policy",
                "that ratio is in the clipped surrogate already",
            )
