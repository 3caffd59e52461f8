"""The folder of an evaluation: eval.json says what it is, generations.jsonl grows line by line and survives a kill."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tppo.data.chat import check_moment
from tppo.errors import ConfigError, DataError
from tppo.files import check_writable, is_free, parse_json, read_file, read_object, write_json, write_whole, writing_to
from tppo.shapes import misfit

MANIFEST, GENERATIONS = "eval.json", "generations.jsonl"
_FREE = {"model.path", "model.name", "data.path", "environment", "started"}
"""Fields of the manifest that may change: where the same content lies, on which machine, and when it began: what of
that reaches the prompts is in their hash.
"""


@dataclass(frozen=True)
class Generation:
    """One graded response: a line of generations.jsonl."""

    problem: str
    """Id of its problem."""
    sample: int
    """Which of the responses to that problem, from 0."""
    uid: int
    """Together with the seed, what its random numbers follow from."""
    seed: int
    tokens: int
    """Sampled tokens, a stop token included."""
    finish: Literal["stop", "length"]
    """'stop' is a stop token, 'length' is the cap."""
    answer: str | None
    """As found in the text, None when there is none."""
    correct: bool
    text: str


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], path: str = "") -> list[str]:
    """Leaves of two manifests that differ, as 'field was A, now B'.

    >>> differences({"settings": {"k": 2}, "model": {"path": "a"}}, {"settings": {"k": 4}, "model": {"path": "b"}})
    ['settings.k was 2, now 4']
    """
    found = []
    for name in dict.fromkeys([*stored, *wanted]):
        here = f"{path}.{name}" if path else str(name)
        old, new = stored.get(name), wanted.get(name)
        if here in _FREE:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, here)
        elif old != new:
            found.append(f"{here} was {old!r}, now {new!r}")
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises ConfigError when the folder holds no evaluation."""
    try:
        return read_object(folder / MANIFEST)
    except DataError as error:
        raise ConfigError("folder", str(folder), f"an evaluation with a readable {MANIFEST}", str(error)) from None


def moment_of(folder: Path) -> str:
    """When the evaluation in a folder began, in ISO 8601; empty where there is none, or none that says so."""
    if not (folder / MANIFEST).is_file():
        return ""
    found = read_manifest(folder).get("started", "")
    check_moment(str(folder / MANIFEST), found)
    return str(found)


def check_evaluation_folder(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the folder is new, empty, or holds an evaluation with the same manifest."""
    if not is_free(folder):
        if not folder.is_dir():
            raise ConfigError("out", str(folder), "a folder")
        if not (folder / MANIFEST).exists():
            raise ConfigError("out", str(folder), "an empty folder or one with an evaluation", "choose another")
        if changed := differences(read_manifest(folder), json.loads(json.dumps(manifest))):
            raise ConfigError(
                "out",
                str(folder),
                "the settings of the evaluation it holds",
                f"choose another folder, or undo: {'; '.join(changed)}",
            )
    check_writable(folder)


def read_generations(folder: Path) -> tuple[list[Generation], int]:
    """(whole lines, bytes of a torn last line). Raises DataError with the line of anything else that is wrong."""
    path = folder / GENERATIONS
    try:
        data = read_file(path) if os.path.lexists(path) else b""
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    *lines, tail = data.split(b"\n")
    torn = len(tail)
    found: list[Generation] = []
    seen: set[tuple[str, int]] = set()
    for number, line in enumerate(lines, 1):
        try:
            generation = _parse(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}; expected a generation; mend or move the file") from None
        if (generation.problem, generation.sample) in seen:
            raise DataError(f"{path}, line {number}: {generation.problem!r}, sample {generation.sample} is there twice")
        seen.add((generation.problem, generation.sample))
        found.append(generation)
    return found, torn


def _parse(line: bytes) -> Generation:
    found = parse_json(line)
    if wrong := misfit(Generation, found):
        raise ValueError(wrong)
    return Generation(**found)


class EvalFolder:
    """An evaluation's folder, open for one process at a time.

    Raises ConfigError as ``check_evaluation_folder``, and when another process writes to it; DataError for a file that
    is damaged otherwise.

    done: generations that were there.
    dropped: bytes of a torn last line, cut off now.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        import fcntl

        check_evaluation_folder(path, manifest)
        self.path = path
        read_generations(path)  # before it is opened: what is no file must not be
        with writing_to(path):
            path.mkdir(parents=True, exist_ok=True)
            if not (path / MANIFEST).exists():
                self.write_json(MANIFEST, {**manifest, "environment": environment})
            self._file = (path / GENERATIONS).open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
            self.done, self.dropped = read_generations(path)
            if self.dropped:
                self._file.truncate(self._file.seek(0, os.SEEK_END) - self.dropped)
        except OSError as error:
            self._file.close()
            raise ConfigError("out", str(path), "a folder that no other evaluation writes to", str(error)) from None
        except BaseException:
            self._file.close()
            raise

    def append(self, generations: Iterable[Generation]) -> None:
        """Append lines; they are on disk when this returns."""
        lines = [json.dumps(dataclasses.asdict(g)) + "\n" for g in generations]
        self._file.write("".join(lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file whole or not at all; NaN becomes null."""
        write_json(self.path / name, content)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file whole or not at all."""
        write_whole(self.path / name, text)

    def close(self) -> None:
        """Close and unlock."""
        self._file.close()

    def __enter__(self) -> EvalFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
