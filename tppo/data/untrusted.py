"""Programs of a model folder, run in the processes of a `WorkerPool`: its chat template, and its tokenizer once.

A chat template is a program in Jinja's language: it may loop for ever, ask for 10 GB or crash the interpreter. A
tokenizer.json may make its library do the same. Arguments and values are text and numbers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import datetime
from typing import Any

REPLY_CHARACTERS = 4_000_000
"""A reply ends with the conversation that goes beyond this."""
PROMPT_CHARACTERS = 1_000_000
"""Longest prompt."""


def warm_up() -> None:
    """Import what the workers use, before they are forked."""
    import os

    import tokenizers  # noqa: F401
    import transformers.utils.chat_template_utils  # noqa: F401

    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def answer(operation: str, *arguments: Any) -> Any:
    """One call, by the name of its operation."""
    operations: dict[str, Callable[..., Any]] = {"render": render, "try": try_tokenizer}
    return operations[operation](*arguments)


def render(template: str, variables: str, moment: str, before: str, questions: str) -> list[str]:
    """The text of each conversation: the turns before, a question, and the beginning of the answer.

    variables: JSON object, what the template may name besides. moment: the date and time that it takes for now, in
    ISO 8601. before: JSON list of messages. questions: JSON list of texts. There are fewer texts than questions where
    they are long, and at least one; ask again for the rest. Raises whatever the template raises.

    >>> render("{{ strftime_now('%Y') }} {{ messages[0]['content'] }}", "{}", "2026-01-31", "[]", '["1 + 1?"]')
    ['2026 1 + 1?']
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    now, turns = datetime.fromisoformat(moment), json.loads(before)
    given = {**json.loads(variables), "strftime_now": now.strftime}  # before transformers' own, which asks the clock
    texts: list[str] = []
    for question in json.loads(questions):
        random.seed(0)  # Jinja has a filter that draws
        messages = [*turns, {"role": "user", "content": question}]
        (text,), _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **given)
        if len(text) > PROMPT_CHARACTERS:
            raise ValueError(f"it writes {len(text)} characters, more than {PROMPT_CHARACTERS}")
        if not text.strip():
            raise ValueError("it writes nothing")
        text.encode()  # half of a surrogate pair is no text
        texts.append(text)
        if sum(map(len, texts)) > REPLY_CHARACTERS:
            break
    return texts


def try_tokenizer(path: str, text: str) -> int:
    """Read a tokenizer.json, encode and decode a text: its largest token id. Raises whatever the library raises."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_padding()  # as it is used
    tokenizer.decode(tokenizer.encode(text).ids)
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
