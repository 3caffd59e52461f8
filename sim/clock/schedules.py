"""Schedules of rollouts: which response each slot holds and how many tokens it gets, step by step. No seconds here.

A `Schedule` answers three questions about every step: how many new tokens each response gets, how many of its tokens
train after it, and which sequences training reads for that.

Shape suffix: _S slots.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sim.clock.lengths import Bools, Ints, Lengths
from sim.clock.serving import DecodeTrace, Limits, serve, tokens_by


@dataclass(frozen=True)
class Task:
    """What a run generates."""

    lengths: Lengths  # of responses
    slots: int  # responses in flight in a step
    prompt_tokens: int = 256  # of every prompt

    def __post_init__(self) -> None:
        if self.slots < 1 or self.prompt_tokens < 1:
            raise ValueError(f"Task: found {self.slots} slots, {self.prompt_tokens} prompt tokens; expected 1 or more.")


@dataclass(frozen=True, eq=False)
class InFlight:
    """The responses in the slots before a step."""

    uid_S: Ints  # [S] number of the response, counted in the order in which responses begin
    length_S: Ints  # [S] final length [token]
    start_S: Ints  # [S] tokens there already [token]

    @property
    def left_S(self) -> Ints:
        """[S] tokens that are still to be generated."""
        return self.length_S - self.start_S


@dataclass(frozen=True, eq=False)
class Step(InFlight):
    """One step of a schedule."""

    new_S: Ints  # [S] tokens generated in this step; 0 where the engine never came to the response
    trained_S: Ints  # [S] tokens that train the policy after it

    @property
    def done_S(self) -> Bools:
        """[S] whether the response finishes in this step."""
        return self.start_S + self.new_S == self.length_S


@dataclass(frozen=True)
class Engines:
    """The engines among which the slots are dealt, all alike."""

    limits: Limits | None = None  # of each engine; None is without limits
    replicas: int = 1


class Schedule(Protocol):
    """What a step generates, what trains after it, and what training reads."""

    def begin(self, task: Task, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """[S] final length and tokens there already of each response, long after the start of a run."""

    def new(self, before: InFlight, task: Task, engines: Engines) -> Ints:
        """[S] tokens that each response gets in this step."""

    def trains(self, before: InFlight, new_S: Ints) -> Ints:
        """[S] tokens of each response that train the policy after this step."""

    def rereads(self, step: Step, task: Task) -> Ints:
        """[sequences] length of each sequence that a pass of the policy's training reads after this step."""


@dataclass(frozen=True)
class PPO:
    """Every response is generated to its end, and then all are trained on."""

    def begin(self, task: Task, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Every step begins with new responses only."""
        return all_new(task, rng)

    def new(self, before: InFlight, task: Task, engines: Engines) -> Ints:
        """Every response is generated to its end."""
        return before.left_S

    def trains(self, before: InFlight, new_S: Ints) -> Ints:
        """Every generated token trains."""
        return new_S

    def rereads(self, step: Step, task: Task) -> Ints:
        """Training reads every response with its prompt."""
        return finished(step, task)


@dataclass(frozen=True)
class TPPO:
    """At most ``window`` tokens a step for every slot; finished responses leave (arXiv 2506.15050)."""

    window: int  # most new tokens of a response in a step
    ignore_last: int = 0  # the newest tokens of an unfinished response, which do not train
    # Training reads a response from its first token in each of its windows, as every trainer does that keeps no keys
    # and values; False prices an ideal trainer that reads each token once, a bound.
    reread: bool = True

    def __post_init__(self) -> None:
        if not self.window > self.ignore_last >= 0:
            raise ValueError(f"TPPO.window: found {self.window}; expected more than ignore_last ({self.ignore_last}).")

    def begin(self, task: Task, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Each response has a whole number of windows behind it, drawn from the equilibrium of its slot."""
        return task.lengths.draw_in_flight(rng, task.slots, self.window)

    def new(self, before: InFlight, task: Task, engines: Engines) -> Ints:
        """Each response gets the rest of its tokens, but at most a window."""
        return np.minimum(before.left_S, self.window)

    def trains(self, before: InFlight, new_S: Ints) -> Ints:
        """All new tokens train but the last ones of a response that goes on."""
        return np.where(new_S < before.left_S, new_S - np.minimum(new_S, self.ignore_last), new_S)

    def rereads(self, step: Step, task: Task) -> Ints:
        """Training reads every response with its prompt; the ideal trainer reads prompts and new tokens only."""
        sequence_S = task.prompt_tokens + step.start_S + step.new_S
        return sequence_S if self.reread else np.where(step.start_S > 0, step.new_S, sequence_S)


@dataclass(frozen=True)
class Partial:
    """Generation stops when ``finish`` responses are done, which are trained on whole; the rest is carried over.

    Partial rollouts of Kimi k1.5 (arXiv 2501.12599) in their simplest form. ``finish`` equal to the slots is PPO.
    """

    finish: int

    def __post_init__(self) -> None:
        if self.finish < 1:
            raise ValueError(f"Partial.finish: found {self.finish}; expected 1 or more responses.")

    def begin(self, task: Task, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """All responses are new; the equilibrium has no closed form, so a simulation needs warm-up steps."""
        return all_new(task, rng)

    def new(self, before: InFlight, task: Task, engines: Engines) -> Ints:
        """Generation stops with the decode step in which enough responses are done, the same one on all replicas."""
        slots = len(before.uid_S)
        if self.finish > slots:
            raise ValueError(f"Partial.finish: found {self.finish}; expected at most the slots ({slots}).")
        context_S, left_S = task.prompt_tokens + before.start_S, before.left_S
        done_at_S = np.zeros_like(left_S)
        for part in shares(slots, engines.replicas):
            done_at_S[part] = serve(context_S[part], left_S[part], engines.limits)[1]
        return tokens_by(int(np.sort(done_at_S)[self.finish - 1]), done_at_S, left_S)

    def trains(self, before: InFlight, new_S: Ints) -> Ints:
        """All tokens of a response train when it finishes."""
        return np.where(new_S == before.left_S, before.length_S, 0)

    def rereads(self, step: Step, task: Task) -> Ints:
        """Training reads the finished responses with their prompts."""
        return finished(step, task)


def schedule_of(window: int | None, ignore_last: int = 0) -> Schedule:
    """The schedule of an algorithm with this window.

    Args:
        window: most new tokens of a response in a step; None generates whole responses.
        ignore_last: newest tokens of an unfinished response that do not train; whole responses have none.

    >>> schedule_of(None, 8), schedule_of(64, 8)
    (PPO(), TPPO(window=64, ignore_last=8, reread=True))
    """
    return PPO() if window is None else TPPO(window, ignore_last)


def all_new(task: Task, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """[S] final length and tokens there already of each response when none has begun."""
    return task.lengths.draw(rng, task.slots), np.zeros(task.slots, dtype=np.int64)


def finished(step: Step, task: Task) -> Ints:
    """[sequences] length of each sequence that finishes in a step, prompt and response."""
    return (task.prompt_tokens + step.length_S)[step.done_S]


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

    Args:
        limits: of each engine.
        replicas: engines among which the slots are dealt.
        equilibrium: begin with slots as they are found long after the start of a run; otherwise all are new.
    """
    rng = np.random.default_rng(seed)
    engines = Engines(limits, replicas)
    length_S, start_S = schedule.begin(task, rng) if equilibrium else all_new(task, rng)
    before = InFlight(np.arange(task.slots), length_S, start_S)
    opened = task.slots
    while True:
        new_S = schedule.new(before, task, engines)
        step = Step(before.uid_S, before.length_S, before.start_S, new_S, schedule.trains(before, new_S))
        yield step
        stay = ~step.done_S
        fresh = task.slots - int(stay.sum())
        before = InFlight(
            np.concatenate([step.uid_S[stay], np.arange(opened, opened + fresh)]),
            np.concatenate([step.length_S[stay], task.lengths.draw(rng, fresh)]),
            np.concatenate([(step.start_S + new_S)[stay], np.zeros(fresh, dtype=np.int64)]),
        )
        opened += fresh


def shares(count: int, replicas: int) -> list[slice]:
    """The slots of each replica. Carried responses come first, so dealing in turns shares them out evenly."""
    return [slice(first, None, replicas) for first in range(min(replicas, count))]


def trace_of(step: Step, task: Task, limits: Limits | None = None) -> tuple[Ints, DecodeTrace]:
    """Contexts [S] and decode trace of a step on one replica, which is what `sim.clock.fitted` counts."""
    context_S = task.prompt_tokens + step.start_S
    return context_S, serve(context_S, step.new_S, limits)[0]
