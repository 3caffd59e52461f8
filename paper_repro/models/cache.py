"""Folders that are made once and kept: ``$TPPO_CACHE``, else ``~/.cache/tppo``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tppo.files import sha256_of_file, write_json, writing_to

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
    with writing_to(root, "TPPO_CACHE"):
        root.mkdir(parents=True, exist_ok=True)
    # The entry appears by one rename within one file system, so nobody ever reads half of it.
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    try:
        made, removed = scratch / "made", scratch / "removed"
        made.mkdir()
        make(made)
        hashes = {path.name: sha256_of_file(path) for path in sorted(made.iterdir())}
        write_json(made / MANIFEST, {**record, "sha256": hashes})
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
        return found == set(hashes) and all(sha256_of_file(folder / name) == hashes[name] for name in hashes)
    except (OSError, ValueError, KeyError, TypeError):
        return False
