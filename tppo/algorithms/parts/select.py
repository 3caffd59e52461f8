"""Which responses train in a step. Each function judges all members of one group at a time.

"now" trains the members that have a token, and lets those that have ended leave; "wait" keeps those that have ended
outside the slots until their group is complete; "drop" forgets the group.
"""

from __future__ import annotations

from collections.abc import Sequence

from tppo.algorithms.base import Verdict
from tppo.types import Response


def every_window(group: Sequence[Response], version: int) -> Verdict:
    """Whatever was generated trains at once (T-PPO, arXiv 2506.15050)."""
    return "now"


def whole_group(group: Sequence[Response], version: int) -> Verdict:
    """A group trains when all its members have ended. Beside a window this is partial rollout."""
    return "now" if all(r.status.finished for r in group) else "wait"


def mixed_group(group: Sequence[Response], version: int) -> Verdict:
    """Whole groups with a right and a wrong answer; others have no signal (dynamic sampling, DAPO, 2503.14476)."""
    if not all(r.status.finished for r in group):
        return "wait"
    right = sum((r.reward or 0.0) > 0 for r in group)
    return "now" if 0 < right < len(group) else "drop"
