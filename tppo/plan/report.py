"""A plan as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tppo.config.run import RunConfig
from tppo.engines.memory import GIB
from tppo.plan.budget import SHARDED, Budget
from tppo.plan.clock import TimeAnswer
from tppo.plan.engine import HostMemory
from tppo.plan.search import GPUS_PER_HOST, Arrangement
from tppo.plan.track import Figures, Job

_DAY = 86400.0


@dataclass(frozen=True)
class Plan:
    """Everything that was found. tracked, formula: the budget by PyTorch's tracker and by arithmetic. time: None
    where no clock is installed. remedy: the nearest arrangement that fits and its budget, where this one does not.
    """

    config: RunConfig
    gpus: int
    gpu: str
    model: str
    job: Job
    figures: dict[str, Figures]
    tracked: Budget
    formula: Budget
    host: HostMemory
    time: TimeAnswer | None
    assumptions: tuple[str, ...]
    remedy: tuple[Arrangement, Budget] | None = None


def text(plan: Plan) -> str:
    """What the command prints."""
    c = plan.config
    schedule = "whole responses (PPO)" if c.window >= c.rollout.max_response_tokens else f"windows of {c.window} tokens"
    lines = [
        f"{c.recipe} on {plan.gpus} {plan.gpu}: {plan.model}",
        f"{c.rollout.slots} responses in flight, {schedule}, cap {c.rollout.max_response_tokens}; engine {c.engine}; "
        f"computes in {c.compute.dtype}, masters in float32; recompute {_yes(c.compute.recompute)}, "
        f"cpu_offload {_yes(c.compute.cpu_offload)}",
        f"largest micro-batch: {plan.job.rows} x {plan.job.width} tokens",
        "",
        memory_table(plan.tracked, plan.formula),
        "",
        f"Engine: {plan.tracked.engine.note}",
        f"{'asleep while the models train' if plan.tracked.engine.asleep else 'awake while the models train'}",
        "",
        *_host(plan.host, plan.gpus),
        "",
        *_time(plan),
        "Assumed:",
        *(f"  - {line}" for line in plan.assumptions + (plan.time.assumptions if plan.time else ())),
        "",
        *_verdict(plan),
    ]
    return "\n".join(lines)


def memory_table(tracked: Budget, formula: Budget) -> str:
    """Parts by phase [GiB]; beside the tracker's number, in brackets, the formula's where it makes one."""
    names: list[str] = []
    for phase in tracked.phases:
        names += [part for part in phase.parts if part not in names]
    # Those of a network, named by it and the part, stay together; what a phase adds comes behind.
    own = tuple(f" {part}" for part in SHARDED)
    names.sort(key=lambda n: (not n.endswith(own), n.startswith("context")))
    most = max(size for p in tracked.phases for part, size in p.parts.items() if not part.startswith("context"))
    unit, one = ("GiB", GIB) if most >= GIB // 4 else ("MiB", 2**20)

    def cell(mine: int | None, other: int | None) -> str:
        return "" if mine is None else f"{mine / one:.2f} ({(other or 0) / one:.2f})"

    rows = [[f"{unit} on each GPU, by tracker (by formula)", *(p.name for p in tracked.phases)]]
    for name in names:
        cells = []
        for mine, other in zip(tracked.phases, formula.phases, strict=True):
            cells.append(cell(mine.parts.get(name), other.parts.get(name)))
        rows.append([name, *cells])
    pairs = list(zip(tracked.phases, formula.phases, strict=True))
    rows.append(["total", *(cell(mine.total, other.total) for mine, other in pairs)])
    rows.append(["free", *(cell(tracked.memory - m.total, tracked.memory - o.total) for m, o in pairs)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
             .rstrip() for row in rows]  # fmt: skip
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:-2], "-" * len(lines[0]), *lines[-2:]])


def _host(host: HostMemory, gpus: int) -> list[str]:
    here = min(gpus, GPUS_PER_HOST)
    expected = "" if host.expected is None else f"{_size(host.expected)} expected, "
    lines = [
        f"Machine: every rank holds all responses in flight, {host.per_token} bytes a token: {expected}"
        f"{_size(host.worst)} if all were as long as the cap; times {here} rank{'s' if here > 1 else ''} a machine "
        f"{_size(here * (host.expected if host.expected is not None else host.worst))} to "
        f"{_size(here * host.worst)}"
    ]
    if host.offloaded:
        lines.append(f"  and {_size(host.offloaded)} of offloaded shards and optimiser a rank")
    return lines


def _size(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size < 100 * GIB else f"{size / GIB:.0f} GiB"


def _time(plan: Plan) -> list[str]:
    time = plan.time
    if time is None:
        return ["Time: no clock can tell (none is installed, or the engine has no room)", ""]
    steps = plan.config.steps
    phases = ", ".join(f"{name} {seconds:.0f}" for name, seconds in time.phases.items() if seconds >= 0.5)
    return [
        f"Time: {time.seconds:.0f} s a step ({phases}); {time.tokens_per_second:.0f} tokens/s generated, "
        f"{time.finished:.0f} responses finish a step, {time.mfu:.0%} of peak arithmetic",
        f"{steps} steps: {steps * time.seconds / _DAY:.2f} days, "
        f"{steps * time.seconds / 3600 * plan.gpus:.0f} GPU hours",
        "",
    ]


def _verdict(plan: Plan) -> list[str]:
    if plan.tracked.fits:
        least = min(plan.tracked.memory - p.total for p in plan.tracked.phases)
        return [f"It fits: {least / GIB:.1f} GiB of each GPU are free at the highest moment."]
    lines = ["It does not fit:", *(f"  - {reason}" for reason in plan.tracked.reasons)]
    if plan.remedy is None:
        return [*lines, "No arrangement that was tried fits; a smaller model, or a shorter cap, is needed."]
    arrangement, budget = plan.remedy
    least = min(budget.memory - p.total for p in budget.phases)
    return [*lines, f"Nearest that fits ({least / GIB:.1f} GiB free): {' '.join(arrangement.flags)}"]


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything; sizes in bytes, times in seconds."""
    from tppo.config.stored import as_dict

    def of(budget: Budget) -> dict[str, Any]:
        return {
            "phases": {p.name: p.parts | {"total": p.total} for p in budget.phases},
            "memory": budget.memory,
            "fits": budget.fits,
            "reasons": budget.reasons,
            "engine": asdict(budget.engine),
        }

    time = plan.time
    return {
        "config": as_dict(plan.config),
        "gpus": plan.gpus,
        "gpu": plan.gpu,
        "model": plan.model,
        "micro_batch": {"rows": plan.job.rows, "width": plan.job.width, "needed": dict(plan.job.needed)},
        "models": {name: asdict(figures) for name, figures in plan.figures.items()},
        "tracked": of(plan.tracked),
        "formula": of(plan.formula),
        "host": asdict(plan.host),
        "time": None if time is None else asdict(time) | {"seconds": time.seconds, "steps": plan.config.steps},
        "assumptions": [*plan.assumptions, *(time.assumptions if time else ())],
        "nearest": None
        if plan.remedy is None
        else {"flags": list(plan.remedy[0].flags), "gpus": plan.remedy[0].gpus, **of(plan.remedy[1])},
    }


def _yes(flag: bool) -> str:
    return "on" if flag else "off"
