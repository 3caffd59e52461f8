"""Weights that no engine may be left with, and that none of them raises an error about."""

from __future__ import annotations

from collections.abc import Mapping

import torch

HEAD, WORDS, KEYS, NORM = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.0.input_layernorm.weight",
)


def stale_weights(
    sound: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    """What one load of the weights ``sound`` may have gone wrong to, by the name of the fault.

    sound: of a Hugging Face model. before: what the engine held, of another output layer.
    """
    tied = HEAD not in sound or sound[HEAD].data_ptr() == sound[WORDS].data_ptr()
    heads = [name for name in ((HEAD, WORDS) if tied else (HEAD,)) if name in sound]
    return {
        "stale output layer": {**sound, **{name: before[name] for name in heads}},
        "zeroed k_proj": {**sound, KEYS: torch.zeros_like(sound[KEYS])},
        "lost norm": {**sound, NORM: torch.zeros_like(sound[NORM])},
        "NaN": {**sound, KEYS: torch.full_like(sound[KEYS], torch.nan)},
    }
