"""How vLLM runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tppo.ranges import GPUS, RESPONSES, TOKENS, Range


@dataclass(frozen=True)
class VllmOptions:
    """How vLLM runs, for engine 'vllm' only."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and cache; auto is that of the trainer's weights."""
    max_rows: Annotated[int, Range(1, RESPONSES, unit="responses")] = 256
    """Sequences decoded at a time."""
    memory_fraction: Annotated[float, Range(0, 1, above=True)] = 0.85
    """Share of the GPU's memory (or of the machine's) that vLLM may take."""
    tensor_parallel: Annotated[int, Range(1, GPUS, unit="GPUs")] = 1
    """GPUs that share one copy of the model."""
    eager: bool = True
    """No graph capture: starts sooner, decodes more slowly on a GPU."""
    sleep: bool = False
    """Give the engine's GPU memory back after every generation; the next load of weights takes it again."""
    max_model_tokens: Annotated[int, Range(1, TOKENS, unit="tokens")] | None = None
    """Longest prompt and response together that vLLM makes room for; None is what the model can."""
    own_process: bool = False
    """Run the engine in a process of its own. Weights then travel through files, and its death does not end the run."""
    restarts: Annotated[int, Range(0, 1_000_000)] = 0
    """How often a run may start an engine again that died; needs own_process."""
