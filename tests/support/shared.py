"""Files beside the repository, for tests that measure on published problems and cases. None is part of it."""

from __future__ import annotations

from pathlib import Path

import pytest


def shared(folder: str, name: str) -> Path:
    """A file in ``shared/`` beside the repository or a folder above it; skips the test where there is none."""
    for parent in Path(__file__).parents:
        if (path := parent / "shared" / folder / name).exists():
            return path
    pytest.skip(f"needs {name} in shared/{folder} beside the repository")
