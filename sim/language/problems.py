"""Problems, and the law of their difficulty.

A ``Problem`` is text: a prompt, the one right answer and the number of steps its working takes. Difficulty has a heavy
tail, so most responses are short and a few are very long, as with language models that reason.
"""

import sys
from dataclasses import dataclass

import numpy as np

from sim.language.tokenizer import LETTERS

#: Every step is named by a letter of its own, so there are no more steps than letters.
MAX_STEPS = len(LETTERS)
MIN_STEPS = 2
#: Of a law's numbers: far beyond it, 1 + 1 / scale is 1 in float64 and the law is lost.
LARGEST = 1e6


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with a checkable answer."""

    family: str  # key of FAMILIES
    prompt: str  # all the response is to be made from
    answer: str  # what must follow the answer mark
    steps: int  # steps of the working: the difficulty


@dataclass(frozen=True, slots=True)
class Difficulty:
    """Truncated Lomax (Pareto II) law of the number of steps.

    P(steps >= n) is proportional to (1 + (n - MIN_STEPS) / scale) ** -tail - c, where the constant c puts the end at
    ``maximum``. The tail index ``tail`` sets how slowly long problems become rare; ``scale`` sets the typical length.

    >>> Difficulty(scale=2.0, tail=2.0, maximum=9).at(0.0), Difficulty(scale=2.0, tail=2.0, maximum=9).at(1.0)
    (2, 9)
    """

    scale: float = 3.0  # typical number of steps beyond the least
    tail: float = 1.5  # Pareto index; a smaller one makes long problems more frequent
    maximum: int = MAX_STEPS  # most steps

    def __post_init__(self) -> None:
        for name in ("scale", "tail"):
            value = getattr(self, name)
            if not 0 < value <= LARGEST:
                raise ValueError(
                    f"Difficulty.{name} is {value!r}, expected a number in (0, {LARGEST:g}]: pass e.g. 2.0"
                )
        if not MIN_STEPS <= self.maximum <= MAX_STEPS:
            raise ValueError(
                f"Difficulty.maximum is {self.maximum!r}, expected {MIN_STEPS} to {MAX_STEPS} steps "
                f"(each step needs a letter of its own): pass a number in that range"
            )

    def at(self, quantile: float) -> int:
        """The number of steps at ``quantile`` of the law, 0 the shortest and 1 the longest."""
        width = self.maximum - MIN_STEPS + 1
        end = (1.0 + width / self.scale) ** -self.tail
        # Added up from the end, which 1 - quantile would lose to round-off; a light tail may still underflow to zero.
        survival = max(end + (1.0 - quantile) * (1.0 - end), sys.float_info.min)
        offset = self.scale * (survival ** (-1.0 / self.tail) - 1.0)
        return MIN_STEPS + int(min(offset, width - 1))

    def draw(self, rng: np.random.Generator) -> int:
        """Draw a number of steps."""
        return self.at(rng.random())
