"""The one task of the learning studies, and the algorithms that they compare, each defined once.

No positive-example loss, so that the policy learns from advantages alone; tables learn at a rate of 0.05.
"""

from __future__ import annotations

from dataclasses import replace

from paper_repro.recipes.small import token_mdp
from paper_repro.tasks.token_mdp import TokenMDPTask
from tppo.algorithms import PPO, TPPO, Algorithm, Waiting, WaitingBehaviour
from tppo.algorithms.auxiliaries.critic import CriticOptions, WindowedCriticOptions
from tppo.config.registry import carried
from tppo.config.run import RunConfig

CAP = 64  # tokens of the longest response
WARM_UP = 5
"""Steps in which the critic trains alone, unless a study says otherwise."""
DEMANDS = TokenMDPTask(family="tailed_length", size=31, num_tokens=6, tail=0.5, base_skill=0.3, base_stop_prob=0.1)
"""Demands with a Pareto tail of index 1/2, cut at 31; the start policy solves 59% in 7.4 tokens on average."""
WINDOWED_CRITIC = WindowedCriticOptions(lr=0.05, weight_decay=0.0, mini_batch=32, grad_clip=None)
CRITIC = carried(WINDOWED_CRITIC, CriticOptions())


def heavy_tailed(
    algorithm: Algorithm,
    *,
    rate: float = 0.05,
    slots: int = 32,
    mini_batch: int = 32,
    cap: int = CAP,
    task: TokenMDPTask = DEMANDS,
) -> RunConfig:
    """The token-mdp recipe on demands with a heavy tail.

    Of the start policy's responses 50, 90 and 99% have at most 5, 15, 33 tokens. 32 slots and one optimiser step a
    training step, so that data are scarce. rate: learning rate of the policy.
    """
    recipe = token_mdp()
    return replace(
        recipe,
        task=task,
        algorithm=algorithm,
        steps=10**6,
        rollout=replace(recipe.rollout, slots=slots, max_response_tokens=cap),
        policy=replace(recipe.policy, lr=rate, mini_batch=mini_batch),
        evaluation=replace(recipe.evaluation, every=0),
        compute=replace(recipe.compute, device="cpu"),
    )


def windowed(window: int, *, ignore_last: int = 1, critic: WindowedCriticOptions = WINDOWED_CRITIC) -> TPPO:
    """T-PPO with at most `window` new tokens a response and step."""
    return TPPO(window=window, ignore_last=ignore_last, warmup_steps=WARM_UP, imitate=0.0, critic=critic)


def whole(*, critic: CriticOptions = CRITIC) -> PPO:
    """PPO: whole responses, hence no unfinished one and no filter."""
    return PPO(warmup_steps=WARM_UP, imitate=0.0, critic=critic)


def waiting(
    window: int, *, importance_cap: float | None = None, critic: WindowedCriticOptions = WINDOWED_CRITIC
) -> Waiting:
    """Responses are generated window by window, but train only once they have ended; decoupled with a cap."""
    return Waiting(window=window, warmup_steps=WARM_UP, imitate=0.0, importance_cap=importance_cap, critic=critic)


def waiting_behaviour(window: int) -> WaitingBehaviour:
    """The same with the ratio to the policy that sampled each token."""
    return WaitingBehaviour(window=window, warmup_steps=WARM_UP, imitate=0.0, critic=WINDOWED_CRITIC)
