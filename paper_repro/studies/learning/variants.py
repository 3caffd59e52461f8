"""The one task of the learning studies, and the changes to T-PPO that several of them compare.

Every function takes a configuration and returns a changed copy, so that a variant is a chain of them.
"""

from __future__ import annotations

from typing import Any, Literal

from paper_repro.recipes.small import token_mdp
from paper_repro.tasks.token_mdp import TokenMDPTask
from tppo.config.run import RunConfig

CAP = 64  # tokens of the longest response


def heavy_tailed(**changes: Any) -> RunConfig:
    """The token-mdp recipe on demands with a Pareto tail of index 1/2, cut at 31, and a cap of 64 tokens.

    The start policy solves 59% in 7.4 tokens on average; 50, 90 and 99% of its responses have at most 5, 15, 33 tokens.
    32 slots and one optimiser step a training step, so that data are scarce; no positive-example loss, so that the
    policy learns from advantages alone.
    """
    return (
        token_mdp()
        .with_values(
            task=TokenMDPTask(
                family="tailed_length", size=31, num_tokens=6, tail=0.5, base_skill=0.3, base_stop_prob=0.1
            ),
            steps=10**6,
            rollout__slots=32,
            rollout__max_response_tokens=CAP,
            policy__mini_batch=32,
            critic__mini_batch=32,
            evaluation__every=0,
            compute__device="cpu",
            algorithm__filter__ignore_last=1,
            algorithm__policy_loss__lm_coef=0.0,
        )
        .with_values(**changes)
    )


def windowed(config: RunConfig, window: int) -> RunConfig:
    """T-PPO with at most `window` new tokens a response and step."""
    return config.with_values(algorithm__schedule__window=window)


def ignoring_last(config: RunConfig, tokens: int) -> RunConfig:
    """The last `tokens` of an unfinished window do not train the policy."""
    return config.with_values(algorithm__filter__ignore_last=tokens)


def waiting(config: RunConfig) -> RunConfig:
    """Responses are generated window by window, but train only once they have ended."""
    return config.with_values(algorithm__filter__train_on="finished", algorithm__filter__ignore_last=0)


def whole(config: RunConfig) -> RunConfig:
    """PPO: a window as long as the cap, hence no unfinished response and no filter."""
    return ignoring_last(windowed(config, CAP), 0)


def warmed_up(config: RunConfig, steps: int) -> RunConfig:
    """The critic trains alone for the first `steps`."""
    return config.with_values(algorithm__value_target__warmup_steps=steps)


def critic_towards_lambda_returns(
    config: RunConfig, lam: float, responses: Literal["finished", "all"] = "finished"
) -> RunConfig:
    """The critic's targets are lambda-returns instead of Monte-Carlo returns, of finished or of all responses."""
    return config.with_values(algorithm__value_target__lam=lam, algorithm__value_target__responses=responses)
