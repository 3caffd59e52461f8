"""PPO (arXiv 1707.06347) as VC-PPO and VAPO set it up (arXiv 2503.01491, 2504.05118): T-PPO's twin.

    A_t = sum_j (gamma lambda_i)^j delta_{t+j},     V(s_T) = 0

Every response is generated to its end or to the total cap, so nothing is bootstrapped and nothing filtered: the
estimator is plain GAE and m is 0. Everything else is as in T-PPO (decoupled lambda, clip-higher, length-adaptive
lambda, positive-example loss), so a comparison with T-PPO isolates truncation. T-PPO with a window at least as long as
the cap equals this bit for bit; a test holds that.
"""

from __future__ import annotations

from tppo.algorithms.base import Advantage, Algorithm, Schedule, TokenFilter


def ppo() -> Algorithm:
    """PPO over whole responses.

    >>> ppo().schedule.window is None
    True
    """
    return Algorithm(
        name="ppo",
        schedule=Schedule(window=None),
        advantage=Advantage(estimator="gae"),
        filter=TokenFilter(ignore_last=0),
    )
