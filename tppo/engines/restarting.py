"""An engine that is started again when it dies.

A window's requests hold all that an engine needs (tokens so far, seeds by position), so the call that died is simply
made again: nothing of the run is lost, and where the engine is deterministic nothing changes either.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from tppo.engines.base import Engine, Wrapped
from tppo.errors import EngineDied
from tppo.types import Continuation, GenerationRequest, Sampling

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class RestartingEngine(Wrapped):
    """Starts its engine again when that one dies, a limited number of times in a run."""

    def __init__(self, make: Callable[[], Engine], restarts: int) -> None:
        """make: starts an engine. restarts: how often; after that EngineDied is raised."""
        super().__init__(make())
        self.make, self.restarts_left = make, restarts
        self._loaded: tuple[list[tuple[str, torch.Tensor]], int] | None = None

    def load_policy(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Load, and remember the tensors: they are the trainer's own and change only before the next load."""
        self._loaded = (list(named_tensors), version)
        tensors, _ = self._loaded
        self._try(lambda: self.engine.load_policy(tensors, version), reload=False)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        done: Callable[[Continuation], None] | None = None,
    ) -> list[Continuation]:
        """As the engine does; continuations that were reported before it died are not reported again."""
        reported: set[int] = set()

        def once(continuation: Continuation) -> None:
            if done is not None and continuation.uid not in reported:
                reported.add(continuation.uid)
                done(continuation)

        return self._try(lambda: self.engine.generate(requests, sampling, once))

    def score(self, tokens: Sequence[int], first: int) -> list[float]:
        """As the engine does."""
        return self._try(lambda: self.engine.score(tokens, first))

    def _try(self, call: Callable[[], T], *, reload: bool = True) -> T:
        while True:
            try:
                return call()
            except EngineDied as error:
                if not self.restarts_left:
                    raise
                self.restarts_left -= 1
                print(f"tppo: {error}; starting it again ({self.restarts_left} restarts left)", file=sys.stderr)
                with contextlib.suppress(Exception):  # it is dead: whatever closing says
                    self.engine.close()
                self.engine = self.make()
                if reload and self._loaded is not None:
                    self.engine.load_policy(*self._loaded)
