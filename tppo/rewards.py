"""Grading. A reward is any callable (prompt, response text) -> finite number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from tppo.errors import RewardError
from tppo.types import Prompt, Response

Reward = Callable[[Prompt, str], float]


def grade(responses: Iterable[Response], reward: Reward, decode: Callable[[Sequence[int]], str]) -> None:
    """Set the reward of every finished response that has none yet; an unfinished one is never shown to the grader.

    Raises RewardError when the reward function raises or returns anything but a finite number.
    """
    for response in responses:
        if not response.status.finished or response.reward is not None:
            continue
        text = decode(response.tokens)
        try:
            score = float(reward(response.prompt, text))
        except Exception as error:
            where = f"prompt {response.prompt.id!r}, response {response.uid}"
            raise RewardError(f"the reward function failed on {where}: {type(error).__name__}: {error}") from error
        if not math.isfinite(score):
            where = f"prompt {response.prompt.id!r}, response {response.uid}"
            raise RewardError(f"the reward of {where} is {score}: expected a finite number")
        response.reward = score
