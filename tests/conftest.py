"""Shared by all tests: what is skipped and why, and a number of threads that makes bits repeatable."""

import importlib.util
import os

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; tests run side by side, one a core


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    skips = []
    if not config.getoption("--run-slow"):
        skips.append(("slow", "takes minutes; run with --run-slow"))
    if not torch.cuda.is_available():
        skips.append(("gpu", "needs a CUDA device; torch sees none"))
    if importlib.util.find_spec("vllm") is None:
        skips.append(("vllm", "needs vLLM, which is not installed here"))
    for item in items:
        for marker, reason in skips:
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))
