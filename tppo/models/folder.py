"""Model folders in the Hugging Face format: what must be in them, and loading policy and critic.

Weights are read from safetensors only, and no code from a model folder is ever run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tppo.errors import ConfigError
from tppo.files import write_whole

FILE_BYTES = 4 * 2**30
"""Largest weight file that `export` writes."""

if TYPE_CHECKING:
    from tppo.models.base import Model, PolicyModel
    from tppo.models.transformer import TransformerCritic, TransformerPolicy
    from tppo.ranks.ranks import Ranks


def check_model_folder(folder: Path, *, tokenizer: bool = True) -> dict[str, Any]:
    """The config of a complete model folder. Raises ConfigError that names every missing piece.

    tokenizer: whether one is needed.
    """
    if not folder.is_dir():
        raise ConfigError("model", str(folder), "an existing folder with a model", "or a known name")
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError("model", str(index), "an index of weights", f"{type(error).__name__}: {error}") from None
        missing += [name for name in shards if not (folder / name).is_file()]
    elif not (folder / "model.safetensors").is_file():
        missing.append("model.safetensors")
    if tokenizer and not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        missing.append("tokenizer.json")
    if missing:
        shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
        raise ConfigError("model", str(folder), f"a complete model folder; missing: {shown}", "download it again")
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise TypeError(f"it holds a {type(config).__name__}")
    except (ValueError, TypeError) as error:
        raise ConfigError("model", str(folder / "config.json"), "a JSON object", str(error)) from None
    return config


def context_length(folder: Path) -> int | None:
    """Positions of the model [tokens], or None when its config does not say."""
    found = check_model_folder(folder).get("max_position_embeddings")
    return int(found) if found else None


def load_causal_lm(folder: Path, dtype: Any = None) -> Any:
    """A causal language model in ``dtype`` (float32 if None). Raises ConfigError for a folder that cannot be loaded."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    check_model_folder(folder, tokenizer=False)
    logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError("model", str(folder), "a causal language model that transformers loads", said) from error
    if missing := sorted(info["missing_keys"]):  # transformers would make these up
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise ConfigError("model", str(folder), f"every weight of its config.json; missing: {shown}")
    check_head(folder, model.config)
    return model


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


def empty_causal_lm(folder: Path) -> Any:
    """The model of a folder without its weights: shapes only, on the "meta" device, to be filled by `fill`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    check_model_folder(folder, tokenizer=False)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        said = str(error).strip().splitlines()[0]
        raise ConfigError("model", str(folder), "a causal language model that transformers knows", said) from error
    return model


def policy_of(folder: Path, *, recompute: bool) -> TransformerPolicy:
    """The policy of a folder, on the "meta" device. recompute: activations again in the backward pass."""
    return as_policy(empty_causal_lm(folder), recompute=recompute)


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
    try:
        read_weights(folder, model.file_names())
    except (OSError, ValueError, KeyError) as error:
        _fill_through_transformers(model, folder, error)
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
    model, main = policy.hugging_face, ranks.main
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        model.config.save_pretrained(folder)
        if model.can_generate():
            # As it was: transformers refuses to save what it accepts, such as a temperature without sampling.
            write_whole(folder / "generation_config.json", model.generation_config.to_json_string(use_diff=True) + "\n")
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
