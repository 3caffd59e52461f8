"""study.json and what stands beside it, damaged in every way: a page, or one line of refusal."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support import toy_studies
from tests.support.mutants import mutants
from tppo.cli import main
from tppo.errors import ConfigError
from tppo.studies.folder import check_study_folder
from tppo.studies.page import write_page
from tppo.studies.study import resolve, run_study


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    run_study(toy_studies.TOY, resolve(toy_studies.TOY), tmp_path / "all" / "toy")
    return tmp_path / "all" / "toy"


def test_every_mutant_of_the_record(finished: Path, tmp_path: Path) -> None:
    path, pages, refused = finished / "study.json", 0, 0
    for _, text in mutants(json.loads(path.read_text()), shallow=("environment",)):
        path.write_text(text)
        try:
            write_page([finished], tmp_path / "page", force=True)
            pages += 1
        except ConfigError as error:
            refused += "\n" not in str(error)
        try:
            check_study_folder(finished, "toy", force=True)
        except ConfigError as error:
            refused += "\n" not in str(error)
    assert pages > 20
    assert refused > 150


@pytest.mark.parametrize("name", ["study.json", "data.csv", "figure.png"])
@pytest.mark.parametrize("content", ["pipe", "folder", "dangling", "gone", b"", b"\xff\xfe\0", b"[" * 100_000])
def test_the_page_of_what_is_no_study(
    name: str, content: str | bytes, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished / name
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content != "gone":
        {"pipe": os.mkfifo, "folder": Path.mkdir, "dangling": lambda p: p.symlink_to("x")}[content](path)
    status = main(["study", "all", "--reuse", str(finished.parent)])
    said = capsys.readouterr().err
    if (name, content) == ("data.csv", b"[" * 100_000):
        assert status == 1  # a table of one odd column; other studies are missing
        return
    assert status == 2
    assert len(said.splitlines()) == 1
