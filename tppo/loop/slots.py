"""Successive batching: a constant number of slots, a window of tokens a step (arXiv 2506.15050, section on the
rollout; details of the authors' port where the paper is silent).

Finished responses leave, unfinished ones stay, new prompts take the free slots. Prompts enter as whole groups where
they fit; the rest of a split group is first in the queue next time, so no sample of a prompt is ever lost or doubled.
With a window at least as long as the cap every response finishes in its step and the schedule is ordinary PPO's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np
import torch

from tppo.errors import DataError, EngineError
from tppo.types import Continuation, GenerationRequest, Prompt, Response, Status


class SlotWindow:
    """The slots of a run and the responses in flight.

    prompts: ``prompts(i)`` is the i-th prompt of the stream, the same however often it is asked.
    slots: responses in flight, constant. group_size: responses to each prompt. window: most new tokens a step, of
    each response. max_response_tokens: total cap. ``cursor`` counts prompts drawn, ``next_uid`` responses opened.
    """

    def __init__(
        self,
        prompts: Callable[[int], Prompt],
        *,
        slots: int,
        group_size: int,
        window: int,
        max_response_tokens: int,
    ) -> None:
        self.prompts, self.slots, self.group_size = prompts, slots, group_size
        self.window, self.max_response_tokens = window, max_response_tokens
        self.cursor = 0
        self.next_uid = 0
        self.in_flight: list[Response] = []
        self.waiting: list[Response] = []  # the rest of a split group, already numbered

    def admit(self) -> list[Response]:
        """Fill the free slots and return all responses of this step: carried ones first, in their order."""
        while len(self.in_flight) < self.slots:
            if not self.waiting:
                self.waiting = self._open_group()
            free = self.slots - len(self.in_flight)
            self.in_flight += self.waiting[:free]
            self.waiting = self.waiting[free:]
        return list(self.in_flight)

    def _open_group(self) -> list[Response]:
        prompt = self.prompts(self.cursor)
        if not prompt.tokens:
            raise DataError(f"prompt {prompt.id!r} is empty: a policy needs at least one token to condition on")
        group, self.cursor = self.cursor, self.cursor + 1
        uids = range(self.next_uid, self.next_uid + self.group_size)
        self.next_uid += self.group_size
        return [Response(uid=uid, group=group, prompt=prompt) for uid in uids]

    def requests(self) -> Requests:
        """What the engine is asked for: at most a window each, never past the cap."""
        return Requests(self)

    def extend(self, continuations: Sequence[Continuation], version: int) -> None:
        """Append what the engine sampled with policy ``version`` and set each response's status.

        Raises EngineError when the engine answers for the wrong responses, returns too many tokens, or stops early
        without saying why: a cut must never be taken for an end.
        """
        if [c.uid for c in continuations] != [r.uid for r in self.in_flight]:
            raise EngineError("the engine returned other responses, or another order, than it was asked for")
        for response, c in zip(self.in_flight, continuations, strict=True):
            budget = min(self.window, self.max_response_tokens - len(response.tokens))
            if len(c.tokens) > budget or (len(c.tokens) < budget and not c.stopped):
                raise EngineError(
                    f"response {response.uid}: {len(c.tokens)} tokens of {budget} asked for, "
                    f"stopped={c.stopped}; expected the full budget or a stop"
                )
            if c.stopped and not c.tokens and response.tokens:
                raise EngineError(
                    f"response {response.uid}: ended without a token in a later window; expected the stop token, "
                    "or the decision to stop would be nobody's"
                )
            response.extend(c.tokens, c.logprobs, version)
            if c.stopped:
                response.status = Status.EOS if response.tokens else Status.EMPTY
            elif len(response.tokens) >= self.max_response_tokens:
                response.status = Status.LENGTH

    def store_values(self, offsets: torch.Tensor, values_N: torch.Tensor) -> torch.Tensor:
        """Keep this window's values with their responses; return the stored values of all tokens [N].

        offsets, values_N: of the batch of the responses in flight.
        """
        ends = offsets.tolist()
        values = values_N.double().numpy()
        for i, response in enumerate(self.in_flight):
            response.values.frombytes(values[ends[i] + response.start : ends[i + 1]].tobytes())
        return torch.from_numpy(np.concatenate([np.asarray(r.values) for r in self.in_flight])).to(values_N.dtype)

    def retire(self) -> list[Response]:
        """Free the slots of finished responses and return these. Every unfinished response keeps its slot."""
        finished = [r for r in self.in_flight if r.status.finished]
        self.in_flight = [r for r in self.in_flight if not r.status.finished]
        return finished


class Requests(Sequence[GenerationRequest]):
    """The requests of a window, each made when it is looked at: of several engines each makes its own share only."""

    def __init__(self, window: SlotWindow) -> None:
        self._window = window

    def __len__(self) -> int:
        return len(self._window.in_flight)

    @overload
    def __getitem__(self, at: int) -> GenerationRequest: ...
    @overload
    def __getitem__(self, at: slice) -> list[GenerationRequest]: ...
    def __getitem__(self, at: int | slice) -> GenerationRequest | list[GenerationRequest]:
        """One request, or a list of some."""
        chosen = self._window.in_flight[at]
        return [self._request(r) for r in chosen] if isinstance(chosen, list) else self._request(chosen)

    def _request(self, r: Response) -> GenerationRequest:
        w = self._window
        return GenerationRequest(
            uid=r.uid,
            tokens=(*r.prompt.tokens, *r.tokens),
            position=len(r.tokens),
            max_new_tokens=min(w.window, w.max_response_tokens - len(r.tokens)),
        )
