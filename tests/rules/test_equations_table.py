"""The table in reference/equations.md names only what exists, and leaves no equation out."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import reference

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "reference" / "equations.md"
COLUMNS = ["Equation", "Evidence", "Reference", "Library", "Tests"]


def rows() -> list[list[str]]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert cells[0] == COLUMNS
    assert set("".join(cells[1])) <= set("-: ")
    return cells[2:]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def functions_in(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", rows(), ids=lambda row: " ".join(row[0].split()[:4]))
def test_every_name_in_a_row_exists(row: list[str]) -> None:
    assert len(row) == len(COLUMNS)
    assert row[1] in ("confirmed", "port", "derived", "unconfirmed")
    assert names(row[2]), "a row needs its reference function"
    for name in names(row[2]):
        assert callable(getattr(reference, name))
    for name in names(row[3]):
        module, attribute = name.rsplit(".", 1)
        assert callable(getattr(importlib.import_module(module), attribute))
    assert names(row[4]), "a row needs a test"
    for name in names(row[4]):
        file, test = name.split("::")
        assert test in functions_in(ROOT / "tests" / file), name


def test_no_equation_is_missing() -> None:
    cited = " ".join(cell for row in rows() for cell in row)
    helpers = {"Window", "clip", "kept", "row_sum"}
    missing = [name for name in reference.__all__ if name not in helpers and f"`{name}`" not in cited]
    assert not missing
    for path in (ROOT / "tppo" / "maths").glob("*.py"):
        module = f"tppo.maths.{path.stem}"
        public = [
            node.name
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and not node.name.startswith(("_", "check_"))
        ]
        uncited = [name for name in public if f"`{module}.{name}`" not in cited]
        assert set(uncited) <= {"offsets_of", "segments"}, module
