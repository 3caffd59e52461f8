"""What the loop asks of a model: hidden states of every position, and a head applied only where something trains.

A policy and a critic are modules. The split in two (``hidden``, then ``logits`` or ``values``) is what
keeps logits of 24k tokens times 152k words from ever existing at once. A model whose weights are sharded is only ever
called through ``Model.forward``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

T = TypeVar("T")


class Model(torch.nn.Module):
    """Base of policies and critics: whatever is computed with the weights runs inside ``forward``.

    ``model(work, *args)`` is ``work(model, *args)``, with the weights gathered where they are sharded.
    """

    def forward(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """``work(self, *args, **kwargs)``."""
        return work(self, *args, **kwargs)

    def check(self, *, longest: int | None, decodes: bool, packed: bool) -> None:
        """Raise ConfigError where what is computed here is not what the model is; asked once, of loaded weights.

        longest: prompt and response together [tokens], None if unknown. decodes: the embedded engine calls it too.
        packed: rows come packed.
        """


class DecodeState(Protocol):
    """Rows being decoded: a key/value cache, or whatever the model needs to go on. Rows keep their own lengths."""

    def prefill(self, ids_BT: torch.Tensor, lengths_B: torch.Tensor, first_row: int) -> torch.Tensor:
        """Take right-padded contexts into rows first_row, first_row + 1, ...; hidden state of last tokens [B, D]."""

    def step(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """Append one token to each of the first len(tokens) rows; hidden state of each [B, D]."""

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Overwrite rows ``target`` with rows ``source`` (int64, disjoint), to close the gaps finished rows leave."""


class PolicyModel(Model):
    """A causal language model."""

    vocab_size: int

    def hidden(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Hidden state after each token of right-padded rows [B, T, D]; position p does not depend on later tokens."""
        raise NotImplementedError

    def logits(self, hidden_XD: torch.Tensor) -> torch.Tensor:
        """Scores of the next token [X, V]."""
        raise NotImplementedError

    def weights(self) -> Iterable[tuple[str, torch.Tensor]]:
        """Every weight under the name its file format has, tied ones under all their names."""
        raise NotImplementedError

    def decode_state(self, rows: int, capacity: int) -> DecodeState:
        """Room for ``rows`` sequences of at most ``capacity`` tokens."""
        raise NotImplementedError


class CriticModel(Model):
    """A state-value function over token prefixes."""

    def hidden(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """As for the policy [B, T, D]."""
        raise NotImplementedError

    def values(self, hidden_XD: torch.Tensor) -> torch.Tensor:
        """V of each prefix [X]."""
        raise NotImplementedError


@runtime_checkable
class LinearHead(Protocol):
    """What a policy may have besides: a linear layer that makes its logits, so that they need never exist at once."""

    def output_layer(self) -> nn.Linear | None:
        """The layer when ``logits`` is that layer applied to the hidden states and nothing else, else None."""


@runtime_checkable
class PackedModel(Protocol):
    """A model that takes sequences one behind the other, without padding."""

    def packed_hidden(self, ids_T: torch.Tensor, lengths_B: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Hidden state of every token [T, D], as if each sequence stood alone."""
