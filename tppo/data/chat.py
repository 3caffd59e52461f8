"""How a language model is asked and understood: its tokenizer, its chat template, the tokens that end a response."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tppo.data.templates import Template, Turn, largest_token
from tppo.errors import ConfigError, DataError
from tppo.models.contents import check_model_folder, check_regular, read_object, read_text
from tppo.models.folder import first_line, read_config

STARTED = "tppo_started"
"""Entry of tokenizer_config.json: the moment that prompts of this model were written with, of a template that asks."""
PLAIN = "--task.no-chat in training, --no-chat in an evaluation: the question alone is then the prompt"


class ChatTokenizer:
    """Prompts for a model, and text from its tokens. Raises ConfigError as `load_tokenizer`.

    before: turns of the conversation before every question, such as a system message or a worked example.
    chat: through the chat template; False is plain text, the question alone.
    moment: what a template takes for now, in ISO 8601; empty is the folder's own, or else this moment. It stands still,
    so that a prompt is the same whenever it is asked for.
    """

    def __init__(self, folder: Path, before: Sequence[Turn] = (), *, chat: bool = True, moment: str = "") -> None:
        self.tokenizer = load_tokenizer(folder)
        self.before, self.chat = tuple(before), chat
        self.stop_ids = end_tokens(folder, self.tokenizer)
        self.moment = moment or stored_moment(folder) or now()
        self._template = template_of(self.tokenizer, self.moment) if chat else None
        self._prepared: dict[str, str] = {}
        if self._template is not None:  # a template that fails, fails before any work
            self._template.render(self.before, ["What is 1 + 1?"])
        elif self.before:
            raise ConfigError("chat", False, "True with turns before the question", "plain text has no turns")

    def encode(self, message: str) -> list[int]:
        """Token ids of the conversation that ends with the user's message, up to where the model is to answer.

        Raises ConfigError for a template that does not take it.
        """
        if self._template is None:
            return self._plain(message)
        text = self._prepared.pop(message, None)
        if text is None:
            (text,) = self._template.render(self.before, [message])
        return self._ids(text)  # the chat template has the special tokens

    def prepare(self, messages: Sequence[str]) -> None:
        """Render prompts that `encode` will be asked for, many at a time: ten times faster than one by one.

        Raises ConfigError as `encode`.
        """
        if self._template is not None:
            self._prepared |= zip(messages, self._template.render(self.before, messages), strict=True)

    def _ids(self, text: str, *, special: bool = False) -> list[int]:
        try:
            return list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
        except (TypeError, UnicodeError):
            raise DataError(f"{text[:60]!r}: expected text in Unicode, found half of a surrogate pair") from None

    def _plain(self, text: str) -> list[int]:
        """The text behind what the tokenizer puts in front of every text; an end token behind it would end it."""
        bare, whole = self._ids(text), self._ids(text, special=True)
        ends = (i + len(bare) for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare)
        return whole[: next(ends, len(whole))]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a response that a reward reads: without special tokens and without those that ended it."""
        kept = [token for token in tokens if token not in self.stop_ids]
        return str(self.tokenizer.decode(kept, skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        """Write the tokenizer. A template that asks for the date is given this one again. Raises OSError."""
        if self._template is not None and "strftime_now" in self._template.source:
            self.tokenizer.init_kwargs[STARTED] = self.moment
        self.tokenizer.save_pretrained(folder)


def now() -> str:
    """This moment, in ISO 8601 to the second."""
    return datetime.now().isoformat(timespec="seconds")


def check_moment(field: str, moment: Any) -> None:
    """Raise ConfigError for text that is neither empty nor a date in ISO 8601.

    >>> check_moment("started", "2026-02-31")
    Traceback (most recent call last):
    ...
    tppo.errors.ConfigError: started = '2026-02-31': expected a date such as 2026-01-31 or 2026-01-31T12:00:00
    """
    try:
        if moment:
            datetime.fromisoformat(moment)
    except (ValueError, TypeError):
        raise ConfigError(field, moment, "a date such as 2026-01-31 or 2026-01-31T12:00:00") from None


def stored_moment(folder: Path) -> str:
    """The moment that `ChatTokenizer.save` wrote down, empty where there is none. Raises ConfigError."""
    path = folder / "tokenizer_config.json"
    found = read_object(path).get(STARTED, "") if path.is_file() else ""
    check_moment(f"model.{STARTED}", found)
    return str(found)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer. Raises ConfigError when it cannot be loaded, has no end token (no response could ever end), or has
    tokens that the model does not know.
    """
    from transformers import AutoTokenizer

    known = check_model_folder(folder).get("vocab_size")
    read_config(folder)
    if (path := folder / "chat_template.jinja").is_symlink() or path.exists():
        read_text(path)
    if (path := folder / "tokenizer.json").is_symlink() or path.exists():
        check_regular(path)
        _check_vocabulary(largest_token(path), known, folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        largest = max(tokenizer.get_vocab().values(), default=0)
        tokenizer.decode(tokenizer("What is 1 + 1?")["input_ids"], skip_special_tokens=True)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        raise ConfigError("model", str(folder), "a tokenizer that transformers loads", first_line(error)) from None
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "model.tokenizer.eos_token", None, f"an end token in the tokenizer of {folder}", "set it and save it again"
        )
    _check_vocabulary(largest, known, folder)
    return tokenizer


def _check_vocabulary(largest: int, known: Any, folder: Path) -> None:
    if isinstance(known, int) and largest >= known:
        raise ConfigError(
            "model.vocab_size", known, f"more than {largest}, the largest token id of the tokenizer in {folder}",
            "the model has no embedding for it: take the tokenizer that belongs to this model",
        )  # fmt: skip


def end_tokens(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Token ids that end a response: the tokenizer's, and those of the model's generation config, or (where there is
    none) of its config, as transformers has it. Raises ConfigError for what is no token.
    """
    ids: set[int] = {int(tokenizer.eos_token_id)}
    path = next((p for p in (folder / "generation_config.json", folder / "config.json") if p.is_file()), None)
    if path is None:
        return frozenset(ids)
    found = read_object(path).get("eos_token_id")
    for i in found if isinstance(found, list) else [found]:
        if i is None:
            continue
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(tokenizer):
            raise ConfigError("model.eos_token_id", found, f"ids of the tokenizer's {len(tokenizer)} tokens, in {path}")
        ids.add(i)
    return frozenset(ids)


def template_of(tokenizer: Any, moment: str) -> Template:
    """The tokenizer's chat template. Raises ConfigError where there is none."""
    where = str(tokenizer.name_or_path)
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError("model.chat_template", None, f"a chat template in {where}", f"or {PLAIN}")
    try:
        source = tokenizer.get_chat_template()
        if not isinstance(source, str):
            raise TypeError(f"it is a {type(source).__name__}")
        return Template(source, json.dumps(tokenizer.special_tokens_map, default=str), moment, where)
    except Exception as error:
        raise ConfigError("model.chat_template", "unreadable", "a chat template", first_line(error)) from None


def chat_text(tokenizer: Any, turns: Sequence[Turn], moment: str = "") -> str:
    """The chat template over (role, content) turns, the last of them the user's. ConfigError without one."""
    *before, (_, question) = turns
    return template_of(tokenizer, moment or now()).render(before, [question])[0]
