"""Stages of a long piece of work: each has a folder, is done once, and is never done silently with other inputs.

    DIR/NAME/inputs.json   what the stage is made from, written when it begins
    DIR/NAME/done.json     the digest of the inputs and what came out, written when it is done

A stage with a done.json of the same inputs is skipped. With other inputs, begun or done, it is refused, with the fields
that changed (one that is cheap is done again): results that do not belong together never end up in one table. A stage's
digest goes into the inputs of the stages that build on it.

Every rank calls everything here; rank 0 alone reads and writes the files, and what it finds, an error too, is told to
all, so that no rank waits for one that has stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from tppo.errors import ConfigError, DataError
from tppo.files import read_object, sha256_of_json, write_json, writing_to
from tppo.ranks.ranks import Ranks
from tppo.shapes import misfit

T = TypeVar("T")
INPUTS, DONE = "inputs.json", "done.json"


class _Done(TypedDict):
    """done.json."""

    digest: str
    result: dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One piece of the work."""

    name: str
    """Of its folder."""
    inputs: Callable[[], Mapping[str, Any]]
    """Everything that decides what comes out, as JSON; called on rank 0."""
    work: Callable[[Path], Mapping[str, Any]]
    """Called with the folder on every rank, returns what done.json keeps. Where it finds its own half-done work in the
    folder, it goes on from there."""
    cheap: bool = False
    """With other inputs it is done again instead of refused."""


def run_stage(stage: Stage, out: Path, ranks: Ranks) -> bool:
    """Do the stage unless it is done. Returns whether it was done now.

    Raises ConfigError when it was begun or done with other inputs, and whatever its work raises; then it is not done.
    """
    folder = out / stage.name
    if on_main(ranks, lambda: _begin(folder, stage.inputs(), stage.cheap)):
        return False
    result = stage.work(folder)
    on_main(ranks, lambda: _finish(folder, result))
    return True


def digest_of_stage(out: Path, name: str) -> str:
    """The digest of a stage that is done. Raises ConfigError when it is not: another must come first."""
    digest: str = _done(out / name, needed=True)["digest"]
    return digest


def result_of_stage(out: Path, name: str, shape: Any = Any) -> dict[str, Any]:
    """What a stage that is done has kept. Raises ConfigError when it is not done, DataError when it has another shape
    than it must have.
    """
    result = dict(_done(out / name, needed=True)["result"])
    if wrong := misfit(shape, result, "result"):
        raise DataError(f"{out / name / DONE}: {wrong}; remove {out / name} to do the stage again")
    return result


def on_main(ranks: Ranks, action: Callable[[], T]) -> T:
    """Do something on rank 0 and return its result on every rank, or raise on every rank; an OSError is a DataError."""

    def readable() -> T:
        try:
            return action()
        except OSError as error:
            raise DataError(f"{type(error).__name__}: {error}") from error

    return ranks.lead(readable)


def _begin(folder: Path, inputs: Mapping[str, Any], cheap: bool) -> bool:
    """Whether the stage is done already; if it was never begun, it begins now."""
    known = folder / INPUTS
    if cheap and os.path.lexists(known) and _differences(_read(known), json.loads(json.dumps(inputs))):
        (folder / DONE).unlink(missing_ok=True)
        known.unlink()
    if os.path.lexists(known):
        if changed := _differences(_read(known), json.loads(json.dumps(inputs))):
            shown = ", ".join(changed[:8]) + (f" and {len(changed) - 8} more" if len(changed) > 8 else "")
            raise ConfigError(
                "out", str(folder), f"a stage with the same inputs, but these changed: {shown}",
                f"set them back, choose another folder, or remove {folder} and what was made from it",
            )  # fmt: skip
        return (folder / DONE).exists() and bool(_done(folder, needed=False))
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(known, inputs)
    return False


def _finish(folder: Path, result: Mapping[str, Any]) -> None:
    inputs = _read(folder / INPUTS)
    write_json(folder / DONE, {"digest": sha256_of_json(inputs), "result": dict(result)})


def _done(folder: Path, *, needed: bool) -> dict[str, Any]:
    path = folder / DONE
    if needed and not path.exists():
        raise ConfigError("stages", folder.name, "a stage that is done", "run it first; the stages before it too")
    done = _read(path)
    if wrong := misfit(_Done, done):
        raise DataError(f"{path}: {wrong}; remove {folder} to do the stage again")
    if done["digest"] != sha256_of_json(_read(folder / INPUTS)):
        raise DataError(
            f"{path} does not belong to {folder / INPUTS}: were they edited? Remove {folder} to do it again"
        )
    return done


def _read(path: Path) -> dict[str, Any]:
    return read_object(path, f"remove {path.parent} to do the stage again")


def _differences(one: Any, two: Any, path: str = "") -> list[str]:
    """Dotted names of the leaves that differ.

    >>> _differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2, "d": 4})
    ['a.b', 'd']
    """
    if isinstance(one, dict) and isinstance(two, dict):
        keys = sorted(one.keys() | two.keys())
        absent = object()
        inside = [_differences(one.get(k, absent), two.get(k, absent), f"{path}.{k}" if path else k) for k in keys]
        return [name for names in inside for name in names]
    return [] if one == two else [path]
