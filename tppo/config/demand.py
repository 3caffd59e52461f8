"""Whether a run can fit the machine it is started on, by arithmetic, before a model or a table is made.

The estimate is low: rows that are made whatever the responses say, a window of new tokens for each slot, arrays and
caches that are allocated whole, weights with what training keeps beside them; no activations, and nothing that carried
responses add. So what passes may still run out of memory; ``tppo plan`` looks closer at a GPU.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from tppo.config.need import Need, largest_moment, size_of
from tppo.config.run import ModelShape, RunConfig
from tppo.engines.memory import EMBEDDED_ROWS
from tppo.errors import ConfigError
from tppo.models.sizes import Sizes, sizes

ROW_BYTES = 4096
"""Of each response beside its tokens: objects, requests and tensors of the batch; 5 to 6 KiB were measured."""
PROMPT_TOKEN_BYTES = 16
"""Of each prompt token of a response: its place in the request and in the batch."""
ANSWER_TOKEN_BYTES = 24
"""Of each token of a response that no step trains on: token, log-probability and version."""
STEP_BYTES = 64
"""Of each token in flight, in what a step computes (values, log-probabilities, advantages, returns, masks), assumed."""
DRAWN_TOKEN_BYTES = 20
"""Of each token that the embedded engine makes room for: a random number, the token, its log-probability."""
FLOAT32 = 4


def demand(config: RunConfig, *, ranks: int = 1, generates: bool = True) -> tuple[Need, ...]:
    """What one process of a run holds at least. generates: False where tokens are recorded already.

    A model whose shape the task cannot say is left out.
    """
    shape = shape_of(config)
    known = None if shape is None else sizes_or_none(shape.config)
    prompt = 1 if shape is None else shape.prompt_tokens
    needs = [*config.task.needs(config), *([] if known is None else _weights(config, known, ranks, generates))]
    if generates:
        needs += [_in_flight(config, prompt), _evaluated(config, prompt)]
        if config.engine == "torch":
            needs += _embedded(config, prompt, known, ranks)
    return tuple(needs)


def check_demand(
    config: RunConfig, needs: Sequence[Need], *, machine: float | None, device: float | None = None
) -> None:
    """Raise ConfigError, with the field to lower, unless everything fits.

    machine: bytes that a process may have of the machine's memory. device: of a GPU, where models are on one. None is
    not known, and nothing is refused.
    """
    on_gpu = device is not None
    places = (
        ("the machine's memory", machine, [need for need in needs if not (need.on_device and on_gpu)]),
        ("the GPU's memory", device, [need for need in needs if need.on_device]),
    )
    for place, memory, there in places:
        held = largest_moment(there)
        if memory is not None and sum(need.size for need in held) > memory:
            raise _too_much(config, held, memory, place)


def _too_much(config: RunConfig, held: Sequence[Need], memory: float, place: str) -> ConfigError:
    """The error that names the largest number behind the largest need, and about how small it would have to be."""
    total, most = sum(need.size for need in held), held[0]
    values = {name: attrgetter(name)(config) for name in most.fields}
    numbers = {name: value for name, value in values.items() if isinstance(value, int)}
    fits = {name: int(value * _share(name, held, memory)) for name, value in numbers.items()}
    enough = [name for name in fits if fits[name] > 0]  # lowering this one alone would do
    field = max(enough or numbers, key=lambda name: numbers[name], default=most.fields[0])
    others = " or ".join(f"{name} ({value})" for name, value in values.items() if name != field)
    parts = ", ".join(str(need) for need in held if need.size > total / 100)
    return ConfigError(
        field,
        values[field],
        f"a run that needs at most {size_of(memory)}, {place} for each process of the run",
        f"estimated are at least {size_of(total)}: {parts}; "
        + (f"lower it to about {fits[field]}" if enough else "choose a smaller one")
        + (f", or lower {others}" if others else ""),
    )


def _share(field: str, held: Sequence[Need], memory: float) -> float:
    """Of its value that would fit: what grows with it shrinks with it, the rest stays."""
    grows = sum(need.size for need in held if field in need.fields)
    return (memory - sum(need.size for need in held) + grows) / grows


def shape_of(config: RunConfig) -> ModelShape | None:
    """The model without its weights; None for a table, and for a model that is unknown before it is there."""
    try:
        return config.task.shape()
    except ConfigError:  # the plan refuses it, a run need not
        return None


def sizes_or_none(config: Any) -> Sizes | None:
    """Sizes of a transformers configuration, None for a kind of model that the arithmetic does not know."""
    try:
        return sizes(config)
    except (AttributeError, TypeError, ZeroDivisionError):
        return None


def token_bytes() -> int:
    """Bytes of one token of a response in flight, counted on a real one: its arrays, the batch's, and the step's."""
    import torch

    from tppo.types import Batch, Prompt, Response

    count = 256
    response = Response(0, 0, Prompt("0", (0,)))
    response.extend([0] * count, [0.0] * count, 0)
    response.values.extend([0.0] * count)
    arrays = [v for v in (getattr(response, f.name) for f in dataclasses.fields(response)) if isinstance(v, array)]
    batch = Batch.of([response])
    tensors = [v for v in (getattr(batch, f.name) for f in dataclasses.fields(batch)) if isinstance(v, torch.Tensor)]
    tensors += batch.sequences
    own = sum(len(a) * a.itemsize for a in arrays)
    flat = sum(t.nbytes for t in tensors if len(t) >= count)
    return round((own + flat) / count) + STEP_BYTES


def _row(prompt: int) -> int:
    return ROW_BYTES + prompt * PROMPT_TOKEN_BYTES


def _new_tokens(config: RunConfig) -> tuple[int, tuple[str, ...]]:
    """Of each response in a round of training, and the field that says so."""
    cap = config.rollout.max_response_tokens
    if config.window < cap:
        return config.window, ("algorithm.window",)
    return cap, ("rollout.max_response_tokens",)


def _in_flight(config: RunConfig, prompt: int) -> Need:
    slots, (new, why) = config.rollout.slots, _new_tokens(config)
    size = slots * (_row(prompt) + new * token_bytes())
    return Need(f"{slots} responses in flight with {new} new tokens each", size, ("rollout.slots", *why), "training")


def _evaluated(config: RunConfig, prompt: int) -> Need:
    e, cap = config.evaluation, config.rollout.max_response_tokens
    size = e.problems * e.samples * (_row(prompt) + cap * ANSWER_TOKEN_BYTES)
    return Need(
        f"an evaluation of {e.problems} problems with {e.samples} responses of {cap} tokens each", size,
        ("evaluation.problems", "evaluation.samples", "rollout.max_response_tokens"), "evaluation",
    )  # fmt: skip


def _embedded(config: RunConfig, prompt: int, known: Sizes | None, ranks: int) -> list[Need]:
    """Arrays and the cache of keys and values, allocated whole for the rows of one turn."""
    e, cap, (new, why) = config.evaluation, config.rollout.max_response_tokens, _new_tokens(config)
    cache = 0 if known is None else 2 * known.layers * known.keys * FLOAT32
    found = []
    for moment, rows, tokens, fields, more in (
        ("training", config.rollout.slots, new, why, "rollout.slots"),
        ("evaluation", e.problems * e.samples, cap, ("rollout.max_response_tokens",), "evaluation.problems"),
    ):
        at_once = min(EMBEDDED_ROWS, -(-rows // ranks))
        fields += () if at_once == EMBEDDED_ROWS else (more,)  # more rows would be served in turns
        size = at_once * (tokens * DRAWN_TOKEN_BYTES + (prompt + tokens) * cache)
        what = f"the embedded engine with {at_once} rows of {prompt + tokens} tokens"
        found.append(Need(what, size, fields, moment, on_device=True))  # type: ignore[arg-type]
    return found


def _weights(config: RunConfig, known: Sizes, ranks: int, generates: bool) -> list[Need]:
    """Of every network in float32, with gradients and two moments where it is trained, and of the engine's copy."""
    if config.compute.cpu_offload:
        return []
    parts = config.algorithm.parts(config.rollout)
    trained = bool(parts.terms) + sum(aux.optimizer is not None for aux in parts.auxiliaries)
    frozen = 1 + len(parts.auxiliaries) - trained
    size = known.numbers * FLOAT32 * (4 * trained + frozen) / ranks
    size += known.numbers * FLOAT32 if generates and config.engine == "torch" else 0
    what = f"{trained + frozen} networks of {known.numbers} weights in training"
    return [Need(what, size, config.task.model_fields, on_device=True)]
