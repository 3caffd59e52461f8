"""Time, from whoever can tell: a function found through the entry points ``tppo.plan``, so that this library knows no
simulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tppo.config.run import RunConfig
from tppo.environment import plugins

GROUP = "tppo.plan"


@dataclass(frozen=True)
class TimeQuestion:
    """gpu: its name, as in ``tppo.plan.gpus``. shape: of transformers. prompt: tokens of every prompt. median, sigma:
    of the response lengths, log-normal and cut at the cap, median in tokens. rows: sequences one engine decodes.
    """

    config: RunConfig
    shape: Any
    prompt: int
    gpus: int
    gpu: str
    median: float
    sigma: float
    rows: int | None


@dataclass(frozen=True)
class TimeAnswer:
    """phases: seconds of an average step, by phase. in_flight: tokens of the responses at the end of a window, mean.
    finished: responses of an average step. assumptions: in words, one a line.
    """

    phases: dict[str, float]
    in_flight: float
    tokens_per_second: float
    finished: float
    mfu: float
    assumptions: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Of an average step."""
        return sum(self.phases.values())


def predict(question: TimeQuestion) -> TimeAnswer | None:
    """The answer of the first installed clock; None without one. Raises ConfigError for what it cannot price."""
    for entry in plugins(GROUP).values():
        clock: Callable[[TimeQuestion], TimeAnswer] = entry.load()
        return clock(question)
    return None
