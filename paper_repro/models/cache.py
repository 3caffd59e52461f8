"""Folders that are made once and kept: ``$TPPO_CACHE``, else ``~/.cache/tppo``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tppo.errors import ConfigError

MANIFEST = "manifest.json"


def cached_folder(
    name: str, make: Callable[[Path], None], record: dict[str, Any], *, cache_dir: str | Path | None = None
) -> Path:
    """The folder ``name`` of the cache, filled by ``make(folder)`` unless a sound one is there.

    record: what it was made from, kept in its manifest beside the hashes of its files. An entry whose files do not
    match their hashes is made again. Processes that make the same entry at the same time do not disturb each other.
    Raises ConfigError when the cache cannot be written.
    """
    root = Path(cache_dir or os.environ.get("TPPO_CACHE") or Path.home() / ".cache" / "tppo")
    folder = root / name
    if is_sound(folder):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("TPPO_CACHE", str(root), "a folder that can be written", str(error)) from None
    # The entry appears by one rename within one file system, so nobody ever reads half of it.
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    try:
        made, removed = scratch / "made", scratch / "removed"
        made.mkdir()
        make(made)
        hashes = {path.name: _hash_of(path) for path in sorted(made.iterdir())}
        (made / MANIFEST).write_text(json.dumps({**record, "sha256": hashes}, indent=2) + "\n")
        if not is_sound(folder):
            with contextlib.suppress(FileNotFoundError):
                folder.rename(removed)
        try:
            made.rename(folder)
        except OSError:
            if not is_sound(folder):  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def is_sound(folder: Path) -> bool:
    """Whether the folder holds just the files its manifest records."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text())["sha256"]
        found = {path.name for path in folder.iterdir()} - {MANIFEST}
        return found == set(hashes) and all(_hash_of(folder / name) == hashes[name] for name in hashes)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _hash_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
