"""How a language model is asked and understood: its tokenizer, its chat template, the tokens that end a response."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tppo.errors import ConfigError
from tppo.models.folder import check_model_folder

Turn = tuple[str, str]
"""(role, content) in a conversation."""


class ChatTokenizer:
    """Prompts for a model, and text from its tokens. Raises ConfigError as `load_tokenizer`.

    before: turns of the conversation before every question, such as a system message or a worked example.
    """

    def __init__(self, folder: Path, before: Sequence[Turn] = ()) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.before = tuple(before)
        self.stop_ids = end_tokens(folder, self.tokenizer)

    def encode(self, message: str) -> list[int]:
        """Token ids of the conversation that ends with the user's message, up to where the model is to answer.

        Raises ConfigError for a tokenizer without a chat template.
        """
        text = chat_text(self.tokenizer, [*self.before, ("user", message)])
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # the chat template has them

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a response that a reward reads: without special tokens and without those that ended it."""
        kept = [token for token in tokens if token not in self.stop_ids]
        return str(self.tokenizer.decode(kept, skip_special_tokens=True))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer. Raises ConfigError when it cannot be loaded or has no end token: no response could ever end."""
    from transformers import AutoTokenizer

    check_model_folder(folder)
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
    """Token ids that end a response: the tokenizer's, and those of the model's generation config, or (where there is
    none) of its config, as transformers has it. Raises ConfigError for what is no token.
    """
    ids: set[int] = {int(tokenizer.eos_token_id)}
    path = next((p for p in (folder / "generation_config.json", folder / "config.json") if p.is_file()), None)
    if path is None:
        return frozenset(ids)
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise ConfigError("model", str(path), "a JSON object", str(error)) from None
    for i in found if isinstance(found, list) else [found]:
        if i is None:
            continue
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(tokenizer):
            raise ConfigError("model.eos_token_id", found, f"ids of the tokenizer's {len(tokenizer)} tokens, in {path}")
        ids.add(i)
    return frozenset(ids)


def chat_text(tokenizer: Any, turns: Sequence[Turn]) -> str:
    """The chat template over (role, content) turns, ending where the model is to answer. ConfigError without one."""
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError("model.tokenizer.chat_template", None, "a chat template", "or a prompt that is plain text")
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program of the model's folder, and may raise whatever it likes
        roles = ", ".join(role for role, _ in turns)
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            "model.tokenizer.chat_template", f"turns of {roles}", "turns that the template takes", f"it said: {said}"
        ) from None
