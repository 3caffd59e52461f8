"""What is on each GPU in every phase of a step, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass

from tppo.config.run import RunConfig
from tppo.plan.engine import EngineMemory
from tppo.plan.track import Figures

SHARDED = ("parameters", "gradients", "optimizer")
STAY = ("parameters", "optimizer")
BYTES_OF = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Phase:
    """name: of a phase of the step. parts: name to bytes on each GPU."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes on each GPU."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Budget:
    """phases: of a step, in order. memory: of a GPU. offloaded: bytes of each rank in the machine's memory."""

    phases: tuple[Phase, ...]
    memory: int
    offloaded: int
    engine: EngineMemory

    @property
    def reasons(self) -> list[str]:
        """Why it does not fit, one a line; empty if it does."""
        out = [
            f"{p.name}: {p.total / 2**30:.1f} GiB on each GPU of {self.memory / 2**30:.1f} GiB"
            for p in self.phases
            if p.total > self.memory
        ]
        if self.engine.rows < 1:
            out.append(f"the engine has no room for one sequence of full length: {self.engine.note}")
        return out

    @property
    def fits(self) -> bool:
        """Whether every phase does."""
        return not self.reasons


def budget(
    config: RunConfig, figures: dict[str, Figures], engine: EngineMemory, *, memory: int, reserve: int
) -> Budget:
    """Phases from the figures of every network by name.

    Gradients are there during their network's update only. A frozen network holds its shards alone. Loading gathers one
    weight at a time (and a copy of it on its way); the check of the engine after it calls the policy beside the woken
    cache.
    """
    policy, offload = figures["policy"], config.compute.cpu_offload
    trained = {name: f for name, f in figures.items() if f.resident["optimizer"]}
    # Offloaded shards come in a layer at a time: what is gathered of them is counted, the rest is in the host.
    away = sum(f.resident[part] for f in figures.values() for part in SHARDED) if offload else 0
    stay = {
        f"{name} {part}": f.resident[part] for name, f in figures.items() for part in STAY if f.resident[part]
    } if not offload else {}  # fmt: skip
    fixed = {"context, NCCL, allocator (assumed)": reserve}
    width = BYTES_OF[config.compute.dtype]
    awake = {"engine weights": engine.weights, "engine cache": engine.cache}
    loading = awake if not engine.asleep else {"engine weights": engine.weights}
    asleep = {} if engine.asleep else awake
    gathered = {"gathered weights": policy.peak["gathered"]}
    phases = (
        Phase("load weights", stay | {"gathered weights": 2 * width * policy.largest} | loading | fixed),
        Phase("generate", stay | gathered | awake | fixed),
        *(
            Phase(f"update {name}", stay | _gradients(name, f, offload) | _working(f, offload) | asleep | fixed)
            for name, f in sorted(trained.items(), key=lambda entry: entry[0] == "policy")  # it comes last in a step
        ),
    )
    return Budget(phases, memory, away, engine)


def _gradients(name: str, f: Figures, offload: bool) -> dict[str, int]:
    return {} if offload else {f"{name} gradients": f.resident["gradients"]}


def _working(f: Figures, offload: bool) -> dict[str, int]:
    """What an update holds beside what stays: at the peak, less the shards (counted already, unless offloaded)."""
    extra = 0 if offload else sum(f.peak[p] - f.resident[p] for p in SHARDED)
    return {
        "gathered weights": f.peak["gathered"],
        "gathered gradients": f.peak["reduced"],
        "activations": f.peak["activations"],
        "temporary": f.peak["temporary"] + max(0, extra),
        "buffers": f.peak["buffers"],
    }
