"""A checkpoint on disk: whole or absent, every byte under a hash, no pickle anywhere.

    step-00000040/
      tensors/*.safetensors   torch.distributed.checkpoint in its safetensors format: each rank writes its shards
      window.safetensors      responses in flight
      state.json              counters, running totals, configuration, package versions
      manifest.json           format, step, size and sha256 of every file above
      manifest.sha256         of manifest.json

It is written beside its place, flushed to the disk, then renamed: there is no moment at which half a checkpoint has a
checkpoint's name.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from safetensors import SafetensorError

from tppo.errors import CheckpointError, FormatError
from tppo.files import flush, parse_json, read_file, sha256_of, sha256_of_file
from tppo.ranges import Range
from tppo.ranks.ranks import Ranks
from tppo.ranks.shard import own_files, read_tensors, stored_tensors, write_tensors
from tppo.shapes import misfit

FORMAT = 2  # 1 held a policy and a critic by these words; 2 holds networks by name
"""Goes up when an older version of this library could misread what a newer one writes."""
MANIFEST, MANIFEST_HASH, STATE, WINDOW, TENSORS = (
    "manifest.json", "manifest.sha256", "state.json", "window.safetensors", "tensors",
)  # fmt: skip


class Entry(TypedDict):
    """Of a file, in the manifest."""

    bytes: Annotated[int, Range(0)]
    sha256: str


class Manifest(TypedDict):
    """manifest.json."""

    format: int
    step: Annotated[int, Range(0)]
    solve_rate: Annotated[float, Range(0, 1)] | None
    files: dict[str, Entry]


@dataclass(frozen=True)
class Contents:
    """A checkpoint in memory."""

    step: int
    """Steps done."""
    tensors: Mapping[str, torch.Tensor]
    """Copies on the CPU, by name."""
    window: bytes
    """Content of the responses' file."""
    state: dict[str, Any]
    """Content of state.json."""
    solve_rate: float | None = None
    """Held out, measured at this very step; None where none was."""


def folder_name(step: int) -> str:
    """Sorts by step."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a folder with a checkpoint's name; None for any other name.

    >>> [step_of(name) for name in (folder_name(12), "step-12", "step-0000001²", "step-00000012.bak", "step--0000012")]
    [12, None, None, None, None]
    """
    digits = name.removeprefix("step-")
    return int(digits) if digits.isascii() and digits.isdigit() and folder_name(int(digits)) == name else None


def write(scratch: Path, contents: Contents, ranks: Ranks) -> None:
    """Fill ``scratch``, made here, and flush it to the disk. Each rank writes and hashes its own shards; window, state
    and manifest are rank 0's. Raises OSError, on all ranks.
    """
    ranks.lead(lambda: _make(scratch))
    write_tensors(scratch / TENSORS, contents.tensors, ranks)
    files: dict[str, dict[str, Any]] = {}
    failure = None
    try:
        mine = [name for name in _files(scratch) if name.startswith(f"{TENSORS}/{own_files(ranks)}")]
        if ranks.main:
            (scratch / WINDOW).write_bytes(contents.window)
            (scratch / STATE).write_text(json.dumps(contents.state, indent=1) + "\n", encoding="utf-8")
            mine += [WINDOW, STATE]
        for name in mine:
            files[name] = {"bytes": (scratch / name).stat().st_size, "sha256": sha256_of_file(scratch / name)}
            flush(scratch / name)
    except OSError as error:
        failure = error
    everyone = ranks.together(files, failure)
    ranks.lead(lambda: _sign(scratch, contents, {k: v for of_rank in everyone for k, v in of_rank.items()}))


def _make(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / TENSORS).mkdir(parents=True)


def _sign(scratch: Path, contents: Contents, files: dict[str, Any]) -> None:
    """The manifest of files that are on the disk already."""
    if unsigned := set(_files(scratch)) - set(files):
        raise RuntimeError(f"{scratch}: no rank has hashed {sorted(unsigned)}")
    manifest = {"format": FORMAT, "step": contents.step, "solve_rate": contents.solve_rate, "files": files}
    (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    (scratch / MANIFEST_HASH).write_text(sha256_of_file(scratch / MANIFEST) + "\n", encoding="ascii")
    for path in (scratch / MANIFEST, scratch / MANIFEST_HASH, scratch / TENSORS, scratch):
        flush(path)


def publish(scratch: Path, target: Path) -> None:
    """Give a written checkpoint its name. A broken one that has the name moves out of the way first."""
    before = _forget(target) if target.exists() else None
    scratch.rename(target)
    flush(target.parent)
    if before is not None:
        shutil.rmtree(before, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove a checkpoint. It loses its name before its first file, so what is left of it is never taken for one."""
    shutil.rmtree(_forget(folder), ignore_errors=True)


def read_manifest(folder: Path) -> Manifest:
    """The manifest, if it is sound. Raises CheckpointError with the reason, FormatError for another format."""
    with _readable(folder):
        text, wanted = read_file(folder / MANIFEST), read_file(folder / MANIFEST_HASH)
    if sha256_of(text).encode() + b"\n" != wanted:
        raise CheckpointError(f"{folder}: corrupted: {MANIFEST} does not match {MANIFEST_HASH}")
    try:
        manifest = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{folder}: corrupted: {MANIFEST} is no JSON: {error}") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if type(found) is int and found != FORMAT:
        remedy = "update tppo" if found > FORMAT else "go on with it by the version that wrote it, or train again"
        raise FormatError(
            f"{folder}: format {found} is {'newer' if found > FORMAT else 'older'} than {FORMAT}, which this "
            f"version reads; {remedy}"
        )
    if wrong := misfit(Manifest, manifest):
        raise CheckpointError(f"{folder}: corrupted: {MANIFEST}: {wrong}")
    if step_of(folder.name) not in (None, manifest["step"]):
        raise CheckpointError(f"{folder}: corrupted: {MANIFEST} is of step {manifest['step']}")
    return manifest


def verify(folder: Path) -> Manifest:
    """Check every byte and return the manifest. Raises CheckpointError with the reason, FormatError."""
    manifest = read_manifest(folder)
    listed, there = manifest["files"], _files(folder)
    if missing := sorted({*listed, STATE, WINDOW} - set(there)):
        raise CheckpointError(f"{folder}: torn: {missing[0]} is missing")
    if unknown := sorted(set(there) - set(listed)):
        raise CheckpointError(f"{folder}: corrupted: {unknown[0]} is not in {MANIFEST}")
    with _readable(folder):
        for name, entry in listed.items():  # cheap, and so before anything is hashed
            size = (folder / name).stat().st_size
            if size != entry["bytes"]:
                raise CheckpointError(f"{folder}: torn: {name} has {size} bytes of {entry['bytes']}")
        with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:  # hashing releases the interpreter
            for name, found in zip(listed, pool.map(sha256_of_file, (folder / name for name in listed)), strict=True):
                if found != listed[name]["sha256"]:
                    raise CheckpointError(f"{folder}: corrupted: the sha256 of {name} differs")
    return manifest


def names_of_tensors(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each tensor by name, from the heads of the files. Raises CheckpointError."""
    try:
        return stored_tensors(folder / TENSORS)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{folder}: corrupted: {TENSORS} cannot be read: {type(error).__name__}: {error}"
        ) from None


def load_tensors(folder: Path, into: Mapping[str, torch.Tensor], *, only: str = "") -> None:
    """Copy tensors in place, all of them or those whose name begins with ``only``.

    Raises CheckpointError before the first copy unless names, shapes and types are exactly those of the checkpoint.
    """
    stored = {name: found for name, found in names_of_tensors(folder).items() if name.startswith(only)}
    if odd := sorted(set(stored) ^ set(into)):
        where = "only in the checkpoint" if odd[0] in stored else "not in the checkpoint"
        raise CheckpointError(f"{folder}: tensor {odd[0]!r} is {where}; was it made with another model?")
    for name, tensor in into.items():
        wanted = (tuple(tensor.shape), tensor.dtype)
        if stored[name] != wanted:
            raise CheckpointError(f"{folder}: tensor {name!r} is {stored[name]}, the model needs {wanted}")
    read_tensors(folder / TENSORS, into)


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Inside, an OSError becomes a CheckpointError that names the file."""
    try:
        yield
    except OSError as error:
        name = Path(str(error.filename)).name
        raise CheckpointError(f"{folder}: torn: {name} cannot be read ({error.strerror})") from None


def _forget(folder: Path) -> Path:
    return folder.rename(folder.with_name(f".old-{folder.name}-{uuid.uuid4().hex}"))


def _files(folder: Path) -> list[str]:
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
    return sorted(set(names) - {MANIFEST, MANIFEST_HASH})
