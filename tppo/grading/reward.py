"""What a reward is: a function of a prompt and the text of a response."""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Mapping
from concurrent.futures import Future
from numbers import Complex, Real
from typing import Any, Protocol, runtime_checkable

from tppo.types import Prompt

LARGEST = 3.4028234663852886e38
"""Of float32, in which the loop computes."""


class Reward(Protocol):
    """Scores a finished response. Any callable will do; it is called in one thread, one text after the other."""

    def __call__(self, prompt: Prompt, text: str, /) -> float:
        """The score, a finite number; True and False are 1 and 0."""


@runtime_checkable
class SubmittingReward(Protocol):
    """A reward that brings its own workers, so that several texts are judged at a time."""

    def submit(self, prompt: Prompt, text: str) -> Future[float]:
        """The score, later."""


@runtime_checkable
class CountingReward(Protocol):
    """A reward that counts how its verdicts came about; the counts go into the summary of a run."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Texts by the end they came to."""

    @property
    def slowest(self) -> float:
        """The longest verdict so far [s]."""


def as_score(value: Any) -> float:
    """What a reward returned, as a float: a number of any library that is real, finite and fits in float32.

    Raises ValueError for anything else; a text is no number, even if it could be read as one.

    >>> as_score(1), as_score(True)
    (1.0, 1.0)
    >>> as_score("1")
    Traceback (most recent call last):
    ...
    ValueError: is '1': expected a finite number
    """
    real = not isinstance(value, Complex) or isinstance(value, Real)
    with contextlib.suppress(Exception):  # a tensor of several elements, a fraction that is too large
        if real and hasattr(type(value), "__float__") and abs(score := float(value)) <= LARGEST:
            return score
    try:
        found = " ".join(reprlib.repr(value).split())
    except Exception:
        found = f"a {type(value).__name__}"
    raise ValueError(f"is {found}: expected a finite number")
