"""How much memory an inference engine needs, part by part: what a message shows when a GPU is too small."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
EMBEDDED_ROWS = 1024
"""Sequences that the embedded engine decodes at a time."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each GPU. allowed: what the engine may take. per_token: keys and values of one token. tokens: of the
    longest sequence the engine makes room for. rows: sequences decoded at a time, wanted.
    """

    allowed: int
    weights: int
    per_token: int
    tokens: int
    rows: int

    @property
    def rows_that_fit(self) -> int:
        """Sequences of full length whose keys and values fit beside the weights; none may be a fraction."""
        return max(0, (self.allowed - self.weights) // (self.per_token * self.tokens))

    def __str__(self) -> str:
        cache = self.per_token * self.tokens
        lines = [
            f"weights {self.weights / GIB:.2f} GiB",
            f"keys and values {self.per_token / 1024:.0f} KiB a token, "
            f"{cache / GIB:.2f} GiB a sequence of {self.tokens} tokens",
            f"allowed {self.allowed / GIB:.2f} GiB: room for {self.rows_that_fit} full sequences, {self.rows} wanted",
        ]
        return "; ".join(lines)

    def remedy(self) -> str:
        """What to change, nearest first."""
        if self.weights >= self.allowed:
            needed = -(-self.weights // max(1, self.allowed)) + 1
            return (
                f"the weights alone do not fit: share them among {needed} times as many GPUs (vllm.tensor_parallel), "
                "or raise vllm.memory_fraction"
            )
        if self.rows_that_fit < 1:
            fits = (self.allowed - self.weights) // self.per_token
            return (
                f"lower vllm.max_model_tokens to {fits} or less, or raise vllm.memory_fraction or vllm.tensor_parallel"
            )
        return f"lower vllm.max_rows to {min(self.rows, self.rows_that_fit)} or vllm.memory_fraction to what is free"


def memory_plan(
    folder: Path, *, dtype: str, total: int, fraction: float, tensor_parallel: int, rows: int, max_tokens: int | None
) -> MemoryPlan:
    """The plan of a model folder on GPUs of ``total`` bytes each.

    Weights are counted from the files and converted to ``dtype``; heads of keys and values are shared among
    ``tensor_parallel`` GPUs, at least one a GPU.

    >>> plan = MemoryPlan(allowed=10 * GIB, weights=4 * GIB, per_token=2**17, tokens=2**14, rows=8)
    >>> plan.rows_that_fit
    3
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    width = BYTES[dtype]
    per_token = 2 * config["num_hidden_layers"] * max(1, heads // tensor_parallel) * dim * width
    return MemoryPlan(
        allowed=int(total * fraction),
        weights=_numbers(folder) * width // tensor_parallel,
        per_token=per_token,
        tokens=min(max_tokens or 2**62, config.get("max_position_embeddings") or 2**62),
        rows=rows,
    )


def _numbers(folder: Path) -> int:
    """Weights in a folder's safetensors files, from their headers."""
    from safetensors import safe_open

    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                size = 1
                for n in file.get_slice(name).get_shape():
                    size *= n
                count += size
    return count
