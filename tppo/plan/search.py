"""The nearest arrangement that fits: what to change, in the order in which one would rather change it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tppo.config.run import RunConfig
from tppo.plan.budget import Budget

GPUS_PER_HOST = 8
MOST_GPUS = 16
"""Times as many as asked for."""
_LEAST_FRACTION = 0.3
_STEP = 0.05


@dataclass(frozen=True)
class Arrangement:
    """A configuration on so many GPUs. cost: how much it differs from what was asked for. flags: of the command line,
    for the difference.
    """

    config: RunConfig
    gpus: int
    cost: float
    flags: tuple[str, ...]


def arrangements(config: RunConfig, gpus: int, *, longest: int, heads: tuple[int, int]) -> list[Arrangement]:
    """All that differ in what may be changed without changing a result, nearest first; what was asked for is none.

    longest: tokens of a row that must fit in one micro-batch. heads: of attention, and of keys and values.
    """
    found = []
    for change in itertools.product(
        _sleep(config), _fraction(config), _recompute(config), _micro(config, longest), _parallel(config, gpus, heads),
        _offload(config), _more(gpus),
    ):  # fmt: skip
        cost = sum(c for c, _ in change)
        values = {name: value for _, part in change for name, value in part.items()}
        many = int(values.pop("gpus", gpus))
        if cost == 0 or many % int(values.get("vllm__tensor_parallel", config.vllm.tensor_parallel)):
            continue
        found.append(Arrangement(config.with_values(**values), many, cost, tuple(_flags(values, many, gpus))))
    return sorted(found, key=lambda a: a.cost)


def nearest(
    candidates: list[Arrangement],
    guess: Callable[[Arrangement], Budget],
    check: Callable[[Arrangement], Budget],
    *,
    checks: int = 3,
) -> tuple[Arrangement, Budget] | None:
    """The first whose guess fits and whose check agrees; None if none does, or ``checks`` disagreed."""
    for candidate in candidates:
        if guess(candidate).fits:
            if checks == 0:
                return None
            checks -= 1
            found = check(candidate)
            if found.fits:
                return candidate, found
    return None


Change = tuple[float, dict[str, Any]]


def _sleep(config: RunConfig) -> Iterator[Change]:
    yield 0, {}
    if config.engine == "vllm" and not config.vllm.sleep:
        yield 1, {"vllm__sleep": True}


def _fraction(config: RunConfig) -> Iterator[Change]:
    yield 0, {}
    if config.engine == "vllm":
        steps = int((config.vllm.memory_fraction - _LEAST_FRACTION) / _STEP + 1e-9)
        for n in range(1, steps + 1):
            yield 0.8 + 0.1 * n, {"vllm__memory_fraction": round(config.vllm.memory_fraction - n * _STEP, 2)}


def _recompute(config: RunConfig) -> Iterator[Change]:
    yield 0, {}
    if not config.compute.recompute:
        yield 1, {"compute__recompute": True}


def _micro(config: RunConfig, longest: int) -> Iterator[Change]:
    yield 0, {}
    size, cost = config.compute.micro_batch_tokens, 0.0
    while size > longest:
        size, cost = max(size // 2, longest), cost + 1
        yield cost, {"compute__micro_batch_tokens": size}


def _parallel(config: RunConfig, gpus: int, heads: tuple[int, int]) -> Iterator[Change]:
    yield 0, {}
    size, cost = config.vllm.tensor_parallel * 2, 2.0
    while config.engine == "vllm" and size <= min(GPUS_PER_HOST, gpus * MOST_GPUS):
        if heads[0] % size == 0 and max(heads[1], size) % min(heads[1], size) == 0:
            yield cost, {"vllm__tensor_parallel": size}
        size, cost = size * 2, cost + 2


def _offload(config: RunConfig) -> Iterator[Change]:
    yield 0, {}
    if not config.compute.cpu_offload:
        yield 3, {"compute__cpu_offload": True}


def _more(gpus: int) -> Iterator[Change]:
    yield 0, {}
    times = 2
    while times <= MOST_GPUS:
        yield 2.0 * times, {"gpus": gpus * times}
        times *= 2


def _flags(values: dict[str, Any], many: int, gpus: int) -> Iterator[str]:
    if many != gpus:
        yield f"--gpus {many}"
    for name, value in values.items():
        flag = "--" + name.replace("__", ".").replace("_", "-")
        if isinstance(value, bool):
            part, _, leaf = flag.rpartition(".")
            yield flag if value else f"{part}.no-{leaf}"
        else:
            yield f"{flag} {value}"
