"""What a checkpoint says, read back and checked: its files are whole, and what they say has the shape it must have.

The one way from the disk to a checkpoint. A hash tells that a file is the one that was written; it does not tell that
whoever wrote and signed it meant a checkpoint of this library. What is read here can be used without another look.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np

from tppo.config.run import RunConfig
from tppo.config.stored import config_of
from tppo.errors import CheckpointError, DataError
from tppo.files import read_object
from tppo.ranges import Range
from tppo.runs.checkpoint.files import STATE, WINDOW, Manifest, names_of_tensors, read_manifest, verify
from tppo.runs.checkpoint.responses import read_responses
from tppo.shapes import misfit
from tppo.types import EVALUATION_UIDS, Response

POOLS = ("in_flight", "queue", "waiting", "ready")
"""Where responses are between two steps, in the order in which they are stored."""


def shelf_names() -> Iterator[str]:
    """Names of the batches that train later, oldest first: pools too, as many as there are."""
    return (f"shelf {i}" for i in itertools.count())


Count = Annotated[int, Range(0, EVALUATION_UIDS - 1)]
Seconds = Annotated[float, Range(0)]


class Counters(TypedDict):
    """Of the trainer."""

    steps_done: Count
    version: Count


class PromptStream(TypedDict):
    """Where the slots stand."""

    cursor: Count
    next_uid: Count
    new_tokens: Count


class MersenneTwister(TypedDict):
    """Of NumPy's global generator."""

    key: list[Annotated[int, Range(0, 2**32 - 1)]]
    pos: Annotated[int, Range(0, 624)]


class NumpyRandom(TypedDict):
    """NumPy's global generator, as ``np.random.get_state(legacy=False)`` says it."""

    bit_generator: str
    state: MersenneTwister
    has_gauss: Annotated[int, Range(0, 1)]
    gauss: float


class Random(TypedDict):
    """States of the global generators; those of torch are tensors, of so many bytes."""

    tensors: dict[str, Annotated[int, Range(1, 2**20)]]
    python: list[int | list[int] | float | None]
    numpy: NumpyRandom


@dataclass
class Progress:
    """Running totals of a run. Times in seconds, rates with their standard errors."""

    tokens_generated: Count = 0
    train_seconds: Seconds = 0.0
    wall_seconds: Seconds = 0.0
    base_rate: Annotated[float, Range(0, 1)] | None = None
    base_se: float | None = None
    last_rate: Annotated[float, Range(0, 1)] | None = None
    last_se: float | None = None
    evaluated_at: Count | None = None
    """Steps done at the newest held-out evaluation."""
    best: Annotated[float, Range(0, 1)] | None = None
    """Largest held-out solve rate during training."""
    metrics_bytes: Count = 0
    """Length of metrics.jsonl."""
    reached_target: bool = False
    """evaluation.stop_at was reached."""
    watched: list[float] = field(default_factory=list)
    """The metric of the algorithm's stopping rule, of each step so far."""
    enough: str = ""
    """Why that rule ended the run; empty while it has not."""


class Environment(TypedDict):
    """Of the process that wrote it; more is stored than is read."""

    packages: dict[str, str | None]
    python: str


class State(TypedDict):
    """state.json."""

    counters: Counters
    prompt_stream: PromptStream
    optimizer_updates: dict[str, Count]
    optimizer_state: dict[str, dict[str, list[str]]]
    random: Random
    progress: dict[str, Any]  # the fields of `Progress`
    config: dict[str, Any]
    environment: Environment


class Window(TypedDict):
    """What window.safetensors says beside the responses: their uids by pool."""

    pools: dict[str, list[int]]


@dataclass(frozen=True)
class Checkpoint:
    """A sound checkpoint, without its tensors."""

    folder: Path
    manifest: Manifest
    state: State
    progress: Progress
    pools: dict[str, list[Response]]
    """The responses in flight, by where they are; one may be in two pools."""

    @property
    def config(self) -> RunConfig:
        """The configuration that it was made with. Raises DataError, FormatError, ConfigError."""
        return config_of(self.state["config"], self.folder / STATE)


def check_checkpoint(folder: Path) -> Checkpoint:
    """Check every byte, then what it says. Raises as ``read_checkpoint``."""
    verify(folder)
    names_of_tensors(folder)
    return read_checkpoint(folder)


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint whose bytes were checked. Raises CheckpointError with the reason, FormatError for another format."""
    manifest = read_manifest(folder)
    try:
        state, pools = _read_state(folder), _read_pools(folder)
        progress = Progress(**state["progress"])
    except DataError as error:
        raise CheckpointError(f"{folder}: corrupted: {error}") from None
    steps = state["counters"]["steps_done"]
    if steps != manifest["step"]:
        raise CheckpointError(f"{folder}: corrupted: {STATE} is of step {steps}, its manifest of {manifest['step']}")
    return Checkpoint(folder, manifest, state, progress, pools)


def restored_generators(stored: Random) -> tuple[random.Random, np.random.RandomState]:
    """Generators of Python and NumPy in their stored states. Raises ValueError for what is no state."""
    python, legacy = random.Random(), np.random.RandomState()
    numpy, inner = stored["numpy"], stored["numpy"]["state"]
    try:
        version, internal, gauss = stored["python"]
        python.setstate((version, tuple(internal), gauss))  # type: ignore[arg-type]
        key = np.array(inner["key"], dtype=np.uint32)
        legacy.set_state({**numpy, "state": {"key": key, "pos": inner["pos"]}})
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return python, legacy


def _read_state(folder: Path) -> State:
    state: Any = read_object(folder / STATE)
    if wrong := misfit(State, state) or misfit(Progress, state["progress"], "progress"):
        raise DataError(f"{STATE}: {wrong}")
    try:
        restored_generators(state["random"])
    except ValueError as error:
        raise DataError(f"{STATE}: random: {error}") from None
    return state


def _read_pools(folder: Path) -> dict[str, list[Response]]:
    responses, about = read_responses(folder / WINDOW)
    if wrong := misfit(Window, about):
        raise DataError(f"{WINDOW}: {wrong}")
    by_uid = {r.uid: r for r in responses}
    names = [*POOLS, *(name for name, _ in zip(shelf_names(), about["pools"].keys() - set(POOLS), strict=False))]
    named = {uid for name in names for uid in about["pools"].get(name, [])}
    if about["pools"].keys() != set(names) or named != by_uid.keys() or len(by_uid) < len(responses):
        raise DataError(f"{WINDOW}: its pools do not name its responses")
    return {name: [by_uid[uid] for uid in about["pools"][name]] for name in names}
