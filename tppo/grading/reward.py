"""What a reward is: a function of a prompt and the text of a response."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol, runtime_checkable

from tppo.types import Prompt


class Reward(Protocol):
    """Scores a finished response. Any callable will do; it is called in one thread, one text after the other."""

    def __call__(self, prompt: Prompt, text: str, /) -> float:
        """The score, a finite number."""


@runtime_checkable
class SubmittingReward(Protocol):
    """A reward that brings its own workers, so that several texts are judged at a time."""

    def submit(self, prompt: Prompt, text: str) -> Future[float]:
        """The score, later."""
