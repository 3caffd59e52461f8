"""Problems as prompts: the template filled, encoded, cut off at a length; and an endless stream of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tppo.data.problems import SHOWN, Finding, Problem
from tppo.data.sources import SLOT, OnBadRow
from tppo.errors import ConfigError, DataError
from tppo.types import Prompt


@dataclass(frozen=True)
class PromptReport:
    """Prompts that fit, and what did not."""

    prompts: list[Prompt]
    overlong: Finding
    """Problems whose prompt is longer than the cap."""
    longest: int
    """Of all prompts, those that do not fit included [tokens]."""

    def __str__(self) -> str:
        head = f"{len(self.prompts)} prompts, longest seen {self.longest} tokens"
        return f"{head}\n  overlong: {self.overlong}" if self.overlong.count else head


def to_prompts(
    problems: Sequence[Problem],
    encode: Callable[[str], Sequence[int]],
    *,
    template: str = SLOT,
    max_prompt_tokens: int,
    on_overlong: OnBadRow = "error",
) -> PromptReport:
    """Fill the template, encode, keep what fits. Raises ConfigError for options, DataError for what is left.

    encode: a filled template to token ids, such as ``tppo.data.chat.ChatTokenizer.encode``.
    """
    if template.count(SLOT) != 1:
        raise ConfigError("template", template, f"text with exactly one {SLOT}")
    if isinstance(max_prompt_tokens, bool) or not isinstance(max_prompt_tokens, int) or max_prompt_tokens < 1:
        raise ConfigError("max_prompt_tokens", max_prompt_tokens, "a whole number in [1, inf) [tokens]")
    if on_overlong not in ("error", "drop"):
        raise ConfigError("on_overlong", on_overlong, "one of 'error', 'drop'")
    prompts, lines, longest, example = [], [], 0, ""
    for problem in problems:
        tokens = tuple(encode(template.replace(SLOT, problem.question)))
        if not tokens or not all(isinstance(t, int | np.integer) for t in tokens):
            found = f"{tokens[:3]!r}"
            raise DataError(
                f"{problem.source} line {problem.line}: encode gave {found}; expected token ids, at least one"
            )
        longest = max(longest, len(tokens))
        if len(tokens) > max_prompt_tokens:
            lines.append(problem.line)
            example = example or f"{len(tokens)} tokens where {max_prompt_tokens} fit"
        else:
            ids = tuple(map(int, tokens))
            prompts.append(Prompt(id=problem.id, tokens=ids, truth=problem.answer, source=problem.source))
    report = PromptReport(prompts, Finding(len(lines), tuple(lines[:SHOWN]), example), longest)
    if lines and on_overlong == "error":
        raise DataError(f"{report}\nexpected none; raise max_prompt_tokens, or set on_overlong = 'drop'")
    if not prompts:
        raise DataError(f"{report}\nexpected at least one prompt; raise max_prompt_tokens, or load more problems")
    return report


class PromptStream:
    """An endless order of prompts: ``stream(i)`` is the same prompt whenever it is asked, on every machine.

    Each epoch is a permutation, by the ranks of Philox numbers keyed by (seed, epoch); nothing but the newest epoch is
    kept.

    >>> stream = PromptStream([Prompt(id=name, tokens=(1,)) for name in "abc"], seed=0)
    >>> sorted(stream(i).id for i in range(3, 6))
    ['a', 'b', 'c']
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        if not prompts:
            raise DataError("prompts is empty; expected at least one prompt to stream")
        if not 0 <= seed < 2**63:
            raise ConfigError("seed", seed, "a number in [0, 2**63)")
        self.prompts, self.seed = tuple(prompts), seed
        self._newest = (-1, np.empty(0, dtype=np.int64))

    def __call__(self, index: int) -> Prompt:
        """The prompt at ``index``, from 0."""
        if index < 0:
            raise IndexError(f"index = {index}: expected 0 or more")
        epoch, place = divmod(index, len(self.prompts))
        newest, order = self._newest
        if newest != epoch:
            order = self._order(epoch)
            self._newest = (epoch, order)
        return self.prompts[order[place]]

    def _order(self, epoch: int) -> np.ndarray:
        """Raw numbers and a stable sort: numpy promises both for all its versions, unlike ``permutation``."""
        key = np.array([self.seed, 2**63 + epoch], dtype=np.uint64)  # the upper half: engines use the lower one
        return np.argsort(np.random.Philox(key=key).random_raw(len(self.prompts)), kind="stable")
