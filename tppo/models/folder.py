"""Model folders in the Hugging Face format: loading policy and critic, and writing them.

Weights are read from safetensors only, and no code from a model folder is ever run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tppo.errors import ConfigError
from tppo.files import write_whole
from tppo.models.contents import check_enough, check_model_folder, check_numbers, stored_weights

LINE = 200
"""Longest message of another library that is quoted [characters]."""
FILE_BYTES = 4 * 2**30
"""Largest weight file that `export` writes."""

if TYPE_CHECKING:
    import torch

    from tppo.models.base import Model, PolicyModel
    from tppo.models.transformer import TransformerCritic, TransformerPolicy
    from tppo.ranks.ranks import Ranks


def read_config(folder: Path) -> Any:
    """The transformers configuration of a model folder, without its weights. Raises ConfigError."""
    from transformers import AutoConfig

    check_model_folder(folder, tokenizer=False, weights=False)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a configuration's own checks and arithmetic raise
        raise ConfigError(
            "model", str(folder / "config.json"), "a configuration that transformers knows", first_line(error)
        ) from None


def first_line(error: BaseException) -> str:
    r"""What an exception says, on one line.

    >>> first_line(ValueError("no such thing:\n  x"))
    'no such thing: x'
    """
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= LINE else said[: LINE - 3] + "..."


def load_causal_lm(folder: Path, dtype: Any = None) -> Any:
    """A causal language model by transformers' own loader, in ``dtype`` (float32 if None). Raises ConfigError."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    _check_weights(folder, empty_causal_lm(folder))
    logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    except Exception as error:
        expected = "a causal language model that transformers loads"
        raise ConfigError("model", str(folder), expected, first_line(error)) from error
    if missing := sorted(info["missing_keys"]):  # transformers would make these up
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise ConfigError("model", str(folder), f"every weight of its config.json; missing: {shown}")
    check_head(folder, model.config)
    check_finite_weights(dict(model.named_parameters()), folder)
    return model


def load_policy(folder: Path, *, dtype: Any, device: Any, longest: int | None) -> TransformerPolicy:
    """A policy for the embedded engine, read and checked as training reads and checks its own. Raises ConfigError.

    longest: prompt and response together [tokens].
    """
    from tppo.models.place import place
    from tppo.ranks.ranks import Ranks

    policy = policy_of(folder, recompute=False, dtype=dtype)
    place(policy, lambda model: fill(model, folder), device, Ranks())
    policy.check(longest=longest, decodes=True, packed=False)
    return policy


def check_head(folder: Path, config: Any) -> None:
    """Raise ConfigError for a tied output layer beside another in the files: readers would differ in which counts."""
    import torch

    from tppo.models.weights import read_weight

    if not getattr(config, "tie_word_embeddings", False):
        return
    head, table = read_weight(folder, "lm_head.weight"), read_weight(folder, "embed_tokens.weight")
    if head is None or table is None or torch.equal(head, table):
        return
    raise ConfigError(
        "model.tie_word_embeddings", True, f"False for {folder}: its files hold an output layer of its own",
        "correct config.json, or take lm_head.weight out of the files",
    )  # fmt: skip


def empty_causal_lm(folder: Path, dtype: Any = None) -> Any:
    """The model of a folder without its weights: shapes only, on the "meta" device, to be filled by `fill`.

    dtype: of its weights; None is float32. Raises ConfigError for what transformers does not know.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    check_model_folder(folder, tokenizer=False)
    config = read_config(folder)
    check_enough(stored_weights(folder), getattr(config, "num_hidden_layers", None), folder)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype or torch.float32, trust_remote_code=False)
    except Exception as error:
        expected = "a configuration of a causal language model that transformers knows"
        raise ConfigError("model", str(folder / "config.json"), expected, first_line(error)) from error
    if (folder / "generation_config.json").is_file():
        try:
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            expected = "a generation config that transformers takes"
            raise ConfigError("model", str(folder / "generation_config.json"), expected, first_line(error)) from None
    return model


def _check_weights(folder: Path, model: Any) -> None:
    """Raise ConfigError where the files cannot hold the weights of a model; before any room is made for them."""
    weights = {id(p): p.numel() for p in model.parameters()}
    check_numbers(stored_weights(folder), sum(weights.values()), folder)


def check_finite_weights(named: Mapping[str, torch.Tensor], source: Path) -> None:
    """Raise ConfigError for a weight that is not finite, by its name. Sharded ones: every rank must call."""
    import torch

    from tppo.ranks.shard import full

    for name, weight in named.items():
        largest = full(torch.linalg.vector_norm(weight.detach(), ord=float("inf")))
        if not bool(torch.isfinite(largest)):
            raise ConfigError("model", str(source), f"finite weights; {name} has {float(largest)}", "it is damaged")


def policy_of(folder: Path, *, recompute: bool, dtype: Any = None) -> TransformerPolicy:
    """The policy of a folder, on the "meta" device. recompute: activations again in the backward pass."""
    model = empty_causal_lm(folder, dtype)
    _check_weights(folder, model)
    policy = as_policy(model, recompute=recompute)
    try:
        with tempfile.TemporaryDirectory() as scratch:  # as `export` does it, after the last step
            _export_settings(policy, Path(scratch))
    except Exception as error:
        expected = "a configuration that transformers writes again"
        raise ConfigError("model", str(folder / "config.json"), expected, first_line(error)) from None
    return policy


def critic_of(folder: Path, *, recompute: bool) -> TransformerCritic:
    """A critic with the body of a folder's model, on the "meta" device."""
    return as_critic(empty_causal_lm(folder), recompute=recompute)


def as_policy(model: Any, *, recompute: bool) -> TransformerPolicy:
    """A policy of a causal language model."""
    from tppo.models.transformer import TransformerPolicy

    return TransformerPolicy(_recomputing(model, recompute))


def as_critic(model: Any, *, recompute: bool) -> TransformerCritic:
    """A critic of the body of a causal language model."""
    from tppo.models.transformer import TransformerCritic

    return TransformerCritic(_recomputing(model.base_model, recompute))


def _recomputing(model: Any, recompute: bool) -> Any:
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    return model


def fill(model: Model, folder: Path) -> None:
    """Weights from a folder's safetensors, straight to where they belong: of a sharded weight each rank reads its part.

    A critic's head becomes zero: V = 0 everywhere. Raises ConfigError when the files have other names or shapes.
    """
    import torch

    from tppo.models.transformer import TransformerCritic, TransformerPolicy
    from tppo.models.weights import read_weights

    assert isinstance(model, TransformerPolicy | TransformerCritic)
    inner = model.hugging_face
    check_head(folder, inner.config)
    if any(p.is_meta for p in model.parameters()):
        raise ValueError("fill: found weights on the meta device; expected a place for them (Module.to_empty)")
    inner.tie_weights()
    with torch.no_grad():
        for module in inner.modules():
            if module._non_persistent_buffers_set:  # rotary frequencies: computed, not stored
                inner._init_weights(module)
    stored_weights(folder)
    try:
        read_weights(folder, model.file_names())
    except (OSError, ValueError, KeyError) as error:
        _fill_through_transformers(model, folder, error)
    check_finite_weights(model.file_names(), folder)
    if isinstance(model, TransformerCritic):
        torch.nn.init.zeros_(model.head.weight)
        torch.nn.init.zeros_(model.head.bias)


def _fill_through_transformers(model: Any, folder: Path, reason: Exception) -> None:
    """For architectures whose files name or cut weights otherwise than the model does (GPT-NeoX, mixtures of experts):
    transformers reads the whole model on every rank, and each keeps its part. Raises ConfigError.
    """
    import torch
    from safetensors import SafetensorError

    from tppo.ranks.shard import put

    try:
        whole = load_causal_lm(folder)
    except (ConfigError, SafetensorError) as error:
        raise ConfigError("model", str(folder), "the weights of its config.json", f"{reason}; {error}") from None
    own = dict(whole.named_parameters())
    with torch.no_grad():
        for name, weight in model.file_names().items():
            if name not in own or own[name].shape != weight.shape:
                raise ConfigError("model", str(folder), "the weights of its config.json", str(reason))
            put(weight, own[name].detach())


def export(policy: PolicyModel, folder: Path, ranks: Ranks) -> None:
    """Write a policy as a Hugging Face folder, whatever it is sharded over; every rank must call, rank 0 writes.

    One file is in memory at a time, at most ``FILE_BYTES`` and one weight long. Raises OSError, ValueError.
    """
    from safetensors.torch import save_file

    from tppo.models.transformer import TransformerPolicy
    from tppo.ranks.shard import full_weights

    assert isinstance(policy, TransformerPolicy)
    main = ranks.main
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        _export_settings(policy, folder)
    files: list[dict[str, Any]] = [{}]
    sizes, weight_map = [0], dict[str, str]()

    def write() -> None:
        name = f".part-{len(files):05d}.safetensors"
        save_file(files[-1], folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(files[-1], name))
        files[-1] = {}

    for name, tensor in full_weights(policy.file_names().items()):
        size = tensor.numel() * tensor.element_size()
        if main:
            if files[-1] and sizes[-1] + size > FILE_BYTES:
                write()
                files.append({})
                sizes.append(0)
            files[-1][name] = tensor.cpu().contiguous()
            sizes[-1] += size
    if main:
        write()
        _name_parts(folder, weight_map, len(files), sum(sizes))
    ranks.barrier()


def _export_settings(policy: TransformerPolicy, folder: Path) -> None:
    model = policy.hugging_face
    model.config.save_pretrained(folder)
    if model.can_generate():
        # As it was: transformers refuses to save what it accepts, such as a temperature without sampling.
        write_whole(folder / "generation_config.json", model.generation_config.to_json_string(use_diff=True) + "\n")


def _name_parts(folder: Path, weight_map: dict[str, str], count: int, size: int) -> None:
    """The names that transformers and vLLM look for, known once it is known how many files there are."""
    names = {
        f".part-{i:05d}.safetensors": "model.safetensors" if count == 1 else f"model-{i:05d}-of-{count:05d}.safetensors"
        for i in range(1, count + 1)
    }
    for part, name in names.items():
        (folder / part).replace(folder / name)
    if count > 1:
        index = {"metadata": {"total_size": size}, "weight_map": {w: names[part] for w, part in weight_map.items()}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
