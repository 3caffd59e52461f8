"""Three families of problems whose answers can be worked out one letter at a time.

A prompt shows distinct letters in random order, the letter to stop at and the state to start from. The working takes
the letters in alphabetical order up to that letter and writes each with the state after it. So every step needs only
the last letter, the last state and one look-up among the letters of the prompt, and short problems exercise all that
long ones need.

======  ============  =====================  ============================================================
family  prompt        working and answer     meaning of a letter
======  ============  =====================  ============================================================
sum     Skdbm?k=5     b2=7d4=1k1=2#2         its number in the alphabet is added, modulo 10
walk    Wkdbm?k=0:0   b<4:0d<3:0k>4:0#40     odd numbers step forward, even ones back, on a ring of five
                                             places; written are the place and the visits to place 0
rank    Rkdbm?k=0     b=1d=2k=3#3            it counts one, modulo 10
======  ============  =====================  ============================================================

A wrong step is written down and built upon: the working stays consistent with itself, and its answer is wrong unless
later errors happen to cancel the first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sim.language.problems import Problem
from sim.language.tokenizer import ANSWER_MARK, LETTERS

RING = 5  # places of a walk
MODULUS = 10  # one digit holds every sum, count of visits and rank
SPARE = 3  # at most so many letters of a prompt lie beyond the one to stop at

Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of problem: how its prompts begin and how it is worked out."""

    mark: str  # first character of a prompt
    start: Callable[[Rng], str]  # the state to start from
    work: Callable[[str, str, Rng, float], str]  # (letters to take, start, rng, error_rate) -> working and answer


def work_sum(letters: str, start: str, rng: Rng, error_rate: float) -> str:
    """Work out a sum. With probability ``error_rate`` a step's sum is any of the nine wrong digits.

    >>> work_sum("bdk", "5", np.random.default_rng(0), 0.0)
    'b2=7d4=1k1=2#2'
    """
    total, working = int(start), ""
    for letter in letters:
        value = _number(letter) % MODULUS
        total = _maybe_wrong((total + value) % MODULUS, MODULUS, rng, error_rate)
        working += f"{letter}{value}={total}"
    return f"{working}{ANSWER_MARK}{total}"


def work_walk(letters: str, start: str, rng: Rng, error_rate: float) -> str:
    """Work out a walk. With probability ``error_rate`` a step leads to any of the four wrong places.

    Visits are counted as written.

    >>> work_walk("bdk", "0:0", np.random.default_rng(0), 0.0)
    'b<4:0d<3:0k>4:0#40'
    """
    place, visits, working = int(start[0]), int(start[2]), ""
    for letter in letters:
        forward = _number(letter) % 2 == 1
        place = _maybe_wrong((place + (1 if forward else -1)) % RING, RING, rng, error_rate)
        visits = (visits + (place == 0)) % MODULUS
        working += f"{letter}{'>' if forward else '<'}{place}:{visits}"
    return f"{working}{ANSWER_MARK}{place}{visits}"


def work_rank(letters: str, start: str, rng: Rng, error_rate: float) -> str:
    """Work out a rank. With probability ``error_rate`` a step skips a letter; the last step has none to skip.

    >>> work_rank("bdk", "0", np.random.default_rng(0), 0.0)
    'b=1d=2k=3#3'
    """
    rank, at, working = int(start), -1, ""
    while at < len(letters) - 1:
        at += 2 if at < len(letters) - 2 and rng.random() < error_rate else 1
        rank = (rank + 1) % MODULUS
        working += f"{letters[at]}={rank}"
    return f"{working}{ANSWER_MARK}{rank}"


#: The order is part of what a seed means: append only.
FAMILIES = {
    "sum": Family("S", lambda rng: str(rng.integers(MODULUS)), work_sum),
    "walk": Family("W", lambda rng: f"{rng.integers(RING)}:0", work_walk),
    "rank": Family("R", lambda rng: "0", work_rank),
}


def draw(family: str, steps: int, rng: Rng) -> Problem:
    """Draw a problem of ``steps`` steps. Working without errors gives its answer: one piece of code defines right.

    >>> draw("rank", 3, np.random.default_rng(0))
    Problem(family='rank', prompt='Rtekl?l=0', answer='3', steps=3)
    """
    kind = family_of(family)
    shown = rng.permutation(list(LETTERS))[: min(steps + int(rng.integers(SPARE + 1)), len(LETTERS))]
    prompt = f"{kind.mark}{''.join(shown)}?{sorted(shown)[steps - 1]}={kind.start(rng)}"
    working = kind.work(*_read(prompt), rng, 0.0)
    return Problem(family=family, prompt=prompt, answer=working.rpartition(ANSWER_MARK)[2], steps=steps)


def demonstrate(problem: Problem, rng: Rng, error_rate: float = 0.0) -> str:
    """Write a worked solution in which each step is wrong with probability ``error_rate``.

    >>> problem = Problem(family="rank", prompt="Rkdbm?k=0", answer="3", steps=3)
    >>> demonstrate(problem, np.random.default_rng(0))
    'b=1d=2k=3#3'
    """
    if not 0.0 <= error_rate <= 1.0:
        raise ValueError(f"error_rate is {error_rate!r}, expected a probability in [0, 1]: pass e.g. 0.1")
    return family_of(problem.family).work(*_read(problem.prompt), rng, error_rate)


def family_of(name: str) -> Family:
    """The family called ``name``."""
    if name not in FAMILIES:
        raise ValueError(f"family is {name!r}, expected one of {', '.join(FAMILIES)}: correct the name")
    return FAMILIES[name]


def _read(prompt: str) -> tuple[str, str]:
    """Parse a prompt into the letters to take, in the order to take them, and the state to start from.

    >>> _read("Wkdbm?k=0:0")
    ('bdk', '0:0')
    """
    shown, _, question = prompt[1:].partition("?")
    return "".join(letter for letter in sorted(shown) if letter <= question[0]), question[2:]


def _number(letter: str) -> int:
    """The number of a letter in the alphabet, from 1."""
    return LETTERS.index(letter) + 1


def _maybe_wrong(right: int, states: int, rng: Rng, error_rate: float) -> int:
    """``right``, or with probability ``error_rate`` one of the other states, each equally likely."""
    if rng.random() < error_rate:
        return (right + int(rng.integers(1, states))) % states
    return right
