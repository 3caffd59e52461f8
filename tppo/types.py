"""The vocabulary of the library: prompt, response, status, batch.

Shape suffixes used everywhere: ``_N`` flat tokens, ``_S`` responses, ``_V`` vocabulary, ``_D`` hidden width,
``_BT`` a padded rectangle of rows and positions, ``_X`` a selection of tokens. Lengths and positions are in tokens,
log-probabilities in nats.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

EVALUATION_UIDS = 2**62
"""Responses of evaluations have uids from here on, so that they share no random number with those of training."""


def _ints() -> array[int]:
    return array("q")


def _floats() -> array[float]:
    return array("d")


class Status(enum.Enum):
    """Why a response stands where it stands. Data, never inferred from padding (algorithms: PPO family, status table).

    Only ``UNFINISHED`` is bootstrapped; all others are finished and get a reward.
    """

    UNFINISHED = "unfinished"
    """The window ran out before the response did; it goes on next step."""
    EOS = "eos"
    """The policy sampled a stop token."""
    LENGTH = "length"
    """The total cap was reached without a stop token. The cap is part of the task, so this is terminal."""
    EMPTY = "empty"
    """The engine ended the response without a single token. Graded, but there is nothing to train."""

    @property
    def finished(self) -> bool:
        """True for every status but ``UNFINISHED``."""
        return self is not Status.UNFINISHED


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem.

    id: unique name of the problem, for reports. tokens: the prompt's token ids, at least one.
    truth: what the reward needs to judge an answer. source: the data set or split it came from.
    """

    id: str
    tokens: tuple[int, ...]
    truth: str = ""
    source: str = ""


@dataclass(slots=True)
class Response:
    """One growing answer. Per-token arrays are compact: runs hold millions of tokens."""

    uid: int
    """Unique in the run, and the key of the response's random numbers."""
    group: int
    """Responses to one prompt that were drawn together share it."""
    prompt: Prompt
    tokens: array[int] = field(default_factory=_ints)
    """[L] token ids so far."""
    logprobs: array[float] = field(default_factory=_floats)
    """[L] behaviour log-probability of each token [nats], at the sampling temperature."""
    values: array[float] = field(default_factory=_floats)
    """[L] a critic's V(s_t) of each token, from the step that sampled it; empty where no critic valued every window."""
    versions: array[int] = field(default_factory=_ints)
    """[L] version of the policy that sampled each token."""
    window_starts: list[int] = field(default_factory=list)
    """Index of the first token of each window so far."""
    status: Status = Status.UNFINISHED
    reward: float | None = None
    """The outcome reward; None until it is graded, after the end."""

    @property
    def start(self) -> int:
        """Index of the first token of the newest window."""
        return self.window_starts[-1] if self.window_starts else 0

    def extend(self, tokens: Sequence[int], logprobs: Sequence[float], version: int) -> None:
        """Append one window of tokens sampled by policy ``version``."""
        if len(tokens) != len(logprobs):
            raise ValueError(f"response {self.uid}: {len(tokens)} tokens but {len(logprobs)} log-probs")
        self.window_starts.append(len(self.tokens))
        self.tokens.extend(tokens)
        self.logprobs.extend(logprobs)
        self.versions.extend([version] * len(tokens))


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One row of a call of the engine: go on with this response."""

    uid: int
    """The response."""
    tokens: tuple[int, ...]
    """Prompt and response so far."""
    position: int
    """Response tokens so far, the counter of the next random number."""
    max_new_tokens: int
    """Budget of this call, at least one."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """The engine's answer to one request."""

    uid: int
    """The response."""
    tokens: tuple[int, ...]
    """Newly sampled ids, a stop token included."""
    logprobs: tuple[float, ...]
    """Behaviour log-probability of each [nats], at the sampling temperature."""
    stopped: bool
    """The response ended itself (a stop token), as opposed to the budget running out."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn, the same for all requests of a call."""

    temperature: float
    """Of the logits; 0 is greedy."""
    stop_ids: frozenset[int]
    """Token ids that end a response."""
    seed: int
    """Of the run; the random number of a token depends on (seed, response uid, position) alone."""
    top_p: float = 1.0
    """Nucleus; 1 is off. Training always uses 1: renormalised log-probs bias every ratio."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Responses of one step as flat per-token arrays at absolute response positions; no padding.

    [N] is one entry a token, all responses end to end in their order, [S] one entry a response.
    """

    responses: tuple[Response, ...]
    """What the arrays were made of."""
    uids_S: tuple[int, ...]
    sequences: tuple[torch.Tensor, ...]
    """Of each response its prompt and response token ids, int64 [prompt + length]."""
    prompt_lengths_S: torch.Tensor
    """int64 [tokens]."""
    lengths_S: torch.Tensor
    """int64 [tokens]."""
    group_S: torch.Tensor
    """int64, 0 to the number of groups less one, in the order in which groups appear."""
    offsets: torch.Tensor
    """int64 [S + 1]; tokens of response i are offsets[i]:offsets[i + 1]."""
    row_N: torch.Tensor
    """int64, index of the response that the token belongs to."""
    tokens_N: torch.Tensor
    """int64 token ids."""
    behaviour_N: torch.Tensor
    """float32, log-probability at sampling [nats]."""
    versions_N: torch.Tensor
    """int64, policy version that sampled the token."""
    window_N: torch.Tensor
    """bool, in the newest window of its response."""
    rewards_N: torch.Tensor
    """float32, the outcome reward on the last token of a finished response, else 0."""
    finished_S: torch.Tensor
    """bool."""
    capped_S: torch.Tensor
    """bool, ended by the total cap."""
    positive_S: torch.Tensor
    """bool, finished with a reward above zero."""

    @property
    def num_responses(self) -> int:
        """S."""
        return len(self.uids_S)

    @property
    def finished_N(self) -> torch.Tensor:
        """bool [N], tokens of finished responses."""
        return self.finished_S[self.row_N]

    def spread(self, per_response_S: torch.Tensor) -> torch.Tensor:
        """One entry a response, repeated for each of its tokens: [S] -> [N]."""
        return per_response_S[self.row_N]

    def of_rows(self, rows: Sequence[int]) -> torch.Tensor:
        """bool [N], tokens of the responses with these indices."""
        import torch

        member_S = torch.zeros(self.num_responses, dtype=torch.bool)
        member_S[list(rows)] = True
        return member_S[self.row_N]

    def offsets_within(self, chosen_N: torch.Tensor) -> torch.Tensor:
        """Where each response's chosen tokens lie among all chosen ones, int64 [S + 1]."""
        import torch

        from tppo.maths.ragged import offsets_of

        return offsets_of(torch.bincount(self.row_N[chosen_N], minlength=self.num_responses))

    @staticmethod
    def of(responses: Sequence[Response]) -> Batch:
        """Flatten responses, in their order. Raises ValueError when a finished response has no reward."""
        import numpy as np
        import torch

        from tppo.maths.ragged import offsets_of

        def flat(name: str, dtype: torch.dtype) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([np.asarray(getattr(r, name)) for r in responses])).to(dtype)

        for r in responses:
            if r.status.finished and r.reward is None:
                raise ValueError(f"response {r.uid} is {r.status.value} but has no reward: grade before batching")
        lengths = torch.tensor([len(r.tokens) for r in responses], dtype=torch.int64)
        offsets = offsets_of(lengths)
        finished = torch.tensor([r.status.finished for r in responses], dtype=torch.bool)
        scores = torch.tensor([r.reward or 0.0 for r in responses], dtype=torch.float32)
        rewards = torch.zeros(int(offsets[-1]), dtype=torch.float32)
        ends = finished & (lengths > 0)
        rewards[offsets[1:][ends] - 1] = scores[ends]
        starts = torch.tensor([r.start for r in responses], dtype=torch.int64)
        row = torch.repeat_interleave(torch.arange(len(responses)), lengths)
        groups = {group: i for i, group in enumerate(dict.fromkeys(r.group for r in responses))}
        return Batch(
            responses=tuple(responses),
            uids_S=tuple(r.uid for r in responses),
            sequences=tuple(
                torch.from_numpy(np.concatenate([np.array(r.prompt.tokens, dtype=np.int64), np.asarray(r.tokens)]))
                for r in responses
            ),
            prompt_lengths_S=torch.tensor([len(r.prompt.tokens) for r in responses], dtype=torch.int64),
            lengths_S=lengths,
            group_S=torch.tensor([groups[r.group] for r in responses], dtype=torch.int64),
            offsets=offsets,
            row_N=row,
            tokens_N=flat("tokens", torch.int64),
            behaviour_N=flat("logprobs", torch.float32),
            versions_N=flat("versions", torch.int64),
            window_N=torch.arange(len(row)) - offsets[row] >= starts[row],
            rewards_N=rewards,
            finished_S=finished,
            capped_S=torch.tensor([r.status is Status.LENGTH for r in responses], dtype=torch.bool),
            positive_S=finished & (scores > 0),
        )
