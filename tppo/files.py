"""Files: written whole or not at all, read without waiting for anyone, hashed; and folders tried before any work."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tppo.errors import ConfigError, DataError

LONGEST_NAME = 160
"""No file that this library writes has a longer name below the folder that it was given [characters]."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: beside its place first, then renamed. Text is encoded as UTF-8, as it is.

    Raises OSError; then what was there before is still there, and nothing else.
    """
    partial = partial_path(path)
    partial.unlink(missing_ok=True)  # whatever it is: a pipe would be waited for, a link would be written through
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


def open_file(path: Path) -> io.BufferedReader:
    """A regular file, open to be read. Raises OSError for anything else: to open a pipe would wait for its writer."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a character that no name can have
        raise OSError(errno.EINVAL, str(error), ascii(str(path))) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return open(handle, "rb")


def read_file(path: Path) -> bytes:
    """The content of a regular file. Raises OSError as ``open_file``."""
    with open_file(path) as file:
        return file.read()


def read_json(path: Path) -> Any:
    """What a JSON file says, in UTF-8. Raises DataError in one line for a file that cannot be read as such."""
    try:
        return parse_json(read_file(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected JSON, found {type(error).__name__}: {error}") from None


def parse_json(text: bytes) -> Any:
    """What JSON in UTF-8 says. Raises ValueError for what is none, and for what is nested too deeply to be read."""
    try:
        return json.loads(text.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_object(path: Path, remedy: str = "") -> dict[str, Any]:
    """The JSON object in a file. Raises DataError, ending with the remedy, for a file that cannot be read as one."""
    also = f"; {remedy}" if remedy else ""
    try:
        found = read_json(path)
    except DataError as error:
        raise DataError(f"{error}{also}") from None
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
    """SHA-256 of a regular file, in hexadecimal. Raises OSError as ``open_file``."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a value as JSON, whatever the order of its keys. Raises ValueError for NaN and infinity.

    >>> sha256_of_json({"a": 1, "b": [2]}) == sha256_of_json({"b": [2], "a": 1}) != sha256_of_json({"a": 1, "b": [3]})
    True
    """
    return sha256_of(json.dumps(value, sort_keys=True, allow_nan=False).encode())


@contextlib.contextmanager
def utf8_name(folder: Path) -> Iterator[Path]:
    """The folder under a name in UTF-8, the only ones that safetensors opens: its own, or a link to it while inside."""
    if os.fsencode(folder).decode("utf-8", "ignore") == str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as home:
        link = Path(home) / "folder"
        link.symlink_to(folder.absolute())
        yield link


def is_free(folder: Path, field: str = "out") -> bool:
    """Whether there is nothing, or a folder with nothing in it. Raises ConfigError on ``field`` for what the system
    cannot tell: a name that is too long or no name, a loop of links, a folder that may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except NotADirectoryError:
        return False
    except FileNotFoundError:
        return not os.path.lexists(folder)  # a link to nothing is something
    except (OSError, ValueError) as error:
        raise _unusable(folder, field, error) from None


def check_writable(folder: Path, field: str = "out") -> None:
    """Raise ConfigError on ``field`` unless what a run writes can be written to the folder and listed there.

    It is tried, by a file with a name as long as any of ours, and undone. So whatever a system has against it is found
    before any work: permissions, a full or read-only disk, a name that is too long or no name, a folder that is gone.
    """
    made: list[Path] = []
    probe = folder / f".tppo-{os.getpid()}".ljust(LONGEST_NAME, "-")
    try:
        for path in reversed([folder, *folder.parents]):
            if not path.exists():
                with contextlib.suppress(FileExistsError):  # made meanwhile by another process; or a link to nothing
                    path.mkdir()
                    made.append(path)
        probe.write_bytes(b"tppo")
        os.scandir(folder).close()
    except (OSError, ValueError) as error:
        raise _unusable(folder, field, error) from None
    finally:
        with contextlib.suppress(OSError, ValueError):
            probe.unlink()
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def writing_to(folder: Path, field: str = "out") -> Iterator[None]:
    """Inside, an OSError becomes a ConfigError on ``field``: the folder cannot be written. So does the error that
    safetensors makes of one.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _unusable(folder, field, error) from None


def _unusable(folder: Path, field: str, error: Exception) -> ConfigError:
    reason = str(error)
    if isinstance(error, OSError) and error.strerror:
        above = error.filename is not None and Path(error.filename) in folder.parents
        reason = f"{error.strerror}: {error.filename!r}" if above else error.strerror
    return ConfigError(field, str(folder), "a folder that can be written", reason)
