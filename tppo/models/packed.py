"""Attention over packed rows: sequences one behind the other in a single row, none looking at another.

A padded rectangle computes its padding, in every layer. Here everything but attention runs on the T real tokens, and
attention runs on each sequence alone, causally, so neither padding nor a T x T mask exists.

Shapes: _T all tokens of the pack, _B sequences, _D hidden width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from tppo.errors import ConfigError

NAME = "tppo_packed"


def accept_packed(config: Any) -> None:
    """Let a model take packed rows. Without them it goes on calling the same attention with the same masks.

    Which attention runs is decided by an argument of the call and not by a switch that is set for a while: activation
    checkpoints call the layers again in the backward pass, with the same arguments, long after any switch is back.
    A model that was loaded with another attention than "sdpa" is left alone.
    """
    if config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, packed_attention)  # again and again is the same as once
        AttentionMaskInterface.register(NAME, sdpa_mask)
        config._attn_implementation = NAME


def packed_hidden(body: Any, ids_T: torch.Tensor, lengths_B: torch.Tensor | Sequence[int]) -> torch.Tensor:
    """Hidden state of every token [T, D], equal to running each sequence alone.

    body: a Hugging Face base model that went through ``accept_packed``. ids_T: int64, the sequences one behind the
    other. lengths_B: tokens of each, at least one, summing to T; on the CPU. Neighbours of equal length share a call of
    attention, so sort by length. Raises ValueError for lengths that do not fit and ConfigError for a model whose
    attention cannot take packed rows.
    """
    if body.config._attn_implementation != NAME:
        raise ConfigError(
            "model.attn_implementation", body.config._attn_implementation, "sdpa", "load the model with it to pack rows"
        )
    lengths = tuple(int(n) for n in lengths_B)
    if not lengths or min(lengths) < 1 or sum(lengths) != len(ids_T):
        raise ValueError(f"lengths {lengths} do not cut {len(ids_T)} tokens into sequences of at least one")
    return body(
        input_ids=ids_T[None],
        position_ids=packed_positions(lengths, ids_T.device)[None],
        # Positions that restart would make transformers build a T x T mask; one that is four-dimensional it leaves be.
        attention_mask=torch.empty(1, 1, 0, 0, device=ids_T.device),
        use_cache=False,
        packed_lengths=lengths,
    ).last_hidden_state[0]


def packed_positions(lengths: Sequence[int], device: torch.device | None = None) -> torch.Tensor:
    """Position of each token in its own sequence [T].

    >>> packed_positions([2, 3]).tolist()
    [0, 1, 0, 1, 2]
    """
    lengths_B = torch.tensor(lengths)
    starts = torch.repeat_interleave(lengths_B.cumsum(0) - lengths_B, lengths_B)
    return (torch.arange(len(starts)) - starts).to(device)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_lengths: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention [B, T, heads, head_dim], the signature that transformers calls.

    query: [B, heads, T, head_dim]; key and value with their own number of heads. packed_lengths: tokens of each
    sequence in the one row, or None for ordinary rows, which get the ordinary attention.
    """
    if packed_lengths is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    runs = [(length, len(list(same))) for length, same in itertools.groupby(packed_lengths)]
    # Split, not sliced: the gradient of a split is one concatenation, of a slice a table of zeros each.
    parts = [x[0].split([length * count for length, count in runs], dim=1) for x in (query, key, value)]
    out = []
    for (length, count), q, k, v in zip(runs, *parts, strict=True):
        # [heads, count * length, head_dim] -> [count, heads, length, head_dim]
        q, k, v = (x.unflatten(1, (count, length)).transpose(0, 1) for x in (q, k, v))
        mixed = scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=k.shape[1] != q.shape[1]
        )
        out.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(out)[None], None
