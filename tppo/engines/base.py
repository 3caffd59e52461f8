"""What the loop asks of an inference engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """uid: the response. tokens: prompt and response so far. position: response tokens so far, the counter of the
    next random number. max_new_tokens: budget of this call, at least one.
    """

    uid: int
    tokens: tuple[int, ...]
    position: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Continuation:
    """tokens: newly sampled ids, a stop token included. logprobs: behaviour log-probability of each [nats], at the
    sampling temperature. stopped: the response ended itself (a stop token), as opposed to the budget running out.
    """

    uid: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature: of the logits; 0 is greedy. top_p: nucleus, 1 is off (training always uses 1: renormalised
    log-probs bias every ratio). stop_ids: token ids that end a response. seed: of the run; the random number of a
    token depends on (seed, response uid, position) alone.
    """

    temperature: float
    stop_ids: frozenset[int]
    seed: int
    top_p: float = 1.0


class EngineBase:
    def metrics(self):
        return {}


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
