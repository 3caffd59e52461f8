"""Whether a model does what this library computes with it: asked once, of the loaded weights.

Trainer and embedded engine call the body of a model and its output layer apart, with caches and packed rows of their
own. What a model does besides (a scale or a cap of its logits, a sliding window, dropout) would be left out in silence:
the two agree with each other. So the model's own forward pass is the judge, and what differs is refused by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tppo.errors import ConfigError

TOKENS = 24
"""Length of the row that is compared."""
LOUD = 60.0
"""Largest logit during the comparison: a soft cap does nothing to small ones, which the first steps may have."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Largest difference as a share of the largest entry."""


def without_dropout(model: nn.Module) -> None:
    """Set every dropout to zero. Old and new log-probabilities must be those of one policy, in training mode too, which
    activation checkpoints need.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(module, name, 0.0)
    config = getattr(model, "config", None)
    for name, value in list(vars(config).items()) if config is not None else ():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)


def check_attention(config: Any, longest: int | None) -> None:
    """Raise ConfigError for a layer that does not look at every position of a row.

    longest: prompt and response together [tokens]; None is as long as the model can.
    """
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ConfigError(
            "model.layer_types",
            sorted(kinds),
            "full_attention in every layer",
            "the static cache keeps every position; use another engine for sliding-window or recurrent layers",
        )
    if getattr(config, "layer_types", None):
        return  # it says of each layer what it is; sliding_window is for those that slide
    window = getattr(config, "sliding_window", None)
    reach = longest or getattr(config, "max_position_embeddings", None)
    if window and getattr(config, "use_sliding_window", True) and (reach is None or window < reach):
        raise ConfigError(
            "model.sliding_window",
            window,
            f"at least the longest prompt and response together ({reach} tokens)",
            "the cache of this library keeps every position: shorten the response, or take a model with full attention",
        )


@torch.no_grad()
def check_forward(policy: Any, *, decodes: bool, packed: bool) -> None:
    """Raise ConfigError where this library's logits are not those of the model's own forward pass.

    policy: a TransformerPolicy. It is asked in evaluation mode, for one that recomputes activations keeps no cache
    while it trains. decodes: also compare decoding token by token (with whole weights only). packed: also compare
    packed rows.
    """
    training = policy.training
    policy.eval()
    try:
        _compare(policy, decodes=decodes, packed=packed)
    finally:
        policy.train(training)


def _compare(policy: Any, *, decodes: bool, packed: bool) -> None:
    weight = next(policy.parameters())
    tolerance = TOLERANCE.get(weight.dtype, 0.05)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(policy.vocab_size, (1, TOKENS), generator=generator).to(weight.device)
    with _loud(policy, ids):
        own = policy(lambda p: p.hugging_face(input_ids=ids, use_cache=False).logits[0].float())
        ours = policy(lambda p: p.logits(p.hidden(ids)[0]).float())
    kind = type(policy.hugging_face).__name__
    if not bool(own.isfinite().all()):
        raise ConfigError("model", kind, "finite logits", "its own forward pass gives NaN or infinity")
    if _apart(ours, own) > tolerance:
        raise ConfigError(
            "model",
            kind,
            "a model whose logits are its output layer applied to its body's states",
            f"its own forward pass differs by {_apart(ours, own):.0%} (a scale or cap of the logits, {_hints(policy)})",
        )
    hidden = policy(lambda p: p.hidden(ids)[0].float())
    if packed:
        pack = policy(lambda p: p.packed_hidden(torch.cat((ids[0], ids[0, :9])), (TOKENS, 9)).float())
        if _apart(pack, torch.cat((hidden, hidden[:9]))) > tolerance:
            raise ConfigError("compute.packed", True, f"False: packed rows of {kind} differ from rows by themselves")
    if decodes:
        state = policy.decode_state(1, TOKENS)
        steps = [state.prefill(ids[:, :9], torch.tensor([9], device=ids.device), 0)]
        steps += [state.step(ids[:, t]) for t in range(9, TOKENS)]
        if _apart(torch.cat(steps).float(), hidden[8:]) > tolerance:
            raise ConfigError(
                "engine", "torch", f"'vllm' for {kind}", "decoding with a cache differs from its forward pass"
            )


@contextlib.contextmanager
def _loud(policy: Any, ids: torch.Tensor) -> Iterator[None]:
    """Make the output layer's logits large for a while."""
    layer = policy.hugging_face.get_output_embeddings()
    largest = policy(lambda p: p.logits(p.hidden(ids)[0]).float()).abs().max().item()
    factor = LOUD / max(largest, 1e-6)
    handle = layer.register_forward_hook(lambda module, args, out: out * factor)
    try:
        yield
    finally:
        handle.remove()


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference as a share of the largest entry; infinite where something is not a number."""
    found = float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))
    return found if found == found else float("inf")


def _hints(policy: Any) -> str:
    """What the configuration says that could be the reason."""
    config = policy.hugging_face.config
    names = (
        "logits_scaling",
        "logit_scale",
        "final_logit_softcapping",
        "output_multiplier_scale",
        "lm_head_multiplier",
    )
    found = [f"{name} = {value}" for name in names if (value := getattr(config, name, None)) is not None]
    return ", ".join(found) or "see its configuration"
