"""The numbers of an optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tppo.ranges import BOUND, RATE, RESPONSES, STEPS, Range


@dataclass(frozen=True)
class Optimizer:
    """AdamW for one model, and how a step's responses are dealt out to its updates."""

    lr: Annotated[float, Range(0, RATE)] = 8e-7
    """Peak learning rate."""
    weight_decay: Annotated[float, Range(0, RATE)] = 0.1
    """Decoupled weight decay, on matrices only."""
    beta1: Annotated[float, Range(0, 1, below=True)] = 0.9
    """Decay of AdamW's first moment."""
    beta2: Annotated[float, Range(0, 1, below=True)] = 0.999
    """Decay of AdamW's second moment."""
    warmup_updates: Annotated[int, Range(0, STEPS, unit="updates")] = 0
    """Linear warm-up from zero, then constant."""
    grad_clip: Annotated[float, Range(0, BOUND, above=True)] | None = 1.0
    """Largest gradient norm; None is off."""
    mini_batch: Annotated[int, Range(1, RESPONSES, unit="responses")] = 512
    """Responses per optimiser step."""
    epochs: Annotated[int, Range(1, 1000)] = 1
    """Passes over each step's data."""
