"""Schedules of rollouts: which response each slot holds and how many tokens it gets, step by step. No seconds here.

Suffix: _S slots.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sim.clock.lengths import Lengths
from sim.clock.serving import Bools, DecodeTrace, Ints, Limits, serve, tokens_by


@dataclass(frozen=True)
class Task:
    """lengths: of responses. slots: responses in flight in a step. prompt_tokens: of every prompt."""

    lengths: Lengths
    slots: int
    prompt_tokens: int = 256

    def __post_init__(self) -> None:
        if self.slots < 1 or self.prompt_tokens < 1:
            raise ValueError(f"Task: found {self.slots} slots, {self.prompt_tokens} prompt tokens; expected 1 or more.")


@dataclass(frozen=True)
class PPO:
    """Every response is generated to its end, and then all are trained on."""


@dataclass(frozen=True)
class TPPO:
    """At most ``window`` tokens a step for every slot; finished responses leave (arXiv 2506.15050).

    ignore_last: the newest tokens of an unfinished response that do not train. reread: training reads a response from
    its first token in each of its windows, as every trainer does that keeps no keys and values; False prices an ideal
    one that reads each token once, a bound.
    """

    window: int
    ignore_last: int = 0
    reread: bool = True

    def __post_init__(self) -> None:
        if not self.window > self.ignore_last >= 0:
            raise ValueError(f"TPPO.window: found {self.window}; expected more than ignore_last ({self.ignore_last}).")


@dataclass(frozen=True)
class Partial:
    """Generation stops when ``finish`` responses are done, which are trained on whole; the rest is carried over.

    Partial rollouts of Kimi k1.5 (arXiv 2501.12599) in their simplest form. ``finish`` equal to the slots is PPO.
    """

    finish: int

    def __post_init__(self) -> None:
        if self.finish < 1:
            raise ValueError(f"Partial.finish: found {self.finish}; expected 1 or more responses.")


Schedule = PPO | TPPO | Partial


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a schedule. uid_S: responses. length_S: their final lengths. start_S: tokens there before the step.
    new_S: tokens of this step; 0 where the engine never came to it. trained_S: tokens that train the policy.
    """

    uid_S: Ints
    length_S: Ints
    start_S: Ints
    new_S: Ints
    trained_S: Ints

    @property
    def done_S(self) -> Bools:
        """Finished in this step."""
        return self.start_S + self.new_S == self.length_S


def rollout(
    schedule: Schedule,
    task: Task,
    *,
    limits: Limits | None = None,
    replicas: int = 1,
    seed: int = 0,
    equilibrium: bool = True,
) -> Iterator[Step]:
    """Steps of a schedule, without end.

    limits, replicas: of the engines, among which the slots are dealt; only `Partial` needs to know.
    equilibrium: begin T-PPO with slots as they are found long after the start of a run; otherwise all are new.
    """
    rng = np.random.default_rng(seed)
    n, lengths = task.slots, task.lengths
    if isinstance(schedule, Partial) and schedule.finish > n:
        raise ValueError(f"Partial.finish: found {schedule.finish}; expected at most the slots ({n}).")
    uid_S = np.arange(n)
    if isinstance(schedule, TPPO) and equilibrium:
        length_S, start_S = lengths.draw_in_flight(rng, n, schedule.window)
    else:
        length_S, start_S = lengths.draw(rng, n), np.zeros(n, dtype=np.int64)
    opened = n
    while True:
        left_S = length_S - start_S
        match schedule:
            case PPO():
                new_S = trained_S = left_S
            case TPPO():
                new_S = np.minimum(left_S, schedule.window)
                trained_S = np.where(new_S < left_S, new_S - np.minimum(new_S, schedule.ignore_last), new_S)
            case Partial():
                new_S = _until(schedule.finish, start_S + task.prompt_tokens, left_S, limits, replicas)
                trained_S = np.where(new_S == left_S, length_S, 0)
        step = Step(uid_S, length_S, start_S, new_S, trained_S)
        yield step
        stay = ~step.done_S
        fresh = n - int(stay.sum())
        uid_S = np.concatenate([uid_S[stay], np.arange(opened, opened + fresh)])
        length_S = np.concatenate([length_S[stay], lengths.draw(rng, fresh)])
        start_S = np.concatenate([(start_S + new_S)[stay], np.zeros(fresh, dtype=np.int64)])
        opened += fresh


def _until(finish: int, context_S: Ints, left_S: Ints, limits: Limits | None, replicas: int) -> Ints:
    """New tokens when ``finish`` responses are done. Replicas keep the same count of decode steps."""
    done_at_S = np.zeros_like(left_S)
    for part in shares(len(left_S), replicas):
        done_at_S[part] = serve(context_S[part], left_S[part], limits)[1]
    return tokens_by(int(np.sort(done_at_S)[finish - 1]), done_at_S, left_S)


def shares(count: int, replicas: int) -> list[slice]:
    """The slots of each replica. Carried rows come first, so dealing in turns shares them out evenly."""
    return [slice(first, None, replicas) for first in range(min(replicas, count))]


def trace_of(step: Step, task: Task, limits: Limits | None = None) -> tuple[Ints, DecodeTrace]:
    """Contexts and trace of a step on one replica, for engines with counted calls (`sim.clock.roofline.features`)."""
    context_S = task.prompt_tokens + step.start_S
    return context_S, serve(context_S, step.new_S, limits)[0]
