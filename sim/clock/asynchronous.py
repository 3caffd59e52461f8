"""The clock of asynchronous rollouts: engines never wait for a batch, training runs beside them on other accelerators.

Bounded staleness as in AReaL (arXiv 2505.24298): a response may begin while (responses begun before it) // batch is at
most version + staleness. That bounds how far generation runs ahead; a long response can still be older than that when
it is trained on, which the report says. When training ends, the engines take the new weights between two decode steps
and prefill everything in flight again. With staleness 0 nothing overlaps, and the schedule is PPO on two sets of
accelerators.
"""

from dataclasses import dataclass

import numpy as np

from sim.clock.lengths import Ints
from sim.clock.roofline import GenerationCost, TrainingCost
from sim.clock.schedules import Task
from sim.clock.serving import DecodeTrace
from sim.clock.simulate import Machine


@dataclass(frozen=True)
class AsyncReport:
    """What asynchronous rollouts cost, over the counted updates."""

    seconds: float  # mean time from one update to the next [s]
    responses: int  # responses trained in each update
    tokens: float  # mean tokens trained in an update
    generating: float  # share of time in which the engines prefill or decode
    training: float  # share of time in which the trainer works
    staleness: float  # mean number of updates between the version that began a response and the one that trained on it
    stalest: int  # the largest such number

    @property
    def trained_per_second(self) -> float:
        """Tokens that train the policy a second."""
        return self.tokens / self.seconds


@dataclass
class _Row:
    """One response."""

    uid: int
    length: int  # final length [token]
    done: int = 0  # tokens there already
    version: int = 0  # policy version that began it


def simulate_async(
    task: Task,
    machine: Machine,
    trainer: TrainingCost,
    *,
    batch: int,
    staleness: int,
    updates: int = 12,
    warmup: int = 4,
    seed: int = 0,
) -> AsyncReport:
    """Simulate asynchronous rollouts.

    One replica with its share of slots and batch stands for all, which are alike. Raises ValueError for a batch or
    slots that are not a multiple of the replicas.

    Args:
        task: its slots are the responses in flight over all replicas of ``machine``.
        trainer: training passes on the other accelerators.
        batch: responses of an update.
        staleness: how many updates a response may begin ahead of the one that trains on it.
        updates: updates that count.
        warmup: updates before them that do not count.
    """
    r = machine.replicas
    if batch < 1 or batch % r or task.slots % r or staleness < 0 or updates < 1 or warmup < 0:
        raise ValueError(
            f"simulate_async: found batch {batch}, {task.slots} slots, staleness {staleness}; expected batch and slots "
            f"to be multiples of the replicas ({r}) and staleness 0 or more."
        )
    return _Simulation(task, machine, trainer, batch // r, staleness, seed).run(updates, warmup)


class _Simulation:
    """The state of one replica and of the trainer."""

    def __init__(
        self, task: Task, machine: Machine, trainer: TrainingCost, batch: int, staleness: int, seed: int
    ) -> None:
        self.task, self.machine, self.trainer = task, machine, trainer
        self.cost: GenerationCost = machine.generation
        self.batch, self.staleness = batch, staleness
        self.slots = task.slots // machine.replicas
        limits = self.cost.limits
        self.rows = min(self.slots, limits.max_rows or self.slots)
        self.kv_tokens = limits.kv_tokens
        self.rng = np.random.default_rng(seed)
        self.active: list[_Row] = []
        self.ready: list[_Row] = []
        self.begun = self.version = 0
        self.now = self.generating_s = 0.0
        self.next_row = self._draw()

    def _draw(self) -> _Row:
        """The response that begins next."""
        return _Row(self.begun, int(self.task.lengths.draw(self.rng, 1)[0]))

    def run(self, updates: int, warmup: int) -> AsyncReport:
        """Alternate between the next finished response and the end of training, whichever comes first."""
        history: list[tuple[float, float, float, list[int], int]] = []
        training: list[_Row] = []
        train_end, train_s, work_s = np.inf, 0.0, 0.0
        while self.version < warmup + updates:
            self._admit()
            if len(self.ready) >= self.batch and train_end == np.inf:
                training, self.ready = self.ready[: self.batch], self.ready[self.batch :]
                work_s = self._train_s(training)
                train_end = self.now + work_s + self.machine.step_s
            if self.active:
                self._generate(train_end)
            else:
                self.now = max(self.now, train_end)
            if self.now >= train_end:
                ages = [self.version - row.version for row in training]
                train_s += work_s
                tokens = sum(row.length for row in training)
                self.version += 1
                train_end = np.inf
                self.now += self.machine.load_s
                self._prefill(self.active)
                history.append((self.now, self.generating_s, train_s, ages, tokens))
        begin = history[warmup - 1] if warmup else (0.0, 0.0, 0.0, [], 0)
        end, counted = history[-1], history[warmup:]
        seconds = end[0] - begin[0]
        ages = [age for h in counted for age in h[3]]
        return AsyncReport(
            seconds=seconds / updates,
            responses=self.batch * self.machine.replicas,
            tokens=float(np.mean([h[4] for h in counted])) * self.machine.replicas,
            generating=(end[1] - begin[1]) / seconds,
            training=(end[2] - begin[2]) / seconds,
            staleness=float(np.mean(ages)),
            stalest=max(ages),
        )

    def _admit(self) -> None:
        """Begin as many responses as slots, memory and staleness allow."""
        fresh: list[_Row] = []
        prompt = self.task.prompt_tokens
        reserved = sum(row.length + prompt for row in self.active)
        while len(self.active) < self.rows and self.begun // self.batch <= self.version + self.staleness:
            row = self.next_row
            reserved += row.length + prompt
            if self.kv_tokens is not None and reserved > self.kv_tokens:
                if not self.active:
                    raise ValueError(f"simulate_async: a response of {row.length} tokens exceeds the engine's memory.")
                break
            row.version = self.version
            self.begun += 1
            self.next_row = self._draw()
            self.active.append(row)
            fresh.append(row)
        self._prefill(fresh)

    def _prefill(self, rows: list[_Row]) -> None:
        """Prefill prompt and tokens so far of these responses, which yields the next token of each."""
        if not rows:
            return
        context_S = np.array([self.task.prompt_tokens + row.done for row in rows])
        self._spend(context_S, DecodeTrace.join([]))
        for row in rows:
            row.done += 1
        self._retire()

    def _generate(self, until: float) -> None:
        """Decode until a response is done or, at a whole step, training has ended."""
        steps = min(row.length - row.done for row in self.active)
        if self.now + self._decode_s(steps) > until:
            low, high = 0, steps  # first step count that reaches the end of training
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if self.now + self._decode_s(middle) < until else (low, middle)
            steps = high
        self._spend(np.zeros(0, dtype=np.int64), self._trace(steps))
        for row in self.active:
            row.done += steps
        self._retire()

    def _retire(self) -> None:
        """Move finished responses to those that wait for training."""
        self.ready += [row for row in self.active if row.done >= row.length]
        self.active = [row for row in self.active if row.done < row.length]

    def _trace(self, steps: int) -> DecodeTrace:
        """The trace of so many decode steps of all active responses."""
        keys = [self.task.prompt_tokens + row.done for row in self.active]
        return DecodeTrace(*(np.array([n]) for n in (steps, len(keys), sum(keys), max(keys))))

    def _decode_s(self, steps: int) -> float:
        """Time of so many decode steps of all active responses [s]."""
        return self.cost.call(np.zeros(0, dtype=np.int64), self._trace(steps)).seconds

    def _spend(self, context_S: Ints, trace: DecodeTrace) -> None:
        """Let the time of a generation call pass."""
        seconds = self.cost.call(context_S, trace).seconds
        self.now += seconds
        self.generating_s += seconds

    def _train_s(self, rows: list[_Row]) -> float:
        """Time of all passes over the batch of all replicas [s], whose responses are taken to be as long as these."""
        sequence_S = np.repeat([row.length + self.task.prompt_tokens for row in rows], self.machine.replicas)
        outputs = sum(row.length for row in rows) * self.machine.replicas
        t = self.trainer
        passes = (t.forward_s(sequence_S, 0), t.forward_s(sequence_S, outputs))
        return sum(passes) + t.update_s(sequence_S, 0) + t.update_s(sequence_S, outputs)
