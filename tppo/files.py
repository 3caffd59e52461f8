"""Files: written whole or not at all, hashed, and checked for permission to write before any work is done."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tppo.errors import ConfigError, DataError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: beside its place first, then renamed. Text is encoded as UTF-8, as it is.

    Raises OSError; then what was there before is still there, and nothing else.
    """
    partial = partial_path(path)
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def partial_path(path: Path) -> Path:
    """Where `write_whole` writes before it renames; a process that is killed may leave this file behind."""
    return path.with_name(f".{path.name}.partial")


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all, indented by two; NaN and infinity become null. Raises OSError."""
    write_whole(path, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def read_object(path: Path, remedy: str = "") -> dict[str, Any]:
    """The JSON object in a file. Raises DataError, ending with the remedy, for a file that cannot be read as one."""
    also = f"; {remedy}" if remedy else ""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected JSON, found {type(error).__name__}: {error}{also}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(found).__name__}{also}")
    return found


def plain(value: Any) -> Any:
    """A value that JSON can say: dictionaries with text as keys, lists, and null for NaN and infinity.

    >>> plain({1: (0.5, float("nan")), "name": "x"})
    {'1': [0.5, None], 'name': 'x'}
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(data: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a value as JSON, whatever the order of its keys. Raises ValueError for NaN and infinity.

    >>> sha256_of_json({"a": 1, "b": [2]}) == sha256_of_json({"b": [2], "a": 1}) != sha256_of_json({"a": 1, "b": [3]})
    True
    """
    return sha256_of(json.dumps(value, sort_keys=True, allow_nan=False).encode())


def is_free(folder: Path) -> bool:
    """Whether there is nothing, or a folder with nothing in it."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def check_writable(folder: Path, field: str = "out") -> None:
    """Raise ConfigError on ``field`` unless the folder, or the nearest one above that exists, can be written."""
    home = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not (home.is_dir() and os.access(home, os.W_OK)):
        raise ConfigError(field, str(folder), "a folder that can be written", f"{home} cannot")


@contextlib.contextmanager
def writing_to(folder: Path, field: str = "out") -> Iterator[None]:
    """Inside, an OSError becomes a ConfigError on ``field``: the folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(field, str(folder), "a folder that can be written", str(error)) from None
