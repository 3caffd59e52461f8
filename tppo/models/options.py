"""How models are called, and where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tppo.ranges import TOKENS, Range


@dataclass(frozen=True)
class Compute:
    """How a model call is cut up and where it runs. Only ``dtype`` changes a result beyond round-off."""

    device: str = "auto"
    """auto is cuda where there is one, else cpu."""
    micro_batch_tokens: Annotated[int, Range(1, TOKENS, unit="tokens")] = 32768
    """Most tokens, padding included, in one forward and backward pass."""
    packed: bool = False
    """Rows one behind the other instead of padded rectangles; transformers only. Pays by about the share of padding."""
    logit_chunk_tokens: Annotated[int, Range(1, TOKENS, unit="tokens")] = 1024
    """Most tokens whose logits exist at one time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What models compute in. Under bfloat16, which needs torchrun, master weights and optimiser stay in float32."""
    recompute: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    cpu_offload: bool = False
    """Keep shards and optimiser in the machine's memory, on a GPU under torchrun."""
