"""The files of a finished run, each with every node removed or replaced: read, or refused in one line, never torn."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from paper_repro.reproduction.records import read_run, table_of
from tests.support.helpers import small_token_mdp
from tests.support.mutants import mutants
from tppo.cli import main
from tppo.config import stored
from tppo.config.stored import read_config
from tppo.errors import DataError, TPPOError
from tppo.runs.curves import draw_curves
from tppo.runs.folder import read_metrics, read_summary
from tppo.runs.run import run

CONFIG = small_token_mdp(steps=2, checkpoint__every=1, evaluation__every=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mutated") / "run"
    run(CONFIG, out, progress=False)
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def ends(path: Path, texts: list[str], read: Callable[[], object]) -> Counter[str]:
    """How reading ended, for each content of the file."""
    found = Counter[str]()
    good = path.read_bytes()
    for text in texts:
        path.write_text(text)
        try:
            read()
            found["read"] += 1
        except TPPOError as error:
            found["refused" if "\n" not in str(error) else "refused at length"] += 1
    path.write_bytes(good)
    return found


def test_config(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for group in ("recipe", "algorithm"):  # found once: it is slow, and not the matter
        entries = getattr(stored, f"{group}_entry_points")()
        monkeypatch.setattr(stored, f"{group}_entry_points", lambda entries=entries: entries)
    tree = json.loads((copy / "config.json").read_text())
    tree["environment"] = {}
    found = ends(copy / "config.json", [text for _, text in mutants(tree)][::2], lambda: read_config(copy))
    assert found["refused"] > 200
    assert found["refused at length"] == 0
    found = ends(copy / "config.json", [text for _, text in mutants(tree)][::31], lambda: table_of([read_run(copy)]))
    assert found["refused"] >= 1
    assert found["read"] > 10


@pytest.mark.parametrize("line", [0, 1])
def test_metrics(line: int, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a line that is read the figure can be drawn, and the reproduction's table made."""
    monkeypatch.setattr("tppo.runs.curves.save_figure", lambda figure, path: None)  # slow, and not the matter
    path = copy / "metrics.jsonl"
    lines = path.read_text().splitlines()
    texts = ["\n".join([*lines[:line], text, *lines[line + 1 :]]) for _, text in mutants(json.loads(lines[line]))]
    found = ends(path, texts, lambda: read_metrics(path))
    assert found["refused"] > 200
    some = texts[line :: len(texts) // 7]
    summary = read_summary(copy)
    found = ends(path, some, lambda: draw_curves(read_metrics(path), summary, tmp_path / "curves.png"))
    assert found["read"] >= 1
    found = ends(path, texts[line::12], lambda: table_of([read_run(copy)]))
    assert found["read"] > 5


def test_summary(copy: Path) -> None:
    texts = [text for _, text in mutants(json.loads((copy / "summary.json").read_text()))]
    found = ends(copy / "summary.json", texts, lambda: table_of([read_run(copy)]))
    assert found["refused"] > 30
    assert found["read"] > 30


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "summary.json"])
def test_what_is_no_file(name: str, copy: Path) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(TPPOError):
        read_run(copy)


def test_damaged_metrics_are_refused_before_the_run_goes_on(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step": 0', b'"step":-1'))
    monkeypatch.setattr("tppo.loop.trainer.Trainer.step", lambda self: pytest.fail("work was done"))
    with pytest.raises(DataError, match=r"metrics.jsonl, line 1: step = -1: expected a number in \[0, inf\)"):
        run(CONFIG.with_values(steps=3), copy, progress=False, resume="auto", allow_change=["steps"])


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_policy_that_is_none(content: bytes | None, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "policy" / "policy.safetensors"
    path.unlink() if content is None else path.write_bytes(content)
    assert main(["eval", str(copy)]) == 2
    assert "does not hold the weights of this run's policy" in capsys.readouterr().err
