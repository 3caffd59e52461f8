"""Memory beside the trained models: the inference engine on the GPU, and the responses that every rank holds."""

from __future__ import annotations

from dataclasses import dataclass

from tppo.config.demand import token_bytes
from tppo.config.run import RunConfig
from tppo.engines.memory import BYTES, EMBEDDED_ROWS, GIB, MemoryPlan
from tppo.models.sizes import Sizes

WORKSPACE = 2 * GIB
"""Activations and buffers of vLLM inside its share, assumed [byte]."""


@dataclass(frozen=True)
class EngineMemory:
    """Bytes on each GPU. weights, cache: while it generates. asleep: whether both are given back after that. rows: of
    full length that the cache holds, of one copy of the model. note: in words.
    """

    weights: int
    cache: int
    asleep: bool
    rows: int
    note: str

    @property
    def training(self) -> int:
        """What stays while the models train."""
        return 0 if self.asleep else self.weights + self.cache


def engine_memory(
    config: RunConfig, sizes: Sizes, *, prompt: int, gpus: int, memory: int, positions: int
) -> EngineMemory:
    """Of the engine that the configuration names. positions: of the model, the longest sequence vLLM makes room for."""
    if config.engine == "torch":
        return _embedded(config, sizes, prompt, gpus)
    options = config.vllm
    width = BYTES[config.compute.dtype if options.dtype == "auto" else options.dtype]
    share = max(1, options.tensor_parallel)
    plan = MemoryPlan(
        allowed=int(memory * options.memory_fraction) - WORKSPACE,
        weights=sizes.numbers * width // share,
        per_token=2 * sizes.layers * max(sizes.head, sizes.keys // share) * width,  # a head is never split
        tokens=options.max_model_tokens or positions,
        rows=options.max_rows,
    )
    return EngineMemory(
        weights=plan.weights,
        cache=int(memory * options.memory_fraction) - plan.weights,
        asleep=options.sleep,
        rows=plan.rows_that_fit,
        note=f"vLLM may take {options.memory_fraction:g} of the memory, {WORKSPACE / GIB:g} GiB of it as workspace; "
        f"{plan}",
    )


def _embedded(config: RunConfig, sizes: Sizes, prompt: int, gpus: int) -> EngineMemory:
    """An unsharded copy on every rank, in float32, and a static cache of this rank's rows."""
    rows = min(EMBEDDED_ROWS, -(-config.rollout.slots // gpus))
    tokens = prompt + config.rollout.max_response_tokens
    cache = 2 * sizes.layers * sizes.keys * 4 * rows * tokens
    note = f"the embedded engine: a whole copy on every rank, a static cache of {rows} rows of {tokens} tokens"
    return EngineMemory(sizes.numbers * 4, cache, False, rows, note)


@dataclass(frozen=True)
class HostMemory:
    """Bytes of one rank in its machine's memory. worst: if every response in flight were as long as the cap."""

    per_token: int
    expected: int | None
    worst: int
    offloaded: int


def host_memory(config: RunConfig, prompt: int, in_flight: float | None, offloaded: int) -> HostMemory:
    """Every rank holds all responses in flight. in_flight: their tokens at the end of a window, where a clock tells."""
    per_token = token_bytes()
    slots = config.rollout.slots
    prompts = slots * prompt * 8 * 2  # as a tuple of numbers and in the sequences of the batch
    worst = slots * config.rollout.max_response_tokens * per_token + prompts
    expected = None if in_flight is None else int(in_flight * per_token) + prompts
    return HostMemory(per_token, expected, worst, offloaded)
