"""Standard streams that are closed, full, or that nobody reads: no work is lost, and the exit status is true."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tppo.cli import main
from tppo.environment import Stream, speaking, warn

FAST = [
    "--steps", "1", "--rollout.slots", "16", "--rollout.max-response-tokens", "24", "--evaluation.problems", "4",
    "--algorithm.window", "8", "--algorithm.warmup-steps", "1", "--policy.mini-batch", "8",
    "--algorithm.critic.mini-batch", "8", "--checkpoint.every", "0",
]  # fmt: skip


def full(tmp_path: Path) -> Any:
    return open("/dev/full", "w")


def unread(tmp_path: Path) -> Any:
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


def closed(tmp_path: Path) -> Any:
    file = open(tmp_path / "closed", "w")  # noqa: SIM115
    file.close()
    return file


def absent(tmp_path: Path) -> None:
    return None


def ascii_only(tmp_path: Path) -> Any:
    return open(tmp_path / "ascii", "w", encoding="ascii")


def close(stream: Any) -> None:
    if stream is not None:
        stream.close()  # raises where something is left to be written


@pytest.mark.parametrize(
    ("name", "make"),
    [("stdout", full), ("stdout", ascii_only), ("stderr", unread)],
)
def test_a_run_outlives_its_streams(
    name: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its progress bar and a warning; the folder's name is no text."""
    out, stream = tmp_path / "r\udcffé", make(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(sys, name, stream)
        patch.setattr("tppo.runs.run.find_beginnings", lambda config: warn("odd \udcff") or {})
        status = main(["train", "token-mdp", "--out", str(out), *FAST])
    close(stream)
    assert {p.name for p in out.iterdir()} == {"config.json", "metrics.jsonl", "summary.json", "curves.png", "policy"}
    bad = name == "stdout" and make in (full, closed)
    assert status == (1 if bad else 0)
    assert ("tppo: standard output failed: " in capsys.readouterr().err) == bad


@pytest.mark.parametrize("make", [full, unread, closed, absent])
@pytest.mark.parametrize("argv", [["recipes"], ["algorithms"], ["show", "token-mdp"], ["study", "list"], ["--help"]])
def test_what_is_only_printed(argv: list[str], make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make(tmp_path)
    monkeypatch.setattr(sys, "stdout", stream)
    try:
        status = main(argv)
    except SystemExit as stop:
        status = stop.code  # type: ignore[assignment]
    assert status == (1 if make in (full, closed) else 0)
    close(stream)


@pytest.mark.parametrize("make", [full, unread, closed, absent])
def test_a_refusal_keeps_its_status(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make(tmp_path)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    assert main(["show", "token-mdp", "--seed", "-1"]) == 2
    close(stream)


def test_the_streams_are_given_back_after_an_error() -> None:
    before = sys.stdout, sys.stderr

    @speaking
    def broken() -> int:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        broken()
    assert (sys.stdout, sys.stderr) == before


def test_what_the_encoding_lacks_is_escaped() -> None:
    raw = io.BytesIO()
    stream = Stream(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    print("é \udcff", file=stream)
    assert raw.getvalue() == b"\\xe9 \\udcff\n"
    assert stream.failure is None


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """Into which some library may print."""
    code = "import os, sys; from tppo.environment import speaking\n"
    code += "sys.exit(speaking(lambda: os.open(sys.argv[1], os.O_RDONLY))())"
    command = ["sh", "-c", 'exec "$0" -c "$1" "$2" <&- >&- 2>&-', sys.executable, code, str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run(command, env=env).returncode >= 3
