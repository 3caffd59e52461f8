"""What a task hands to the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tppo.grading.reward import Reward
from tppo.models.base import CriticModel, PolicyModel
from tppo.types import Prompt


def _nothing(policy: PolicyModel) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Workload:
    """policy, critic: to be trained. prompts: ``prompts(i)`` is the i-th training prompt, always the same.
    held_out: ``held_out(i)``, problems never trained on. reward: see ``tppo.grading.reward``. decode: token ids to the
    text the reward reads. stop_ids: tokens that end a response. save, load: the policy's weights to and from a folder.
    report: task-specific figures about a policy, for the summary (exact returns, for example).
    fill: gives a policy or critic its first weights, for models handed over without (on the "meta" device), so that
    no process ever holds more of them than its share; None where they have them. folder: the policy's first weights as
    a Hugging Face folder, for an engine that starts from one. reference: what a KL penalty pulls towards.
    """

    policy: PolicyModel
    critic: CriticModel
    prompts: Callable[[int], Prompt]
    held_out: Callable[[int], Prompt]
    reward: Reward
    decode: Callable[[Sequence[int]], str]
    stop_ids: frozenset[int]
    save: Callable[[PolicyModel, Path], None]
    load: Callable[[PolicyModel, Path], None]
    report: Callable[[PolicyModel], dict[str, Any]] = field(default=_nothing)
    fill: Callable[[PolicyModel | CriticModel], None] | None = None
    folder: Path | None = None
    reference: PolicyModel | None = None
