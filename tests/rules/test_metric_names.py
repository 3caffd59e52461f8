"""Metrics are declared once: what a step reports, and what figures and tables read, has its name from one place."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.algorithms.test_contract import NAMES, small
from tppo.loop.vocabulary import METRICS, is_declared
from tppo.runs.build import build_trainer

ROOT = Path(__file__).parents[2]
READERS = ["tppo/runs/curves.py", "tppo/runs/run.py", "paper_repro/reproduction/panels.py"]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_step_reports_is_declared(name: str) -> None:
    trainer = build_trainer(small(name))
    for _ in range(3):
        assert [metric for metric in trainer.step().metrics if not is_declared(metric)] == []
    assert [metric for metric in trainer.evaluate().summary() if not is_declared(metric)] == []


@pytest.mark.parametrize("path", READERS)
def test_what_is_read_is_declared(path: str) -> None:
    """Series are read by ``_series``, ``_line``, ``metrics[...]``, ``r.get(...)`` or ``r[...]`` of a row."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("_series", "_line", "series"):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("row.get", "r.get", "metrics.get"):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") in ("metrics", "row", "last"):
            found |= {node.slice.value} if isinstance(node.slice, ast.Constant) else set()
    names = {name for name in found if isinstance(name, str) and re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", name)}
    assert names, path
    assert sorted(name for name in names if not is_declared(name)) == []


def test_every_name_says_something() -> None:
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) and len(text) > 7 for name, text in METRICS.items())
