"""The check that every algorithm with a window makes."""

from __future__ import annotations

from tppo.algorithms.base import Rollout
from tppo.errors import ConfigError


def check_window(window: int, rollout: Rollout) -> None:
    """Raises ConfigError for a window longer than the cap."""
    if rollout.max_response_tokens < window:
        raise ConfigError(
            "rollout.max_response_tokens",
            rollout.max_response_tokens,
            f"at least algorithm.window ({window})",
            "a cap shorter than the window truncates nothing; leave the window out, or take the algorithm 'ppo'",
        )
