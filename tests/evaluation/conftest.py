"""The tiny model and its problems, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.eval_models import save_model, save_problems


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_problems(tmp_path_factory.mktemp("data") / "colours.jsonl")
