"""What a task hands to the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tppo.grading.reward import Reward
from tppo.models.base import CriticModel, Model, PolicyModel
from tppo.types import Prompt


def _nothing(policy: PolicyModel) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Workload:
    """What is trained, on what, and how it is judged."""

    policy: PolicyModel
    """To be trained."""
    critic: Callable[[], CriticModel]
    """Makes the critic that this policy starts with; called by algorithms that have one, once."""
    prompts: Callable[[int], Prompt]
    """``prompts(i)`` is the i-th training prompt, always the same."""
    held_out: Callable[[int], Prompt]
    """``held_out(i)``, problems never trained on."""
    reward: Reward
    """See ``tppo.grading.reward``."""
    decode: Callable[[Sequence[int]], str]
    """Token ids to the text that the reward reads."""
    stop_ids: frozenset[int]
    """Tokens that end a response."""
    save: Callable[[PolicyModel, Path], None]
    """Writes the policy's weights to a folder."""
    load: Callable[[PolicyModel, Path], None]
    """Reads them back."""
    report: Callable[[PolicyModel], dict[str, Any]] = field(default=_nothing)
    """Figures of the task about a policy, for the summary (exact returns, for example)."""
    fill: Callable[[Model], None] | None = None
    """Gives a policy or critic its first weights, for models handed over without (on the "meta" device), so that no
    process ever holds more of them than its share; None where they have them."""
    folder: Path | None = None
    """The policy's first weights as a Hugging Face folder, for an engine that starts from one."""
