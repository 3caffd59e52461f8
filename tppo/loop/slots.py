"""Successive batching: a constant number of slots, a window of tokens a round (arXiv 2506.15050, section on the
rollout; details of the authors' port where the paper is silent).

Finished responses leave their slots, unfinished ones stay, new prompts take the free slots. Prompts enter as whole
groups where they fit; the rest of a split group is first in the queue next time, so no sample of a prompt is ever lost
or doubled. Which responses train is the algorithm's choice (``select``): a finished one whose group must be complete
waits outside the slots. With a window at least as long as the cap every response finishes in its round and the schedule
is ordinary PPO's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

from tppo.algorithms.base import Select
from tppo.errors import DataError, EngineError
from tppo.types import Continuation, GenerationRequest, Prompt, Response, Status


class Slots:
    """The slots of a run, the responses in flight, and those that wait for their group."""

    def __init__(
        self,
        prompts: Callable[[int], Prompt],
        *,
        slots: int,
        group_size: int,
        window: int,
        max_response_tokens: int,
        select: Select,
        lag: int = 0,
        staleness: tuple[int, int] | None = None,
    ) -> None:
        """prompts: ``prompts(i)`` is the i-th prompt of the stream, the same however often it is asked.

        slots: responses in flight, constant. group_size: responses to each prompt. window: most new tokens of a
        response in a round. max_response_tokens: total cap. select: which groups train. lag: batches that are made
        before one trains. staleness: (groups of a step, eta): so many train in a step, oldest first, and groups are
        opened for eta steps ahead alone, so that slots may stay empty.
        """
        self.prompts, self.slots, self.group_size = prompts, slots, group_size
        self.window, self.max_response_tokens, self.select = window, max_response_tokens, select
        self.lag, self.staleness = lag, staleness
        self.cursor = 0
        """Prompts drawn."""
        self.next_uid = 0
        """Responses numbered."""
        self.in_flight: list[Response] = []
        """One response a slot, oldest first."""
        self.queue: list[Response] = []
        """The rest of a split group, already numbered."""
        self.waiting: list[Response] = []
        """Finished members of groups that are not complete, outside the slots."""
        self.ready: list[Response] = []
        """Selected, to be taken at the end of a step."""
        self.shelf: list[list[Response]] = []
        """Batches that train later, oldest first."""
        self.new_tokens = 0
        """Generated in this step; a run may have to go on between two of its rounds."""

    def admit(self, version: int = 0) -> list[Response]:
        """Fill the free slots and return all responses of this round: carried ones first, in their order.

        version: of the policy, for the bound on staleness.
        """
        while len(self.in_flight) < self.slots:
            if not self.queue:
                if self.staleness and self.cursor >= self.staleness[0] * (version + 1 + self.staleness[1]):
                    break  # AReaL, arXiv 2505.24298: floor((N - 1) / B) <= version + eta
                self.queue = self._open_group()
            free = self.slots - len(self.in_flight)
            self.in_flight += self.queue[:free]
            self.queue = self.queue[free:]
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

    def extend(self, continuations: Sequence[Continuation], version: int) -> int:
        """Append what the engine sampled with policy ``version`` and set each response's status; returns the number of
        new tokens.

        Raises EngineError, with nothing appended, when the engine answers for the wrong responses, returns too many
        tokens, or stops early without saying why: a cut must never be taken for an end.
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
        for response, c in zip(self.in_flight, continuations, strict=True):
            response.extend(c.tokens, c.logprobs, version)
            if c.stopped:
                response.status = Status.EOS if response.tokens else Status.EMPTY
            elif len(response.tokens) >= self.max_response_tokens:
                response.status = Status.LENGTH
        new = sum(len(c.tokens) for c in continuations)
        self.new_tokens += new
        return new

    def settle(self, version: int) -> int:
        """Judge every group once its new tokens are graded, and free the slots of finished responses.

        Returns the number of groups that are ready to train. A group that is dropped leaves the slots too.
        """
        groups: dict[int, list[Response]] = {}
        for response in sorted([*self.waiting, *self.in_flight, *self.queue], key=lambda r: r.uid):
            groups.setdefault(response.group, []).append(response)
        now, dropped = set[int](), set[int]()
        for group, members in groups.items():
            verdict = self.select(members, version)
            if verdict == "now":
                now.add(group)
            elif verdict == "drop":
                dropped.add(group)
        seen = {id(r) for r in self.ready}
        started = [r for r in [*self.waiting, *self.in_flight] if r.group in now and r.window_starts]
        self.ready = sorted([*self.ready, *(r for r in started if id(r) not in seen)], key=lambda r: r.uid)
        ended = [r for r in [*self.waiting, *self.in_flight] if r.status.finished and r.group not in now | dropped]
        self.waiting = sorted(ended, key=lambda r: r.uid)
        self.in_flight = [r for r in self.in_flight if not r.status.finished and r.group not in dropped]
        self.queue = [r for r in self.queue if r.group not in dropped]
        return len({r.group for r in self.ready})

    def take(self) -> list[Response]:
        """What is ready is a batch. Returns the responses that train in this step, oldest first; none while there are
        not more batches than the lag. Every unfinished one keeps its slot.
        """
        first = list(dict.fromkeys(r.group for r in self.ready))[: self.staleness[0] if self.staleness else None]
        self.shelf.append([r for r in self.ready if r.group in first])
        self.ready = [r for r in self.ready if r.group not in first]
        if len(self.shelf) <= self.lag:
            return []
        self.new_tokens = 0
        return self.shelf.pop(0)


class Requests(Sequence[GenerationRequest]):
    """The requests of a round, each made when it is looked at: of several engines each makes its own share only."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def __len__(self) -> int:
        return len(self._slots.in_flight)

    @overload
    def __getitem__(self, at: int) -> GenerationRequest: ...
    @overload
    def __getitem__(self, at: slice) -> list[GenerationRequest]: ...
    def __getitem__(self, at: int | slice) -> GenerationRequest | list[GenerationRequest]:
        """One request, or a list of some."""
        chosen = self._slots.in_flight[at]
        return [self._request(r) for r in chosen] if isinstance(chosen, list) else self._request(chosen)

    def _request(self, r: Response) -> GenerationRequest:
        return GenerationRequest(
            uid=r.uid,
            tokens=(*r.prompt.tokens, *r.tokens),
            position=len(r.tokens),
            max_new_tokens=min(self._slots.window, self._slots.max_response_tokens - len(r.tokens)),
        )
