"""Shapes: every kind of type, and every kind of value that does not fit it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest

from tppo.ranges import Range
from tppo.shapes import misfit


class Inner(TypedDict):
    count: Annotated[int, Range(0, 9)]
    rate: NotRequired[Annotated[float, Range(0, 1)] | None]


@dataclass
class Made:
    name: str
    size: int = 0


class Outer(TypedDict):
    inner: Inner
    made: Any
    kind: Literal["a", "b"]
    table: dict[str, list[float]]
    flag: bool


SOUND = {"inner": {"count": 1, "rate": None}, "made": 0, "kind": "a", "table": {"x": [1, 0.5]}, "flag": True}


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, ""),
        ({"more": 1}, ""),
        ({"inner": {"count": 0}}, ""),
        ({"inner": {"count": -1}}, "inner.count = -1: expected a number in [0, 9]"),
        ({"inner": {"count": 10**30}}, "inner.count = 1000000000000000000000000000000: expected a number in [0, 9]"),
        ({"inner": {"count": True}}, "inner.count = True: expected a whole number"),
        ({"inner": {"count": 1.0}}, "inner.count = 1.0: expected a whole number"),
        ({"inner": {"count": 1, "rate": 2}}, "inner.rate = 2: expected a number in [0, 1]"),
        ({"inner": {"count": 1, "rate": float("nan")}}, "inner.rate = nan: expected a number in [0, 1]"),
        ({"inner": {}}, "inner.count is missing"),
        ({"inner": []}, "inner = []: expected an object"),
        ({"kind": "c"}, "kind = 'c': expected one of 'a', 'b'"),
        ({"kind": ["a"]}, "kind = ['a']: expected one of 'a', 'b'"),
        ({"table": {"x": 1}}, "table.x = 1: expected a list"),
        ({"table": {"x": [1, "y"]}}, "table.x[1] = 'y': expected a number"),
        ({"table": {"x": [float("inf")]}}, "table.x[0] = inf: expected a number"),
        ({"table": {"x": [float("nan")]}}, ""),
        ({"table": [1]}, "table = [1]: expected an object"),
        ({"flag": 1}, "flag = 1: expected true or false"),
    ],
)
def test_the_first_misfit_is_named(change: dict[str, Any], wrong: str) -> None:
    assert misfit(Outer, SOUND | change) == wrong


def test_a_dataclass_has_its_fields_and_no_others() -> None:
    assert misfit(Made, {"name": "x"}) == ""
    assert misfit(Made, {"name": "x", "size": "1"}, "made") == "made.size = '1': expected a whole number"
    assert misfit(Made, {"size": 1}) == "name is missing"
    assert misfit(Made, {"name": "x", "wheels": 4}) == "wheels is unknown"


def test_json_that_python_reads_as_infinity_is_no_number() -> None:
    assert misfit(list[float], json.loads("[1e308, 1e400]")) == "[1] = inf: expected a number"


def test_a_misfit_is_one_short_line() -> None:
    wrong = misfit(list[int], ["\n" * 10**6])
    assert len(wrong) < 100
    assert "\n" not in wrong
