"""Shapes of what is read from files: types with their ranges, declared once, and one check for all of them.

A shape is a type: a ``TypedDict`` or a dataclass of types, lists and dictionaries of them, alternatives, literals, and
``Annotated[..., Range(...)]`` for numbers. What a hash or a parser cannot see, a file that is whole but says something
else than it should, is found here, before any of it is used.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import reprlib
import types
import typing
from collections.abc import Iterable
from typing import Any

from tppo.ranges import Range

_KINDS: dict[Any, str] = {
    str: "text", bool: "true or false", int: "a whole number", float: "a number", type(None): "null",
}  # fmt: skip


def misfit(shape: Any, value: Any, path: str = "") -> str:
    """The first thing in a value from JSON that its shape does not allow, in words; empty if there is none.

    NaN is a number, unless a range says otherwise; infinity, which JSON cannot say, is none. A TypedDict may have more
    keys than are declared, a dataclass may not: it is made from them.

    >>> misfit(dict[str, list[float] | None], {"a": [0.5], "b": None})
    ''
    >>> misfit(dict[str, list[float]], {"a": [0.5, True]}, "rates")
    'rates.a[1] = True: expected a number'
    """
    origin, args = typing.get_origin(shape), typing.get_args(shape)
    if shape is Any:
        return ""
    if origin in (typing.Annotated, typing.NotRequired):
        ranges = [mark for mark in args[1:] if isinstance(mark, Range)]
        return misfit(args[0], value, path) or _first(
            _unlike(path, value, expected) for mark in ranges if (expected := mark.problem(value))
        )
    if origin in (typing.Union, types.UnionType):
        wrong = [misfit(alternative, value, path) for alternative in args]
        return "" if "" in wrong else wrong[0]
    if origin is typing.Literal:
        fits = isinstance(value, str) and value in args
        return "" if fits else _unlike(path, value, "one of " + ", ".join(map(repr, args)))
    if origin is list:
        items = enumerate(value) if isinstance(value, list) else None
        return _within(((f"{path}[{i}]", args[0], item) for i, item in items) if items else None, path, value, "a list")
    if origin is dict:
        pairs = value.items() if isinstance(value, dict) else None
        inside = ((_below(path, key), args[1], item) for key, item in pairs) if pairs is not None else None
        return _within(inside, path, value, "an object")
    if typing.is_typeddict(shape) or dataclasses.is_dataclass(shape):
        return _fields(shape, value, path)
    return "" if _is(shape, value) else _unlike(path, value, _KINDS[shape])


def _fields(shape: Any, value: Any, path: str) -> str:
    if not isinstance(value, dict):
        return _unlike(path, value, "an object")
    hints, needed = _declared(shape)
    if missing := needed - value.keys():
        return f"{_below(path, min(missing))} is missing"
    if dataclasses.is_dataclass(shape) and (unknown := value.keys() - hints.keys()):
        return f"{_below(path, min(unknown))} is unknown"
    return _first(misfit(hints[key], item, _below(path, key)) for key, item in value.items() if key in hints)


@functools.cache
def _declared(shape: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Types of the fields by name, and the names that must be there."""
    hints = typing.get_type_hints(shape, include_extras=True)
    if dataclasses.is_dataclass(shape):
        absent = dataclasses.MISSING
        plain = [f for f in dataclasses.fields(shape) if f.default is absent and f.default_factory is absent]
        return hints, frozenset(f.name for f in plain)
    return hints, frozenset(name for name, hint in hints.items() if typing.get_origin(hint) is not typing.NotRequired)


def _is(kind: Any, value: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value not in (math.inf, -math.inf)
    return type(value) is kind


def _within(inside: Iterable[tuple[str, Any, Any]] | None, path: str, value: Any, kind: str) -> str:
    if inside is None:
        return _unlike(path, value, kind)
    return _first(misfit(shape, item, where) for where, shape, item in inside)


def _first(wrong: Iterable[str]) -> str:
    return next((w for w in wrong if w), "")


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _unlike(path: str, value: Any, expected: str) -> str:
    return f"{path + ' = ' if path else ''}{reprlib.repr(value)}: expected {expected}"
