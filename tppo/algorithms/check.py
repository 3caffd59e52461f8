"""Whether the parts of an algorithm fit together, before anything is loaded."""

from __future__ import annotations

from collections import Counter

from tppo.algorithms.auxiliaries import GIVERS
from tppo.algorithms.base import Algorithm, Parts, Rollout, no_tokens
from tppo.algorithms.parts.select import every_window
from tppo.errors import ConfigError
from tppo.ranges import TOKENS

ALWAYS = frozenset({"rewards", "behaviour", "train", "old", "entropy"})
"""Columns that the loop itself gives."""


def checked_parts(algorithm: Algorithm, rollout: Rollout) -> Parts:
    """The parts of an algorithm. Raises ConfigError when they cannot run together."""
    algorithm.check(rollout)
    parts, name = algorithm.parts(rollout), type(algorithm).__name__
    names = Counter(["policy", *(a.name for a in parts.auxiliaries)])
    if twice := [n for n, count in names.items() if count > 1]:
        raise ConfigError("algorithm", name, "one network of each name", f"{twice[0]!r} is there twice")
    owners = Counter(column for a in parts.auxiliaries for column in a.gives)
    if twice := [column for column, count in owners.items() if count > 1]:
        raise ConfigError("algorithm", name, "one auxiliary for each column", f"two give {twice[0]!r}")
    first = ALWAYS | owners.keys()
    given = first | (parts.advantage.gives if parts.advantage else frozenset())
    if missing := sorted((parts.reads_first - first) | (parts.reads - given)):
        who = GIVERS.get(missing[0], "an advantage" if missing[0] == "advantages" else "no part that this library has")
        raise ConfigError(
            "algorithm",
            name,
            f"a part that gives the column {missing[0]!r}, which another one reads",
            f"given by: {who}",
        )
    if unread := sorted(parts.live - owners.keys()):
        raise ConfigError("algorithm", name, f"an auxiliary that gives the live column {unread[0]!r}")
    if idle := [t.name for t in parts.terms if t.tokens is None and parts.tokens is no_tokens]:
        raise ConfigError(
            "algorithm", name, f"tokens for the term {idle[0]!r}", "name Parts.tokens, or the term's own tokens"
        )
    if any(t.aggregation == "constant" and not t.constant_length for t in parts.terms):
        raise ConfigError("algorithm", name, "a constant_length for a term of aggregation 'constant'")
    if any(t.aggregation != "constant" and t.constant_length is not None for t in parts.terms):
        raise ConfigError("algorithm", name, "aggregation 'constant' for a term with a constant_length")
    if too_long := [t for t in parts.terms if t.constant_length is not None and not 0 < t.constant_length <= TOKENS]:
        raise ConfigError(
            "algorithm", name, f"a constant_length in [1, {TOKENS}] [tokens]",
            f"the term {too_long[0].name!r} has {too_long[0].constant_length}",
        )  # fmt: skip
    if parts.groups is not None and parts.select is every_window:
        raise ConfigError(
            "algorithm", name, "a select that waits for whole groups beside Parts.groups",
            "in a step of several rounds every_window would leave the first rounds' windows untrained",
        )  # fmt: skip
    if parts.lag and parts.select is every_window and parts.window is not None:
        raise ConfigError(
            "algorithm", name, "whole responses for batches that train later",
            "an unfinished response would have grown until then; select whole groups, or leave the window out",
        )  # fmt: skip
    if not parts.terms and not any(a.optimizer for a in parts.auxiliaries):
        raise ConfigError(
            "algorithm", name, "at least one term, or an auxiliary that trains", "nothing would be learned"
        )
    return parts
