"""The algorithms that the learning studies compare, each defined once, on the demands of `trials.heavy_tailed`.

No positive-example loss, so that the policy learns from advantages alone; tables learn at a rate of 0.05.
"""

from __future__ import annotations

from tppo.algorithms import PPO, TPPO, Waiting, WaitingBehaviour
from tppo.algorithms.auxiliaries.critic import CriticOptions, WindowedCriticOptions
from tppo.config.registry import carried

WARM_UP = 5
"""Steps in which the critic trains alone, unless a study says otherwise."""
WINDOWED_CRITIC = WindowedCriticOptions(lr=0.05, weight_decay=0.0, mini_batch=32, grad_clip=None)
CRITIC = carried(WINDOWED_CRITIC, CriticOptions())


def tppo(window: int, *, ignore_last: int = 1, critic: WindowedCriticOptions = WINDOWED_CRITIC) -> TPPO:
    """T-PPO with windows of so many tokens."""
    return TPPO(window=window, ignore_last=ignore_last, warmup_steps=WARM_UP, imitate=0.0, critic=critic)


def ppo(*, critic: CriticOptions = CRITIC) -> PPO:
    """PPO over whole responses."""
    return PPO(warmup_steps=WARM_UP, imitate=0.0, critic=critic)


def waiting(
    window: int, *, importance_cap: float | None = None, critic: WindowedCriticOptions = WINDOWED_CRITIC
) -> Waiting:
    """The same windows, waiting for the end of a response; decoupled with a cap of the importance weights."""
    return Waiting(
        window=window, warmup_steps=WARM_UP, imitate=0.0, importance_cap=importance_cap, critic=critic
    )  # fmt: skip


def waiting_behaviour(window: int) -> WaitingBehaviour:
    """The same with the ratio to the policy that sampled each token."""
    return WaitingBehaviour(window=window, warmup_steps=WARM_UP, imitate=0.0, critic=WINDOWED_CRITIC)
