"""One-step word problems with whole numbers, made by rule: endless training problems, and held-out ones that share no
pair of numbers with them.

Which split a problem belongs to is decided by its operation and its two numbers alone, so a held-out sum was never
trained on in any wording.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from tppo.data.problems import Problem
from tppo.ranges import SEED, Range, check_ranges

Split = Literal["train", "held_out"]
NAMES = ("Ada", "Ben", "Eva", "Leo", "Mia", "Noah", "Rosa", "Tom")
THINGS = ("apples", "books", "cards", "coins", "eggs", "pencils", "shells", "stamps")
SUMS = (
    "{n} has {a} {t} and gets {b} more. How many {t}?",
    "{n} finds {a} {t} and then {b} more. How many {t}?",
    "{n} has {a} {t} and {m} has {b}. How many {t} together?",
)
DIFFERENCES = (
    "{n} has {a} {t} and loses {b}. How many {t}?",
    "{n} had {a} {t} and gave {b} to {m}. How many {t} are left?",
    "{n} has {a} {t} and {m} has {b} fewer. How many {t} has {m}?",
)
HELD_OUT_SHARE = 0.25
_SPLIT, _DRAW = 0, 1


@dataclass(frozen=True)
class WordProblems:
    """What problems there are."""

    largest: Annotated[int, Range(3, 1_000_000_000)] = 20
    """Largest number in a problem; the smallest is 2."""
    seed: Annotated[int, Range(0, SEED)] = 0
    """Decides which pairs of numbers are held out."""

    def __post_init__(self) -> None:
        check_ranges(self, "task.made")

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """The ``index``-th problem of a split, always the same.

        >>> one = WordProblems().problem("train", 0, seed=0)
        >>> one == WordProblems().problem("train", 0, seed=0)
        True
        """
        rng = np.random.default_rng([seed, _DRAW, split == "held_out", index])
        while True:
            sums = bool(rng.integers(2))
            a, b = (int(x) for x in rng.integers(2, self.largest + 1, size=2))
            if not sums:
                a, b = max(a, b), min(a, b)
            if self.held_out(sums, a, b) == (split == "held_out"):
                break
        forms = SUMS if sums else DIFFERENCES
        name, other = (NAMES[i] for i in rng.choice(len(NAMES), size=2, replace=False))
        thing = THINGS[rng.integers(len(THINGS))]
        question = forms[rng.integers(len(forms))].format(n=name, m=other, a=a, b=b, t=thing)
        answer = str(a + b if sums else a - b)
        return Problem(f"word/{split}/{seed}/{index}", question, answer, "sum" if sums else "difference", index + 1)

    def held_out(self, sums: bool, a: int, b: int) -> bool:
        """Whether these two numbers are kept for evaluation, in either order."""
        key = [self.seed, _SPLIT, sums, min(a, b), max(a, b)]
        return float(np.random.default_rng(key).random()) < HELD_OUT_SHARE
