"""Files: whole or not at all, hashed, and refused with a message before any work."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from tppo import files
from tppo.errors import ConfigError
from tppo.files import (
    check_writable,
    is_free,
    plain,
    sha256_of,
    sha256_of_file,
    sha256_of_json,
    write_json,
    write_whole,
)


def test_what_is_written_is_there_to_the_byte(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.txt", "é\r\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == "é\r\nb\n".encode()
    write_whole(tmp_path / "a.txt", b"\x00\xff")
    assert (tmp_path / "a.txt").read_bytes() == b"\x00\xff"
    write_json(tmp_path / "a.json", {"loss": float("nan"), "rates": (0.5, np.float64("inf")), 3: "x"})
    assert (
        tmp_path / "a.json"
    ).read_text() == '{\n  "loss": null,\n  "rates": [\n    0.5,\n    null\n  ],\n  "3": "x"\n}\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.txt"]


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_failed_write_leaves_what_was_there_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "a", "before")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[:2])
        refuse()

    if step == "write":
        monkeypatch.setattr(Path, "write_bytes", half)
    else:
        monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a", "after")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "before"


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256_of_file(tmp_path / "a") == sha256_of(b"abc" * 100_000)
    assert sha256_of(b"abc") == hashlib.sha256(b"abc").hexdigest()
    assert sha256_of_json({"b": 1, "a": [None]}) == sha256_of(b'{"a": [null], "b": 1}')
    with pytest.raises(ValueError, match="not JSON compliant"):
        sha256_of_json([float("nan")])


def test_plain_keeps_what_json_can_say() -> None:
    assert plain({"a": [1, True, None, "text", -0.5]}) == {"a": [1, True, None, "text", -0.5]}


def test_a_folder_that_cannot_be_written_is_refused_by_its_field(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "new" / "deeper")
    with pytest.raises(
        ConfigError, match=r"dump = .*file/below': expected a folder that can be written; Not a directory"
    ):
        check_writable(tmp_path / "file" / "below", "dump")
    with (
        pytest.raises(ConfigError, match=r"out = .*: expected a folder that can be written"),
        files.writing_to(tmp_path),
    ):
        (tmp_path / "file" / "below").mkdir()
    with pytest.raises(KeyError), files.writing_to(tmp_path):
        raise KeyError("others pass")


def test_free_is_absent_or_empty(tmp_path: Path) -> None:
    assert is_free(tmp_path / "absent")
    assert is_free(tmp_path)
    (tmp_path / "a").write_text("")
    assert not is_free(tmp_path)
    assert not is_free(tmp_path / "a")
