"""What the loop asks of an inference engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from tppo.types import Continuation, GenerationRequest, Sampling

if TYPE_CHECKING:
    import torch


class Engine(Protocol):
    """Generates with the newest policy it was given."""

    def load_policy(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Take the weights of policy ``version`` (``PolicyModel.weights``); what was cached for older ones is void."""

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        done: Callable[[Continuation], None] | None = None,
    ) -> list[Continuation]:
        """Continue every request, in order.

        done: called with each continuation as soon as it is complete, in the caller's thread; grading begins there.
        """

    def score(self, tokens: Sequence[int], first: int) -> list[float]:
        """Log-probability [nats] of each of ``tokens[first:]`` given what stands before it, at temperature 1."""

    def metrics(self) -> dict[str, float]:
        """What there is to say of the last call, for the metrics of a step."""

    def close(self) -> None:
        """Free everything."""


class EngineBase:
    """What most engines have in common: nothing to say, and nothing to free."""

    def metrics(self) -> dict[str, float]:
        """No metrics."""
        return {}

    def close(self) -> None:
        """Nothing to free."""


class Wrapped(EngineBase):
    """An engine around another one, which does whatever a subclass does not do itself."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def load_policy(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """As the engine does."""
        self.engine.load_policy(named_tensors, version)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        done: Callable[[Continuation], None] | None = None,
    ) -> list[Continuation]:
        """As the engine does."""
        return self.engine.generate(requests, sampling, done)

    def score(self, tokens: Sequence[int], first: int) -> list[float]:
        """As the engine does."""
        return self.engine.score(tokens, first)

    def metrics(self) -> dict[str, float]:
        """As the engine says."""
        return self.engine.metrics()

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()
