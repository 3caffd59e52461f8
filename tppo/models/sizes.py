"""Numbers of a decoder-only transformer with a gated feed-forward layer (Qwen2, Llama), from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """Numbers of a model. query, keys: width of all attention heads together, and of those of the keys. head: of one.
    block: parameters of one layer. root: of everything else. largest: of the largest weight.
    """

    layers: int
    hidden: int
    inside: int
    vocab: int
    query: int
    keys: int
    head: int
    block: int
    root: int
    largest: int

    @property
    def numbers(self) -> int:
        """All parameters."""
        return self.layers * self.block + self.root


def sizes(config: Any, *, critic: bool = False) -> Sizes:
    """Of a transformers configuration. critic: the body and a head of one number a position."""
    heads = config.num_attention_heads
    kv = getattr(config, "num_key_value_heads", None) or heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    d, i, query, keys = config.hidden_size, config.intermediate_size, heads * dim, kv * dim
    bias = query + 2 * keys if config.model_type == "qwen2" else 0
    table = config.vocab_size * d
    head = d + 1 if critic else (0 if config.tie_word_embeddings else table)
    block = 2 * d * query + 2 * d * keys + 3 * d * i + bias + 2 * d
    rest, largest = table + head + d, max(table, d * i, d * query)
    return Sizes(config.num_hidden_layers, d, i, config.vocab_size, query, keys, dim, block, rest, largest)
