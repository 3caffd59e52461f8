"""Model folders in the Hugging Face format: what must be in them, and loading policy, critic and tokenizer.

Weights are read from safetensors only, and no code from a model folder is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tppo.errors import ConfigError


def check_folder(folder: Path) -> dict[str, Any]:
    """The config of a complete model folder. Raises ConfigError that names every missing piece."""
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
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
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
    found = check_folder(folder).get("max_position_embeddings")
    return int(found) if found else None


def load_causal_lm(folder: Path, dtype: Any = None) -> Any:
    """A causal language model in ``dtype`` (float32 if None). Raises ConfigError for a folder that cannot be loaded."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    check_folder(folder)
    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        said = str(error).strip().splitlines()[0]
        raise ConfigError("model", str(folder), "a causal language model that transformers loads", said) from error


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer. Raises ConfigError when it cannot be loaded or has no end token: no response could ever end."""
    from transformers import AutoTokenizer

    check_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        said = str(error).strip().splitlines()[0]
        raise ConfigError("model", str(folder), "a tokenizer that transformers loads", said) from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "model.tokenizer.eos_token", None, f"an end token in the tokenizer of {folder}", "set it and save it again"
        )
    return tokenizer


def end_tokens(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Token ids that end a response: the tokenizer's, and those that the model's generation config adds."""
    ids: set[int] = {int(tokenizer.eos_token_id)}
    path = folder / "generation_config.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        ids |= {int(i) for i in (found if isinstance(found, list) else [found]) if i is not None}
    return frozenset(ids)


def chat_text(tokenizer: Any, turns: Sequence[tuple[str, str]]) -> str:
    """The chat template over (role, content) turns, ending where the model is to answer. ConfigError without one."""
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError("model.tokenizer.chat_template", None, "a chat template", "or a prompt that is plain text")
    messages = [{"role": role, "content": content} for role, content in turns]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
