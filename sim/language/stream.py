"""An endless stream of problems, addressed by index and split for good into training and held-out.

``problem(split, index, seed)`` depends on its arguments alone, not on what was drawn before, so a resumed run needs to
remember one integer. The split of a problem is read off a hash of its prompt: no seed, size or order can put one
problem on both sides.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from sim.language.families import FAMILIES, draw, family_of
from sim.language.problems import Difficulty, Problem

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = get_args(Split)

#: Share of all problems that is held out.
HELDOUT_SHARE = 0.1


def split_of(prompt: str) -> Split:
    """The split a prompt belongs to, for ever.

    >>> split_of("Skdbm?k=5")
    'train'
    """
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") < HELDOUT_SHARE * 2**64 else "train"


@dataclass(frozen=True, slots=True)
class Language:
    """The problems of a run: which families, and how hard.

    >>> language = Language()
    >>> language.problem("train", 7, seed=0) == language.problem("train", 7, seed=0)
    True
    """

    families: tuple[str, ...] = tuple(FAMILIES)  # drawn with equal probability
    difficulty: Difficulty = field(default_factory=Difficulty)

    def __post_init__(self) -> None:
        if not self.families:
            raise ValueError(f"Language.families is empty, expected names of {', '.join(FAMILIES)}: name at least one")
        for name in self.families:
            family_of(name)

    def problem(self, split: Split, index: int, seed: int = 0) -> Problem:
        """Problem ``index`` of the stream ``(split, seed)``."""
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}: correct the name")
        for name, value in (("index", index), ("seed", seed)):
            if value < 0:
                raise ValueError(f"{name} is {value}, expected 0 or more: streams have no negative part")
        key = np.random.SeedSequence([seed, SPLITS.index(split), index])
        rng = np.random.Generator(np.random.Philox(key))
        while True:  # a few draws: the hash sends a fixed share of all problems to either side
            family = self.families[rng.integers(len(self.families))]
            problem = draw(family, self.difficulty.draw(rng), rng)
            if split_of(problem.prompt) == split:
                return problem
