"""The architectures of the Qwen2.5 models as transformers configurations, built offline.

Sizes are those of ``sim.clock.hardware.MODELS``; the rest is from each model's config.json on huggingface.co. For
planning memory and for random models of the same kind: weights never come from here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sim.clock.hardware import MODELS
from tppo.errors import ConfigError

if TYPE_CHECKING:
    from transformers import Qwen2Config

POSITIONS = {
    "Qwen2.5-0.5B": 32768,
    "Qwen2.5-1.5B": 131072,
    "Qwen2.5-7B": 131072,
    "Qwen2.5-14B": 131072,
    "Qwen2.5-32B": 131072,
}
"""max_position_embeddings of the base models [tokens]."""
TUNED = re.compile(r"Qwen2\.5-(?P<kind>Math-|Coder-)?(?P<size>[0-9.]+B)(?P<instruct>-Instruct)?")
"""Models that were trained on from a base model have its sizes."""
OF_TUNED = {None: 32768, "Coder-": 32768, "Math-": 4096}
"""max_position_embeddings of the instruct models, and of the two kinds with or without that [tokens]."""
END_OF_TEXT = 151643
"""Token id that ends a response of the base models; the instruct models end with another."""


def sizes_of(name: str) -> dict[str, Any]:
    """What ``sim.clock.hardware.MODELS`` says of a model, under the names of transformers."""
    m = MODELS[name]
    return {
        "vocab_size": m.vocab,
        "hidden_size": m.hidden,
        "intermediate_size": m.intermediate,
        "num_hidden_layers": m.layers,
        "num_attention_heads": m.heads,
        "num_key_value_heads": m.kv_heads,
        "tie_word_embeddings": m.tied,
    }


def qwen2_config(name: str) -> Qwen2Config:
    """The configuration of ``name``, such as 'Qwen2.5-32B' or 'Qwen/Qwen2.5-Math-7B-Instruct'. Raises ConfigError for
    a name that is not known here.

    >>> config = qwen2_config("Qwen2.5-32B")
    >>> config.num_hidden_layers, config.hidden_size, config.num_key_value_heads
    (64, 5120, 8)
    """
    short = name.rpartition("/")[2]
    tuned = TUNED.fullmatch(short)
    base = f"Qwen2.5-{tuned['size']}" if tuned else short
    if base not in POSITIONS:
        raise ConfigError("shape", name, "one of " + ", ".join(POSITIONS), "or one that was tuned from it")
    from transformers import Qwen2Config

    return Qwen2Config(
        **sizes_of(base),
        max_position_embeddings=POSITIONS.get(short) or OF_TUNED[tuned["kind"] if tuned else None],
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TEXT,
        dtype="bfloat16",
    )
