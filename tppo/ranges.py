"""Ranges of configuration fields, declared where the field is, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tppo.errors import ConfigError

# Upper limits that several fields share. Each is far beyond any run of today (32 billion parameters, 131,072 tokens of
# context, 100,000 slots, a million steps), so what lies above is a slip of the hand, and small enough that arithmetic
# on it neither overflows nor loses whole numbers. Whether a run fits its machine is another question: see
# tppo/config/demand.py.
TOKENS = 10_000_000
"""Of one response, one window, one micro-batch."""
RESPONSES = 1_000_000
"""Of one step."""
STEPS = 100_000_000
PROBLEMS = 10_000_000
WORKERS = 4096
"""Processes of one program."""
GPUS = 65_536
SEED = 2**63 - 1
SECONDS = 31_536_000
"""A year: waiting longer overflows the clocks of threads."""
BOUND = 1e9
"""Of clips, clamps and caps: beyond it none can bind, and float32 still squares it."""
WEIGHT = 1e6
"""Of terms of a loss."""
RATE = 100.0
"""Of learning rates and weight decay."""
HOT = 1000.0
"""Of temperatures: sampling is uniform long before."""
COLD = 1e-3
"""Lowest temperature of sampling: logits divided by a smaller one overflow half precision."""


@dataclass(frozen=True)
class Range:
    """Closed interval [low, high]; ``above`` and ``below`` open an end. ``unit`` is for messages and help.

    >>> Range(0, 1).problem(1.5)
    'a number in [0, 1]'
    >>> Range(0, above=True).problem(0.0)
    'a number in (0, inf)'
    >>> Range(1, 10_000_000, unit="tokens").problem(0)
    'a number in [1, 10000000] [tokens]'
    """

    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    above: bool = False
    below: bool = False

    def problem(self, value: float) -> str | None:
        """What was expected, or None when ``value`` is in the interval."""
        inside_low = value > self.low if self.above else value >= self.low
        if inside_low and (value < self.high if self.below else value <= self.high):
            return None
        left = "(" if self.above or math.isinf(self.low) else "["
        right = ")" if self.below or math.isinf(self.high) else "]"
        unit = f" [{self.unit}]" if self.unit else ""
        return f"a number in {left}{_plain(self.low)}, {_plain(self.high)}{right}{unit}"

    @property
    def finite(self) -> bool:
        """Whether there is a largest and a smallest value."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def _plain(limit: float) -> str:
    """A limit as one would type it: whole numbers with all their digits."""
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def fields_of(config: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, type with its annotations, value) of each field of a dataclass instance."""
    kind: Any = type(config)
    hints = _hints(kind)
    for field in dataclasses.fields(config):
        yield field.name, hints[field.name], getattr(config, field.name)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """Types of the fields with their annotations; evaluating them takes longer than all checks together."""
    return typing.get_type_hints(kind, include_extras=True)


def check_ranges(config: Any, path: str = "") -> None:
    """Walk a tree of dataclasses and check every leaf's type and range. Raises ConfigError at the first bad leaf."""
    for name, hint, value in fields_of(config):
        here = f"{path}.{name}" if path else name
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            check_ranges(value, here)
        else:
            check_leaf(here, hint, value)


def _parts(hint: Any) -> list[Any]:
    """The alternatives of a type and their annotations: ``Annotated[int, Range(1)] | None`` has three."""
    if typing.get_origin(hint) in (typing.Annotated, typing.Union, types.UnionType):
        return [part for arg in typing.get_args(hint) for part in _parts(arg)]
    return [hint]


def check_leaf(path: str, hint: Any, value: Any) -> None:
    """Raise ConfigError unless a value has the type and the range of its field."""
    parts = _parts(hint)
    if value is None and type(None) in parts:
        return
    if classes := [p for p in parts if isinstance(p, type) and dataclasses.is_dataclass(p)]:
        raise ConfigError(path, value, f"the fields of {classes[0].__name__}")
    literals = [x for p in parts if typing.get_origin(p) is typing.Literal for x in typing.get_args(p)]
    if literals:
        if value not in literals:
            raise ConfigError(path, value, "one of " + ", ".join(map(repr, literals)))
    elif int in parts or float in parts:
        whole = float not in parts
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise ConfigError(path, value, "a whole number" if whole else "a number")
        if isinstance(value, float) and not math.isfinite(value):  # a whole number may be too large for the question
            raise ConfigError(path, value, "a finite number")
        for mark in parts:
            if isinstance(mark, Range) and (expected := mark.problem(value)):
                raise ConfigError(path, value, expected)
    elif bool in parts and not isinstance(value, bool):
        raise ConfigError(path, value, "True or False")
    elif str in parts and not isinstance(value, str):
        raise ConfigError(path, value, "text")
