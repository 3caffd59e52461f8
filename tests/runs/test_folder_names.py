"""Folders that cannot be used are refused before any work; every name that a system takes works to the last line."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import toy_studies
from tests.support.helpers import small_token_mdp
from tppo import files
from tppo.cli import main
from tppo.errors import ConfigError
from tppo.files import check_writable, is_free, open_file, write_whole
from tppo.runs.folder import check_run_folder, free_folder
from tppo.runs.replay import DumpFolder
from tppo.runs.run import run
from tppo.studies.study import resolve, run_study

CONFIG = small_token_mdp(steps=1, checkpoint__every=1, evaluation__problems=4)
NO_FOLDERS = {
    "long": "a" * 256, "long path": "/".join(["d" * 200] * 25), "nearly too long": "/".join(["d" * 200] * 20),
    "file": "file", "below a file": "file/x", "dangling": "dangling", "below nothing": "dangling/x", "loop": "loop",
    "below a loop": "loop/x", "pipe": "pipe", "full": "full", "nul": "a\0b", "surrogate": "a\ud800b",
    "proc": "/proc/self/x",
}  # fmt: skip
ODD_NAMES = [
    "b" * 255, "odd\udcff\udc80", "new\nline", "t\t\x1b[31m", "é😀", " ", "%s{x}$\\frac{$", "*[a]?", "./-x", "n/e/w",
    "link",
]  # fmt: skip
PARTS = ["config.json", "metrics.jsonl", "summary.json", "curves.png", "policy", "checkpoints"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one thing of every kind."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("dangling").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    Path("full").mkdir()
    Path("full/x").write_text("")
    Path("target").mkdir()
    Path("link").symlink_to("target")
    return tmp_path


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("kind", NO_FOLDERS)
def test_what_cannot_be_a_folder_is_refused_before_any_work(
    kind: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = NO_FOLDERS[kind] if kind != "nearly too long" else NO_FOLDERS[kind][: 4090 - len(os.fsencode(here))]
    monkeypatch.setattr("tppo.runs.run.build_trainer", lambda *a, **k: pytest.fail("a model was built"))
    before = tree(here)
    toy_studies.install(monkeypatch, toy="TOY")
    tries: dict[str, Callable[[], object]] = {
        "out": lambda: run(CONFIG, Path(name), progress=False),
        "dump-rollouts": lambda: run(CONFIG, here / "new", progress=False, dump=Path(name)),
        "out of a study": lambda: run_study(toy_studies.BROKEN, resolve(toy_studies.BROKEN), Path(name)),
        "out of a resumed run": lambda: run(CONFIG, Path(name), progress=False, resume="auto"),
    }
    for field, attempt in tries.items():
        if (kind, field) == ("full", "out of a resumed run"):
            continue
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert caught.value.field == field.split()[0]
        assert "\n" not in str(caught.value)
    assert tree(here) == before


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_that_a_system_takes_works_to_the_last_line(name: str, here: Path) -> None:
    """As a run finds before its work."""
    out = Path(name)
    check_run_folder(out, CONFIG)
    assert not out.exists() or name == "link"
    write_whole((out if name == "link" else here) / "a", "x")
    (out / "a" if name == "link" else here / "a").unlink()
    assert is_free(out)


def test_a_whole_run_under_an_odd_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Dumped, drawn, said, resumed, evaluated, exported and replayed, by commands: stdout cannot encode the name."""
    name = "odd\udcff\n$" + "b" * 200
    fast = [
        "--steps", "1", "--rollout.slots", "16", "--rollout.max-response-tokens", "24", "--evaluation.problems", "4",
        "--algorithm.window", "8", "--algorithm.warmup-steps", "1", "--policy.mini-batch", "8", "--quiet",
        "--algorithm.critic.mini-batch", "8", "--checkpoint.every", "1", "--out", name, "--dump-rollouts", "d",
    ]  # fmt: skip
    assert main(["train", "token-mdp", *fast]) == 0
    assert "written to" in capsys.readouterr().out
    assert (Path(name) / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert main(["train", "token-mdp", *fast, "--resume", "auto"]) == 0
    assert main(["eval", name]) == 0
    assert main(["export", name, "e" + name]) == 0
    assert main(["replay", "d", "--checkpoint", f"{name}/checkpoints/step-00000000"]) == 0


@pytest.mark.parametrize("call", ["mkdir", "scandir", "open"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
def test_what_the_system_refuses_is_an_error_of_the_field(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permission bits do not bind the owner of the machine, who runs these tests."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    if call == "scandir":
        monkeypatch.setattr(files.os, "scandir", refuse)
    else:
        monkeypatch.setattr(Path, "mkdir" if call == "mkdir" else "write_bytes", refuse)
    with pytest.raises(ConfigError, match=rf"out = .*new': expected a folder that can be written; {os.strerror(code)}"):
        check_run_folder(tmp_path / "new", CONFIG)
    with pytest.raises(ConfigError, match=r"dump-rollouts = .*: expected a folder that can be written"):
        DumpFolder(tmp_path / "new", resume=False)
    monkeypatch.undo()
    assert tree(tmp_path) == []


def test_a_working_directory_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="out = 'new': expected a folder that can be written"):
        check_writable(Path("new"))
    check_writable(tmp_path / "new")
    for argv in (["train", "token-mdp"], ["show", "token-mdp"], ["export", "a", "b"], ["study", "list"]):
        assert main(argv) == 2
        assert "working directory = " in capsys.readouterr().err


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("kind", ["folder", "file", "pipe", "dangling"])
def test_a_run_to_go_on_with_has_parts_of_the_right_kind(name: str, kind: str, tmp_path: Path) -> None:
    part = tmp_path / name
    make = {"folder": part.mkdir, "file": part.touch, "pipe": lambda: os.mkfifo(part)}
    make.get(kind, lambda: part.symlink_to("nowhere"))()
    right = kind == ("folder" if name in ("policy", "checkpoints") else "file")
    if right:
        check_run_folder(tmp_path, CONFIG, resume=True)
        return
    with pytest.raises(ConfigError, match=rf"expected a run whose {name} is a (file|folder); move it away"):
        check_run_folder(tmp_path, CONFIG, resume=True)


def test_the_default_folder_passes_by_whatever_is_there(here: Path) -> None:
    assert free_folder("dangling", here) == here / "dangling-2"
    assert free_folder("loop", here) == here / "loop-2"


def test_only_regular_files_are_opened(here: Path) -> None:
    for name in ("pipe", "full", "dangling", "loop", "/dev/zero", "a\0b", "\ud800", "x" * 300):
        with pytest.raises(OSError, match=r".") as caught:
            open_file(Path(name))
        assert caught.value.strerror


def test_a_file_is_written_in_place_of_whatever_its_scratch_was(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".a.partial")
    write_whole(tmp_path / "a", "x")
    (tmp_path / ".b.partial").symlink_to("a")
    write_whole(tmp_path / "b", "y")
    assert (tmp_path / "a").read_text() == "x"
