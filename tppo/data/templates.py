"""Chat templates and tokenizers of model folders, tried and run under limits of time and memory.

Every prompt of a run is rendered in a worker process, so that a template can neither hang nor end a run, and so that it
says the same whenever it is asked: its clock stands still, and its random numbers begin anew for each prompt.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tppo.errors import ConfigError
from tppo.grading.pool import Result, WorkerPool

SECONDS = 10.0
"""Longest time for a batch of prompts, or to try a tokenizer [s]."""
MEMORY = 3 * 2**30
"""Address space of a worker [bytes]: large tokenizers need more than half of it."""
BATCH = 64
"""Most prompts of one call."""
SAMPLE = "What is 12 + 30? It is 42, of course: \\boxed{42}.\n\n  Zürich, 日本, 🙂 " + "a" * 64 + "!" * 64
"""Text that a tokenizer is tried on."""

Turn = tuple[str, str]
"""(role, content) in a conversation."""


@functools.cache
def _pool(process: int) -> WorkerPool:
    """The workers of this process, made at the first call; they end with it."""
    home = "tppo.data.untrusted"
    return WorkerPool(f"{home}:answer", warm_up=f"{home}:warm_up", seconds=SECONDS, memory=MEMORY)


def _ask(*arguments: Any) -> Result:
    return _pool(os.getpid()).submit(*arguments).result()


@dataclass(frozen=True)
class Template:
    """A chat template. variables: JSON object of what it may name. moment: what it takes for now, in ISO 8601. where:
    what it is from, for messages.

    >>> Template("{% for m in messages %}{{ m.content }};{% endfor %}", "{}", "2026-01-31", "a").render([], ["a", "b"])
    ['a;', 'b;']
    """

    source: str
    variables: str
    moment: str
    where: str

    def render(self, before: Sequence[Turn], questions: Sequence[str]) -> list[str]:
        """The text of each conversation that ends with a question, up to where the model is to answer.

        Raises ConfigError for a template that fails, takes too long or needs too much memory.
        """
        turns = json.dumps([{"role": role, "content": content} for role, content in before])
        texts: list[str] = []
        while len(texts) < len(questions):
            part = json.dumps(list(questions[len(texts) : len(texts) + BATCH]))
            result = _ask("render", self.source, self.variables, self.moment, turns, part)
            if result.verdict != "ok":
                roles = ", ".join([*(role for role, _ in before), "user"])
                raise ConfigError(
                    "model.chat_template", f"turns of {roles}", f"a template in {self.where} that takes them",
                    f"it {said(result)}",
                )  # fmt: skip
            texts += result.value
        return texts


def largest_token(path: Path) -> int:
    """The largest token id of a tokenizer.json. Raises ConfigError for one that its library cannot read, or not within
    the limits.
    """
    status = path.stat()
    result = _tried(str(path), status.st_size, status.st_mtime_ns, os.getpid())
    if result.verdict != "ok":
        raise ConfigError("model", str(path), "a tokenizer that its library reads", f"it {said(result)}")
    return int(result.value)


@functools.lru_cache(maxsize=64)
def _tried(path: str, size: int, changed: int, process: int) -> Result:
    return _ask("try", path, SAMPLE)


def said(result: Result) -> str:
    """How a call ended that did not end well, as the rest of a sentence on one line."""
    detail = " ".join(result.detail.split())[:200]
    return {
        "timeout": f"takes {detail}",
        "memory": f"needs more than {MEMORY // 2**30} GiB of memory",
        "died": f"ends its process ({detail})",
    }.get(result.verdict, f"said: {detail}")
