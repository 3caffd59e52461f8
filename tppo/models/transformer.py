"""Hugging Face causal language models as policy and critic, with a static key/value cache whose rows have their own
lengths (no left padding, no wasted positions)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from tppo.errors import ConfigError
from tppo.models.base import CriticModel, PolicyModel
from tppo.models.head import single_linear
from tppo.models.packed import accept_packed, packed_hidden
from tppo.models.soundness import check_attention, check_forward, without_dropout


class TransformerPolicy(PolicyModel):
    """A causal LM whose output layer is applied only to chosen positions.

    model: any Hugging Face model with full causal attention in every layer (Qwen2, Qwen3, Llama, ...).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        without_dropout(model)
        accept_packed(model.config)
        self.model = model
        self.vocab_size: int = model.config.vocab_size

    @property
    def hugging_face(self) -> Any:
        """The transformers model."""
        return self.model

    def file_names(self) -> dict[str, torch.Tensor]:
        """Every weight once, under its name in a model folder."""
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def hidden(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, T, D] of right-padded rows: causal attention never looks at the padding."""
        return self.model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state

    def packed_hidden(self, ids_T: torch.Tensor, lengths_B: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Hidden states [T, D] of sequences one behind the other: no padding, no mask. See ``packed.packed_hidden``."""
        return packed_hidden(self.model.base_model, ids_T, lengths_B)

    def logits(self, hidden_XD: torch.Tensor) -> torch.Tensor:
        """Logits [X, V]."""
        return self.model.get_output_embeddings()(hidden_XD)

    def output_layer(self) -> nn.Linear | None:
        """The output layer when it is a plain linear one."""
        return single_linear(self.model.get_output_embeddings())

    def weights(self) -> Iterable[tuple[str, torch.Tensor]]:
        """Under their Hugging Face names; a tied output layer appears as well."""
        return self.model.state_dict().items()

    def blocks(self) -> list[nn.Module]:
        """Layers, the units in which weights are gathered when they are sharded."""
        return layers_of(self.model.base_model)

    def check(self, *, longest: int | None, decodes: bool, packed: bool) -> None:
        """Its own forward pass is what is computed here."""
        check_attention(self.model.config, longest)
        check_forward(self, decodes=decodes, packed=packed)

    def decode_state(self, rows: int, capacity: int) -> TransformerDecodeState:
        """An empty static cache."""
        return TransformerDecodeState(self.model.base_model, rows, capacity)


class TransformerCritic(CriticModel):
    """The body of a causal LM and a scalar head, zero at the start: V = 0 everywhere, whatever the body says.

    body: a Hugging Face base model (no output layer). It is owned, not copied.
    """

    def __init__(self, body: Any) -> None:
        super().__init__()
        without_dropout(body)
        accept_packed(body.config)
        self.body = body
        self.head = nn.Linear(body.config.hidden_size, 1, dtype=body.dtype, device=body.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def hugging_face(self) -> Any:
        """The transformers model."""
        return self.body

    def file_names(self) -> dict[str, torch.Tensor]:
        """Weights of the body, under their names in the folder of the whole model."""
        prefix = self.body.base_model_prefix
        return {f"{prefix}.{name}": p.detach() for name, p in self.body.named_parameters()}

    def blocks(self) -> list[nn.Module]:
        """Layers, as for the policy."""
        return layers_of(self.body)

    def hidden(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, T, D]."""
        return self.body(input_ids=ids_BT, use_cache=False).last_hidden_state

    def packed_hidden(self, ids_T: torch.Tensor, lengths_B: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Hidden states [T, D] of sequences one behind the other: no padding, no mask. See ``packed.packed_hidden``."""
        return packed_hidden(self.body, ids_T, lengths_B)

    def check(self, *, longest: int | None, decodes: bool, packed: bool) -> None:
        """Every layer looks at every position."""
        check_attention(self.body.config, longest)

    def values(self, hidden_XD: torch.Tensor) -> torch.Tensor:
        """V [X], in float32 at least."""
        value = self.head(hidden_XD).squeeze(-1)
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def layers_of(body: Any) -> list[nn.Module]:
    """The decoder layers of a base model, whatever it calls them. Raises ConfigError where there is no such list."""
    count = body.config.num_hidden_layers
    found = [m for m in body.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not found:
        raise ConfigError(
            "model", type(body).__name__, f"a list of {count} layers, the units in which weights are sharded"
        )
    return list(found[0])


class _RowCache(Cache):
    """Keys and values [layer][row, head, position, head_dim], written at each row's own position.

    Only the part that is in use is handed to attention: the first ``live`` rows and ``width`` positions.
    """

    def __init__(self, config: Any, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layers=[])
        self.layers_of_model, self.rows, self.capacity = config.num_hidden_layers, rows, capacity
        # Made at the first prefill, which knows the heads: configurations name them in many ways.
        self.keys = torch.empty(0, dtype=dtype, device=device)
        self.vals = torch.empty(0, dtype=dtype, device=device)
        self.first_row = 0
        self.position_B: torch.Tensor | None = None  # None while prefilling
        self.width = 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Called by the model's attention layers."""
        if not self.keys.numel():
            self.keys, self.vals = self._room(key_states), self._room(value_states)
        keys, vals = self.keys[layer_idx], self.vals[layer_idx]
        batch, length = key_states.shape[0], key_states.shape[2]
        if self.position_B is None:
            rows = slice(self.first_row, self.first_row + batch)
            keys[rows, :, :length] = key_states
            vals[rows, :, :length] = value_states
            return key_states, value_states
        index = torch.arange(batch, device=keys.device)
        keys[index, :, self.position_B] = key_states[:, :, 0]
        vals[index, :, self.position_B] = value_states[:, :, 0]
        return keys[:batch, :, : self.width], vals[:batch, :, : self.width]

    def _room(self, states: torch.Tensor) -> torch.Tensor:
        _, heads, _, dim = states.shape
        # Zeros, not empty: attention multiplies masked positions by zero, and zero times NaN is NaN.
        shape = (self.layers_of_model, self.rows, heads, self.capacity, dim)
        return torch.zeros(shape, dtype=self.keys.dtype, device=states.device)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Zero: positions are given explicitly."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys that a prefill attends to, and the first one's position: its own tokens, so no mask need be made.

        Not asked when decoding, where a mask is given.
        """
        return query_length, 0


class TransformerDecodeState:
    """Incremental decoding over a static cache."""

    def __init__(self, body: Any, rows: int, capacity: int) -> None:
        self.body = body
        weight = next(body.parameters())
        self.cache = _RowCache(body.config, rows, capacity, weight.dtype, weight.device)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=weight.device)
        self.positions = torch.arange(capacity, device=weight.device)

    def prefill(self, ids_BT: torch.Tensor, lengths_B: torch.Tensor, first_row: int) -> torch.Tensor:
        """Run whole contexts with ordinary causal attention and keep their keys and values."""
        batch, length = ids_BT.shape
        self.cache.first_row, self.cache.position_B = first_row, None
        # No mask: attention is causal by itself, and a mask of 24k x 24k positions is 576 MB.
        hidden = self.body(
            input_ids=ids_BT,
            position_ids=self.positions[:length].expand(batch, -1),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.lengths[first_row : first_row + batch] = lengths_B
        return hidden[torch.arange(batch, device=hidden.device), lengths_B - 1]

    def step(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """One token a row."""
        batch = len(tokens_B)
        position = self.lengths[:batch].clone()
        width = int(position.max()) + 1
        self.cache.position_B, self.cache.width = position, width
        # Additive, made once: attention would turn a boolean mask into this in every layer.
        mask = torch.zeros(batch, 1, 1, width, dtype=self.cache.keys.dtype, device=position.device)
        mask.masked_fill_((self.positions[:width] > position[:, None])[:, None, None, :], float("-inf"))
        hidden = self.body(
            input_ids=tokens_B[:, None],
            attention_mask=mask,
            position_ids=position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.lengths[:batch] += 1
        return hidden[:, 0]

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy rows inside the cache."""
        self.cache.keys[:, target] = self.cache.keys[:, source]
        self.cache.vals[:, target] = self.cache.vals[:, source]
        self.lengths[target] = self.lengths[source]
