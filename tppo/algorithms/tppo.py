"""Truncated PPO, arXiv 2506.15050.

    A_t = sum_{j=0}^{l-1-t} (gamma lambda_i)^j delta_{t+j},     V(s_l) := V(s_{l-1}) where the window cut the response

Generate at most a window of tokens for a constant number of slots; train the policy at once on these tokens; train the
critic on finished responses only, with Monte-Carlo returns.

Evidence of the defaults. The paper's abstract, its Eq. 6 and its reviews confirm EGAE with the repeated value, the dual
update and the filtering of tokens. All numbers below are from the authors' public port of the method, which never ran
to a result, and are unconfirmed for the paper: alpha 0.05, lambda floor 0.95, m 8, clip 0.2/0.28, dual clip 10,
positive-example weight 0.1 (also VAPO, arXiv 2504.05118), value clip 0.5/0.6, critic warm-up 10 steps.

Edge cases. A response that ends in the window's last slot is finished, not cut. One that reaches the total cap is
finished and graded. The recursion runs over the whole window; dropping the last m tokens comes after it. A window must
be longer than m, or an unfinished window would train nothing.

Where we depart from the port, on purpose: boolean selection at the cut (the port negates integers bitwise), the plain
log-ratio (the port's ratio is never below one), token counts that are global and count kept tokens only, values of
earlier windows recomputed as clip centre, all unfinished responses carried over whatever is selected for training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

from tppo.algorithms.auxiliaries.critic import WindowedCriticOptions, windowed_critic
from tppo.algorithms.base import Parts, Rollout
from tppo.algorithms.parts.advantages import generalised
from tppo.algorithms.parts.tokens import new_tokens
from tppo.algorithms.parts.window import check_window
from tppo.algorithms.ppo import PPO
from tppo.errors import ConfigError
from tppo.maths.advantages import Boundary
from tppo.ranges import TOKENS, Range

UNCUT = "no response is cut: the window is as long as rollout.max_response_tokens"
"""Why an option that is about cuts changes nothing."""


@dataclass(frozen=True)
class TPPO(PPO):
    """Truncated PPO: PPO that trains on windows.

    >>> TPPO().boundary
    'repeat'
    """

    name: ClassVar[str] = "tppo"

    window: Annotated[int, Range(1, TOKENS, unit="tokens")] = 8192
    """Most new tokens of a response in a step (W)."""
    ignore_last: Annotated[int, Range(0, TOKENS, unit="tokens")] = 8
    """Tokens dropped before the cut of an unfinished window (m)."""
    boundary: Boundary = "repeat"
    """What stands for V(s_l) at the cut: V(s_{l-1}) (the paper), the critic's own V(s_l), or zero."""
    critic: WindowedCriticOptions = field(default_factory=WindowedCriticOptions)

    def parts(self, rollout: Rollout) -> Parts:
        """PPO's, of this window's tokens."""
        return replace(
            super().parts(rollout),
            window=self.window,
            tokens=new_tokens(ignore_last=self.ignore_last),
            advantage=generalised(
                over="window", boundary=self.boundary, window=self.window, max_length=rollout.max_response_tokens,
                **self.estimator(),
            ),
            auxiliaries=(windowed_critic(self.critic, self.gamma, self.boundary), *self.reference()),
        )  # fmt: skip

    def check(self, rollout: Rollout) -> None:
        """A window that truncates, and that leaves something to train."""
        super().check(rollout)
        check_window(self.window, rollout)
        if self.window < rollout.max_response_tokens and self.window <= self.ignore_last:
            raise ConfigError(
                "algorithm.window",
                self.window,
                f"more than algorithm.ignore_last ({self.ignore_last})",
                "an unfinished window would train nothing; use a longer window or drop fewer tokens",
            )

    def idle(self, rollout: Rollout) -> Mapping[str, str]:
        """What is about cuts, where there are none."""
        if self.window < rollout.max_response_tokens:
            return {}
        cuts = ("ignore_last", "boundary", "critic.responses", "critic.old_values")
        return dict.fromkeys(cuts, UNCUT)
