"""The page of claims names commands, recipes, studies and files that exist, and marks every claim."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from paper_repro.comparisons.aime import EvalCommand
from paper_repro.reproduction.pairs import SIZES, pair

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "paper_repro" / "README.md").read_text()
NAMES = {group: {e.name for e in entry_points(group=group)} for group in ("tppo.recipes", "tppo.studies")}


def test_commands_exist() -> None:
    modules = re.findall(r"-m (paper_repro[\w.]+)", TEXT)
    assert len(modules) >= 5
    for path in (ROOT / name.replace(".", "/") for name in modules):
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), path
    assert set(re.findall(r"tppo (?:train|show) ([\w.-]+)", TEXT)) <= NAMES["tppo.recipes"]
    studies = re.findall(r"tppo study ([\w-]+)", TEXT)
    assert len(studies) >= 5
    assert set(studies) <= NAMES["tppo.studies"]
    assert set(re.findall(r"--size ([\w.]+)", TEXT)) <= set(SIZES)
    assert {"model", "engine", "dtype", "vllm", "data", "out"} <= set(EvalCommand.__dataclass_fields__)
    for path in re.findall(r"pytest (\S+?)`", TEXT) + [
        f"paper_repro/{n}" for n in re.findall(r"`(\w+\.(?:sh|slurm))`", TEXT)
    ]:
        assert (ROOT / path).exists(), path


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert [link for link in links if not (ROOT / "paper_repro" / link).exists()] == []


def test_every_claim_has_a_status() -> None:
    rows = [line for line in TEXT.split("| claim |")[1].split("\n\n")[0].splitlines() if line.startswith("| ")]
    assert len(rows) >= 8
    marks = ("reproduced", "smaller size", "not run", "not confirmed", "model, not a measurement")
    for row in rows:
        assert row.rstrip(" |").rpartition("| ")[2].startswith(marks), row


@pytest.mark.parametrize("name", list(SIZES))
def test_the_table_of_sizes_has_the_recipes_numbers(name: str) -> None:
    config = pair(name).tppo
    [row] = [line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2] == f"{config.window} / {config.rollout.max_response_tokens}"
    assert cells[3] == str(config.rollout.slots)
