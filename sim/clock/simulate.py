"""The rollout clock: time and utilisation of a rollout schedule on given hardware.

A schedule (`sim.clock.schedules`) says how many tokens each slot generates in a step and what trains on them; a cost
says what that takes. Costs are a roofline with named efficiency factors (`sim.clock.roofline`) or prices fitted to
measurements (`sim.clock.fitted`). Lengths are drawn, everything else is arithmetic.

>>> from sim.clock.hardware import HARDWARE, MODELS, Cluster
>>> from sim.clock.lengths import Lengths
>>> from sim.clock.schedules import PPO, TPPO, Task
>>> cluster = Cluster(MODELS["Qwen2.5-7B"], HARDWARE["H100"], gpus=8, tensor_parallel=2)
>>> task = Task(Lengths.log_normal(median=1000, sigma=1.2, cap=16384), slots=256)
>>> whole = simulate(PPO(), task, Machine.of(cluster), steps=4)
>>> cut = simulate(TPPO(window=16384), task, Machine.of(cluster), steps=4)
>>> whole.seconds == cut.seconds
True

Assumed throughout: every phase waits for the one before it (but for `sim.clock.asynchronous`); training is balanced
over all accelerators; no prompt is prefilled once for a group; lengths do not depend on the schedule.

Suffixes: _S slots, _R simulated steps.
"""

from dataclasses import dataclass, field

import numpy as np

from sim.clock.hardware import Cluster
from sim.clock.lengths import Floats, Ints
from sim.clock.roofline import Call, GenerationCost, RooflineCost, RooflineTraining, TrainingCost
from sim.clock.schedules import Schedule, Step, Task, finished, rollout, shares
from sim.clock.serving import serve

# Parts of a step, in the order in which they follow one another.
PHASES = ("load", "prefill", "decode", "values", "logprobs", "update_critic", "update_policy", "other")
TRAINING = slice(PHASES.index("values"), PHASES.index("other"))  # those in which the trainer computes


@dataclass(frozen=True)
class Machine:
    """What a step runs on, and what its parts cost there."""

    generation: GenerationCost  # of one replica
    training: TrainingCost | None = None  # None prices generation only
    replicas: int = 1  # engines side by side, each with an equal share of the slots
    load_s: float = 0.0  # new weights to the engines [s]
    step_s: float = 0.0  # fixed cost of every step, whatever its size [s]
    peak_flops: float = 0.0  # of all accelerators together [flop/s], for utilisation; 0 is unknown

    @staticmethod
    def of(cluster: Cluster, *, max_rows: int | None = None) -> "Machine":
        """A cluster priced by its roofline.

        Args:
            max_rows: most sequences that one replica decodes together.
        """
        return Machine(
            RooflineCost(cluster, max_rows),
            RooflineTraining(cluster),
            cluster.replicas,
            cluster.load_s,
            cluster.efficiency.step_s,
            cluster.gpus * cluster.hardware.peak_flops,
        )


@dataclass(frozen=True, eq=False)
class Report:
    """What a schedule costs, over the simulated steps. Shares are 0 where the machine has no data sheet."""

    phases: dict[str, float]  # mean seconds a step of each of PHASES
    seconds_R: Floats = field(repr=False)  # [R] seconds of each step
    tokens_R: Ints = field(repr=False)  # [R] tokens generated
    trained_R: Ints = field(repr=False)  # [R] tokens that trained the policy
    finished_R: Ints = field(repr=False)  # [R] responses that finished
    slots_busy: float  # share of decode steps, up to the end of the slowest replica, in which a slot yields a token
    roofline: float  # share of generation time that the same work takes at the full rates of the data sheet
    intensity: float  # arithmetic intensity of decoding [flop/byte]
    mfu: float  # share of peak arithmetic over whole steps

    @property
    def seconds(self) -> float:
        """Mean duration of a step [s]."""
        return float(self.seconds_R.mean())

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens a second, over whole steps."""
        return float(self.tokens_R.sum() / self.seconds_R.sum())

    @property
    def trained_per_second(self) -> float:
        """Tokens that train the policy a second, over whole steps."""
        return float(self.trained_R.sum() / self.seconds_R.sum())

    @property
    def finished_per_second(self) -> float:
        """Finished responses a second, over whole steps."""
        return float(self.finished_R.sum() / self.seconds_R.sum())


def simulate(
    schedule: Schedule,
    task: Task,
    machine: Machine,
    *,
    steps: int = 20,
    warmup: int = 0,
    seed: int = 0,
    equilibrium: bool = True,
) -> Report:
    """Price the steps of a schedule.

    Args:
        steps: steps that count.
        warmup: steps before them that do not count; partial rollouts need some, since they begin with all slots new.
        equilibrium: begin with slots as they are found long after the start of a run; otherwise all are new.
    """
    if steps < 1 or warmup < 0:
        raise ValueError(f"simulate: found {steps} steps, {warmup} of warm-up; expected at least 1 and 0.")
    phases_R, calls, busy_R = [], [], []
    tokens_R, trained_R, finished_R = [], [], []
    limits, replicas = machine.generation.limits, machine.replicas
    rollout_R = rollout(schedule, task, limits=limits, replicas=replicas, seed=seed, equilibrium=equilibrium)
    for number, step in enumerate(rollout_R):
        if number == warmup + steps:
            break
        if number < warmup:
            continue
        phases, made, decode_steps = price(schedule, step, task, machine)
        phases_R.append([phases[p] for p in PHASES])
        calls += made
        tokens_R.append(int(step.new_S.sum()))
        trained_R.append(int(step.trained_S.sum()))
        finished_R.append(int(step.done_S.sum()))
        busy_R.append(tokens_R[-1] / (task.slots * (decode_steps + 1)))
    table = np.array(phases_R)
    seconds = float(table.sum())
    generation_s = sum(c.seconds for c in calls)
    decode_bytes, decode_flops = sum(c.decode_bytes for c in calls), sum(c.decode_flops for c in calls)
    flops = decode_flops + sum(c.prefill_flops for c in calls)
    if machine.training is not None:
        flops += machine.training.flops_in(float(table[:, TRAINING].sum()))
    return Report(
        phases=dict(zip(PHASES, table.mean(0).tolist(), strict=True)),
        seconds_R=table.sum(1),
        tokens_R=np.array(tokens_R),
        trained_R=np.array(trained_R),
        finished_R=np.array(finished_R),
        slots_busy=float(np.mean(busy_R)),
        roofline=sum(c.ideal_s for c in calls) / generation_s if generation_s else 0.0,
        intensity=decode_flops / decode_bytes if decode_bytes else 0.0,
        mfu=flops / (seconds * machine.peak_flops) if machine.peak_flops else 0.0,
    )


def price(schedule: Schedule, step: Step, task: Task, machine: Machine) -> tuple[dict[str, float], list[Call], int]:
    """Price one step: seconds of each phase, the call of each replica, and the decode steps of the longest call."""
    context_S = task.prompt_tokens + step.start_S
    calls, decode_steps = [], 0
    for part in shares(task.slots, machine.replicas):
        context, new = context_S[part], step.new_S[part]
        context, new = context[new > 0], new[new > 0]
        trace, _ = serve(context, new, machine.generation.limits)
        calls.append(machine.generation.call(context, trace))
        decode_steps = max(decode_steps, trace.steps)
    slowest = max(calls, key=lambda c: c.seconds)
    phases = dict.fromkeys(PHASES, 0.0)
    phases |= {"load": machine.load_s, "prefill": slowest.prefill_s, "decode": slowest.decode_s}
    phases["other"] = machine.step_s
    if machine.training is not None:
        read, done = schedule.rereads(step, task), finished(step, task)
        outputs = int(step.trained_S.sum())
        phases["values"] = machine.training.forward_s(read, 0)
        phases["logprobs"] = machine.training.forward_s(read, outputs)
        phases["update_critic"] = machine.training.update_s(done, 0)
        phases["update_policy"] = machine.training.update_s(read, outputs)
    return phases, calls, decode_steps
