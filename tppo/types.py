"""The vocabulary of the library: prompt, response, status, what an engine is asked and answers, token batch.

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
    """One growing answer; all per-token arrays have the same length (compact ones: runs hold millions of tokens).

    uid: unique in the run, and the key of its random numbers. group: responses to one prompt drawn together share it.
    tokens: response token ids so far. logprobs: behaviour log-probability of each token [nats], at the sampling
    temperature. values: the critic's V(s_t) of each token, from the step that sampled it. versions: version of the
    policy that sampled each token. window_starts: index of the first token of each window so far.
    reward: the outcome reward; None until finished.
    """

    uid: int
    group: int
    prompt: Prompt
    tokens: array[int] = field(default_factory=_ints)
    logprobs: array[float] = field(default_factory=_floats)
    values: array[float] = field(default_factory=_floats)
    versions: array[int] = field(default_factory=_ints)
    window_starts: list[int] = field(default_factory=list)
    status: Status = Status.UNFINISHED
    reward: float | None = None

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
class TokenBatch:
    """All responses of one step as flat per-token arrays at absolute response positions; no padding.

    uids_S: response ids. sequences: per response its prompt and response token ids, int64 [prompt + length].
    prompt_lengths_S, lengths_S: tokens. offsets: int64 [S + 1], tokens of response i are offsets[i]:offsets[i+1].
    row_N: index of the response that each token belongs to, int64. tokens_N: token ids. behaviour_N: log-prob at
    sampling [nats]. versions_N: policy version that sampled it.
    window_N: bool, sampled in this step. rewards_N: token rewards, the outcome on the last token of a finished
    response. finished_S, positive_S (finished with reward above zero): bool. scores_S: outcome reward, 0 if unfinished.
    """

    uids_S: tuple[int, ...]
    sequences: tuple[torch.Tensor, ...]
    prompt_lengths_S: torch.Tensor
    lengths_S: torch.Tensor
    offsets: torch.Tensor
    row_N: torch.Tensor
    tokens_N: torch.Tensor
    behaviour_N: torch.Tensor
    versions_N: torch.Tensor
    window_N: torch.Tensor
    rewards_N: torch.Tensor
    finished_S: torch.Tensor
    positive_S: torch.Tensor
    scores_S: torch.Tensor

    @property
    def num_responses(self) -> int:
        """S."""
        return len(self.uids_S)

    @staticmethod
    def of(responses: Sequence[Response]) -> TokenBatch:
        """Flatten responses, in their order. Raises ValueError when a finished response has no reward."""
        import numpy as np
        import torch

        def flat(name: str, dtype: torch.dtype) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([np.asarray(getattr(r, name)) for r in responses])).to(dtype)

        for r in responses:
            if r.status.finished and r.reward is None:
                raise ValueError(f"response {r.uid} is {r.status.value} but has no reward: grade before batching")
        lengths = torch.tensor([len(r.tokens) for r in responses], dtype=torch.int64)
        offsets = torch.zeros(len(responses) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        finished = torch.tensor([r.status.finished for r in responses], dtype=torch.bool)
        scores = torch.tensor([r.reward or 0.0 for r in responses], dtype=torch.float32)
        rewards = torch.zeros(int(offsets[-1]), dtype=torch.float32)
        ends = finished & (lengths > 0)
        rewards[offsets[1:][ends] - 1] = scores[ends]
        starts = torch.tensor([r.start for r in responses], dtype=torch.int64)
        row = torch.repeat_interleave(torch.arange(len(responses)), lengths)
        return TokenBatch(
            uids_S=tuple(r.uid for r in responses),
            sequences=tuple(
                torch.from_numpy(np.concatenate([np.array(r.prompt.tokens, dtype=np.int64), np.asarray(r.tokens)]))
                for r in responses
            ),
            prompt_lengths_S=torch.tensor([len(r.prompt.tokens) for r in responses], dtype=torch.int64),
            lengths_S=lengths,
            offsets=offsets,
            row_N=row,
            tokens_N=flat("tokens", torch.int64),
            behaviour_N=flat("logprobs", torch.float32),
            versions_N=flat("versions", torch.int64),
            window_N=torch.arange(len(row)) - offsets[row] >= starts[row],
            rewards_N=rewards,
            finished_S=finished,
            positive_S=finished & (scores > 0),
            scores_S=scores,
        )
