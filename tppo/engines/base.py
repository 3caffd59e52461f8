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

    def close(self) -> None:
        """Free everything."""
