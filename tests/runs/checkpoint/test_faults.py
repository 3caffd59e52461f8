"""Full disks, folders that cannot be written, phases that hang."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.crashes import TOKEN_MDP, newest_tensors, without_timings
from tests.support.helpers import small_token_mdp
from tests.support.launch import other
from tppo.cli import main
from tppo.errors import ConfigError
from tppo.loop.trainer import Trainer
from tppo.runs.checkpoint import files as checkpoint_files
from tppo.runs.checkpoint.store import FOLDER, listed
from tppo.runs.folder import RunFolder, read_metrics
from tppo.runs.run import run
from tppo.runs.signals import Termination
from tppo.runs.watchdog import Watchdog

CONFIG = small_token_mdp(steps=4, checkpoint__every=1, checkpoint__keep=9)


def failing_flush(monkeypatch: pytest.MonkeyPatch, code: int, steps: range) -> None:
    """The disk refuses the checkpoints of some steps at their last moment."""
    flush = checkpoint_files.flush

    def refuse(path: Path) -> None:
        if path.name.startswith(".tmp-step") and int(path.name.split("-")[2]) in steps:
            raise OSError(code, os.strerror(code))
        flush(path)

    monkeypatch.setattr(checkpoint_files, "flush", refuse)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.ENOSPC, "free disk space, or keep fewer (checkpoint.keep"), (errno.EROFS, "make the folder writable")],
)
def test_a_checkpoint_that_cannot_be_written_is_a_warning(
    code: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing_flush(monkeypatch, code, range(2, 4))
    summary = run(CONFIG, tmp_path / "run", progress=False)
    assert summary["steps"] == 4
    said = capsys.readouterr().err
    assert said.count("warning") == 2
    assert f"step 2 was not written ({os.strerror(code)}): {remedy}" in said
    assert "Training goes on; the newest is of step 1" in said
    assert [step for step, _ in listed(tmp_path / "run" / FOLDER)] == [4, 1, 0]
    assert list((tmp_path / "run" / FOLDER).glob(".*")) == []  # nothing half done is left


def test_a_checkpoint_that_cannot_be_removed_is_a_warning_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(checkpoint_files, "discard", refuse)
    run(CONFIG.with_values(checkpoint__keep=1), tmp_path / "run", progress=False)
    said = capsys.readouterr().err
    assert "older checkpoints were not removed (Permission denied): make the folder writable" in said
    assert "was not written" not in said
    assert len(listed(tmp_path / "run" / FOLDER)) == 5


def test_a_disk_that_refuses_the_first_checkpoint_is_an_error_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_flush(monkeypatch, errno.ENOSPC, range(1))
    monkeypatch.setattr(Trainer, "evaluate", lambda self: pytest.fail("work was done"))
    with pytest.raises(ConfigError, match=r"free disk space.*checkpoint\.every = 0"):
        run(CONFIG, tmp_path / "run", progress=False)


def test_a_line_of_metrics_that_the_disk_refuses_comes_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "run", CONFIG)
    folder.log({"step": 0})

    class Full:
        """A file on a full disk: it takes a few bytes and then no more."""

        def __init__(self, file: Any) -> None:
            self.file, self.full = file, False

        def write(self, data: bytes) -> int:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.full = True
            return self.file.write(data[:5])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    whole, folder._metrics = folder._metrics, Full(folder._metrics)  # type: ignore[assignment]
    folder.log({"step": 1})
    folder.log({"step": 2})
    assert capsys.readouterr().err.count("lines are kept in memory") == 1
    with pytest.raises(OSError, match="No space"):
        folder.flush()  # no checkpoint may say that these lines are there
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == [{"step": 0}]
    folder._metrics = whole
    assert folder.flush() == (tmp_path / "run" / "metrics.jsonl").stat().st_size
    folder.close()
    assert [r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2]


def _namespaces() -> bool:
    tool = shutil.which("unshare")
    mount = [tool or "", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return bool(tool) and subprocess.run(mount, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not _namespaces(), reason="needs a file system of its own, and this machine gives none")
def test_a_real_disk_that_fills_up_and_is_made_larger(tmp_path: Path) -> None:
    """On a tmpfs: trains on without disk, ends with a clear message; with room again, resumes to the same weights."""
    argv = other(TOKEN_MDP, "--quiet", "--checkpoint.keep", "99", "--checkpoint.every", "1")
    call = f"{sys.executable} -m tppo train {' '.join(argv)} --resume auto --out disk/run"
    script = f"""
        mount -t tmpfs -o size=240k none disk
        {call} 2> full.err; echo $? > full.rc
        ls disk/run/checkpoints > full.ls
        mount -o remount,size=20m disk
        {call} 2> room.err; echo $? > room.rc
        mount -o remount,ro disk
        {call} 2> ro.err; echo $? > ro.rc
        cp -r disk/run out
    """
    (tmp_path / "disk").mkdir()
    subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=tmp_path, check=True, capture_output=True)
    full = (tmp_path / "full.err").read_text()
    assert "was not written (No space left on device): free disk space" in full, full
    assert "Traceback" not in full
    assert (tmp_path / "full.rc").read_text() == "1\n"
    assert "step-00000008" not in (tmp_path / "full.ls").read_text()
    assert (tmp_path / "room.rc").read_text() == "0\n", (tmp_path / "room.err").read_text()
    assert (tmp_path / "ro.rc").read_text() == "2\n"
    assert "a folder that can be written" in (tmp_path / "ro.err").read_text()
    plain = tmp_path / "plain"
    assert main(["train", *argv, "--out", str(plain)]) == 0
    one, two = newest_tensors(tmp_path / "out"), newest_tensors(plain)
    trained = {name for name in one.keys() | two.keys() if not name.startswith("random.")}  # that process is another
    assert all(torch.equal(one[name], two[name]) for name in trained)
    rows = [[without_timings(r) for r in read_metrics(p / "metrics.jsonl")] for p in (tmp_path / "out", plain)]
    assert rows[0] == rows[1]


def test_the_watchdog_names_the_phase_and_shows_the_stacks(capfd: pytest.CaptureFixture[str]) -> None:
    dog = Watchdog(0.05)

    def hang_in_the_grader() -> None:
        dog.enter("grade")
        time.sleep(0.4)
        dog.enter(None)

    thread = threading.Thread(target=hang_in_the_grader)
    thread.start()
    dog.enter("generate")
    dog.enter(None)
    thread.join()
    time.sleep(0.2)
    dog.close()
    said = capfd.readouterr().err
    assert "phase 'grade' has taken" in said
    assert "phase_limit_seconds (0.05). The run goes on" in said
    assert "hang_in_the_grader" in said
    assert "generate" not in said
    assert 1 <= said.count("has taken") <= 4  # again when the time has doubled, not at every look


def test_a_run_under_the_watchdog_is_the_same_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(CONFIG.with_values(phase_limit_seconds=1e-3), tmp_path / "watched", progress=False)
    assert "has taken" in capfd.readouterr().err
    run(CONFIG.with_values(phase_limit_seconds=None), tmp_path / "alone", progress=False)
    one, two = newest_tensors(tmp_path / "watched"), newest_tensors(tmp_path / "alone")
    assert all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())
    assert json.loads((tmp_path / "watched" / "summary.json").read_text())["steps"] == 4


def test_signals_are_left_as_they_were() -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with Termination() as termination:
        assert signal.getsignal(signal.SIGTERM) != before
        assert not termination.requested
    assert signal.getsignal(signal.SIGTERM) == before
