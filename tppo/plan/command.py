"""`tppo plan`: from a recipe and a number of GPUs to a plan, or to the nearest one that fits."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tppo.errors import ConfigError
from tppo.files import writing_to
from tppo.ranges import GPUS, TOKENS, Range, check_leaf

if TYPE_CHECKING:
    from tppo.algorithms.base import Parts
    from tppo.config.run import ModelShape, RunConfig
    from tppo.fit.terms import Term
    from tppo.plan.budget import Budget
    from tppo.plan.report import Plan
    from tppo.plan.search import Arrangement
    from tppo.plan.track import Figures, Job

GIB = 2**30
NUMBERS: dict[str, Any] = {
    "gpus": Annotated[int, Range(1, GPUS, unit="GPUs")],
    "gpu-memory": Annotated[float, Range(0, 100_000, above=True, unit="GiB")] | None,
    "reserve": Annotated[float, Range(0, 100_000, unit="GiB")],
    "median": Annotated[float, Range(0, TOKENS, above=True, unit="tokens")] | None,
    "sigma": Annotated[float, Range(0, 10, above=True)],
}
"""What the numbers of the command line may be."""


@dataclass(frozen=True)
class Options:
    """gpu: a name of ``tppo.plan.gpus``. memory: of one GPU in GiB, None is the data sheet's. reserve: GiB of each GPU
    for what is no tensor. median, sigma: of response lengths; median None is a quarter of the cap [tokens].
    """

    gpus: int
    gpu: str
    memory: float | None = None
    reserve: float = 4.0
    median: float | None = None
    sigma: float = 0.8
    search: bool = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line; everything else on it is a field of the recipe."""
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("--algorithm", metavar="NAME", help="instead of the recipe's; see 'tppo algorithms'")
    parser.add_argument("--gpus", type=int, help="ranks, one a GPU")
    parser.add_argument("--gpu", help="h800, h100, h200 or a100 (80 GB)")
    parser.add_argument("--gpu-memory", type=float, metavar="GIB", help="of one GPU; default: its data sheet's")
    parser.add_argument("--reserve", type=float, default=4.0, metavar="GIB", help="for what is no tensor (default 4)")
    parser.add_argument("--median", type=float, metavar="TOKENS", help="of response lengths; default: a quarter of cap")
    parser.add_argument("--sigma", type=float, default=0.8, help="of the logarithm of response lengths (default 0.8)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--no-search", action="store_true", help="do not look for an arrangement that fits")


def print_help() -> None:
    """The options of the command, without the fields of a recipe."""
    parser = argparse.ArgumentParser(
        "tppo plan", add_help=False, usage="tppo plan RECIPE [options] [--any.field value]"
    )
    add_arguments(parser)
    parser.print_help()
    print("\nfields of a recipe: tppo plan RECIPE --help")


def command(known: argparse.Namespace, config: RunConfig) -> int:
    """Print the plan; 0 if it fits and 2 if not. Raises ConfigError."""
    from tppo.plan.report import as_json, text

    for name in ("gpus", "gpu"):
        if getattr(known, name) is None:
            raise ConfigError(name, None, "a value: tppo plan RECIPE --gpus N --gpu NAME", "for example --gpu h800")
    options = Options(
        known.gpus, known.gpu, known.gpu_memory, known.reserve, known.median, known.sigma, not known.no_search
    )
    if known.json is not None:
        _check_file(known.json)
    plan = make_plan(config, options)
    print(text(plan))
    if known.json is not None:
        with writing_to(known.json, "json"):
            known.json.write_text(json.dumps(as_json(plan), indent=2) + "\n", encoding="utf-8")
    return 0 if plan.tracked.fits else 2


def _check_file(path: Path) -> None:
    """Raise ConfigError for what cannot be the name of a file, before the work."""
    try:
        os.stat(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise ConfigError("json", str(path), "a file that can be written", str(error)) from None
    if os.path.isdir(path) or not os.path.isdir(path.parent) or not os.access(path.parent, os.W_OK):
        raise ConfigError("json", str(path), "a file in an existing folder")


def make_plan(config: RunConfig, options: Options) -> Plan:
    """Track, price, and search if it does not fit. Raises ConfigError for what cannot be planned."""
    from tppo.models.sizes import sizes
    from tppo.plan.clock import TimeQuestion, predict
    from tppo.plan.engine import WORKSPACE, host_memory
    from tppo.plan.formula import estimate
    from tppo.plan.gpus import GPUS, gpu_name
    from tppo.plan.report import Plan
    from tppo.plan.track import count, track

    name = gpu_name(options.gpu)
    shape = config.task.shape()
    if shape is None:
        raise ConfigError(
            "recipe", config.recipe, "a recipe with a transformer", "a table of logits needs no plan: it fits anywhere"
        )
    check(config, options, shape)
    memory = GPUS[name] if options.memory is None else int(options.memory * GIB)
    job = job_of(config, shape, options.gpus)
    figures = track(job)
    tracked = _budget(config, shape, options.gpus, figures, memory, options)
    by_formula = {model: estimate(job, model) for model in figures}
    median = options.median or config.rollout.max_response_tokens / 4
    time = None
    if tracked.engine.rows >= 1:
        rows = config.vllm.max_rows if config.engine == "vllm" else None
        question = TimeQuestion(
            config, shape.config, shape.prompt_tokens, options.gpus, name, median, options.sigma, rows
        )
        with contextlib.suppress(ConfigError):  # its own view of the memory is coarser: what fits is decided here
            time = predict(question)
    numbers = sizes(shape.config).numbers
    plan = Plan(
        config=config,
        gpus=options.gpus,
        gpu=name,
        model=_models(shape.config.model_type, count(numbers), [name for name in figures if name != "policy"]),
        job=job,
        figures=figures,
        tracked=tracked,
        formula=_budget(config, shape, options.gpus, by_formula, memory, options),
        host=host_memory(config, shape.prompt_tokens, None if time is None else time.in_flight, tracked.offloaded),
        time=time,
        assumptions=(
            f"a GPU has {memory / GIB:.1f} GiB"
            + (" (data sheet; drivers often report more)" if options.memory is None else ""),
            f"{options.reserve:g} GiB of it hold what is no tensor: contexts, NCCL, fragments of the allocator",
            f"vLLM's own workspace is {WORKSPACE / GIB:g} GiB of its share" if config.engine == "vllm" else
            "the embedded engine's working memory is small beside its cache",
            "freed memory goes back to the GPU before the other tenant (engine or trainer) takes it",
        ),
    )  # fmt: skip
    if tracked.fits or not options.search:
        return plan
    return replace(plan, remedy=_remedy(config, options, shape, job, figures, memory))


def _models(kind: str, numbers: str, others: Sequence[str]) -> str:
    beside = f", and of its size: {', '.join(others)}" if others else ""
    return f"{kind}, {numbers} parameters{beside}"


def check(config: RunConfig, options: Options, shape: ModelShape) -> None:
    """What depends on the launch. Raises ConfigError."""
    gpus, parallel = options.gpus, config.vllm.tensor_parallel
    for name, value in (
        ("gpus", gpus), ("gpu-memory", options.memory), ("reserve", options.reserve), ("median", options.median),
        ("sigma", options.sigma),
    ):  # fmt: skip
        check_leaf(name, NUMBERS[name], value)
    longest = shape.prompt_tokens + config.rollout.max_response_tokens
    positions = getattr(shape.config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise ConfigError(
            "rollout.max_response_tokens",
            config.rollout.max_response_tokens,
            f"at most {positions - shape.prompt_tokens}: the model's {positions} positions less the longest prompt",
        )
    if config.engine != "vllm":
        return
    room = config.vllm.max_model_tokens
    if room is not None and longest > room:
        raise ConfigError("vllm.max_model_tokens", room, f"at least {longest}, the longest prompt and response")
    if gpus % parallel:
        raise ConfigError("gpus", gpus, f"a multiple of vllm.tensor_parallel ({parallel})", "or change that one")
    heads = shape.config.num_attention_heads
    if heads % parallel:
        raise ConfigError("vllm.tensor_parallel", parallel, f"a divisor of the model's {heads} attention heads")
    if config.vllm.own_process:
        raise ConfigError(
            "vllm.own_process", True, "False under torchrun", "engines live in the ranks' processes there"
        )


def job_of(config: RunConfig, shape: ModelShape, gpus: int) -> Job:
    """The largest micro-batch: as many tokens as allowed, in rows no longer than the longest, at least one of those.

    Where shards lie changes no size, so a job never offloads.
    """
    from tppo.algorithms.check import checked_parts
    from tppo.plan.track import Job, trained

    compute, cap = config.compute, config.rollout.max_response_tokens
    longest = shape.prompt_tokens + cap
    rows = max(1, -(-compute.micro_batch_tokens // longest))
    width = longest if compute.micro_batch_tokens < longest else compute.micro_batch_tokens // rows
    parts = checked_parts(config.algorithm, config.rollout)
    needed = {}
    for name, (_, terms) in trained(parts, config.policy).items():
        most = most_tokens(parts, terms, cap)
        needed[name] = rows * (width - 1 if most >= cap else min(width - 1, most))
    return Job(
        shape.config, gpus, rows, width, needed, config.algorithm, config.rollout, config.policy,
        replace(compute, cpu_offload=False),
    )  # fmt: skip


def most_tokens(parts: Parts, terms: Sequence[Term], cap: int) -> int:
    """Most tokens of one response that terms read in a step: those of a right answer as long as the cap, in its last
    window.
    """
    import torch

    from tppo.types import Batch, Prompt, Response, Status

    response = Response(uid=0, group=0, prompt=Prompt("", (0,)))
    for first in range(0, cap, parts.window or cap):
        new = min(parts.window or cap, cap - first)
        response.extend([0] * new, [0.0] * new, 0)
    response.status, response.reward = Status.EOS, 1.0
    batch = Batch.of([response])
    masks = [(parts.tokens if t.tokens is None else t.tokens)(batch) for t in terms]
    return int(torch.stack(masks).any(0).sum())


def _budget(
    config: RunConfig, shape: ModelShape, gpus: int, figures: dict[str, Figures], memory: int, options: Options
) -> Budget:
    from tppo.models.sizes import sizes
    from tppo.plan.budget import budget
    from tppo.plan.engine import engine_memory

    positions = getattr(shape.config, "max_position_embeddings", None) or 2**62
    engine = engine_memory(
        config, sizes(shape.config), prompt=shape.prompt_tokens, gpus=gpus, memory=memory, positions=positions
    )
    return budget(config, figures, engine, memory=memory, reserve=int(options.reserve * GIB))


def _remedy(
    config: RunConfig, options: Options, shape: ModelShape, job: Job, figures: dict[str, Figures], memory: int
) -> tuple[Arrangement, Budget] | None:
    """Arithmetic proposes, from what was tracked; the tracker checks, where it could say something else."""
    from tppo.plan.formula import scaled
    from tppo.plan.search import arrangements, nearest
    from tppo.plan.track import track

    def guess(a: Arrangement) -> Budget:
        found = scaled(figures, job, job_of(a.config, shape, a.gpus))
        return _budget(a.config, shape, a.gpus, found, memory, options)

    def verify(a: Arrangement) -> Budget:
        print(f"tppo plan: checking {' '.join(a.flags)}", file=sys.stderr, flush=True)
        other = job_of(a.config, shape, a.gpus)
        return _budget(a.config, shape, a.gpus, figures if other == job else track(other), memory, options)

    heads = (shape.config.num_attention_heads, getattr(shape.config, "num_key_value_heads", 0) or 1)
    longest = shape.prompt_tokens + config.rollout.max_response_tokens
    candidates = arrangements(config, options.gpus, longest=longest, heads=heads)
    return nearest(candidates, guess, verify)
