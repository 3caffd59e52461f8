"""What the planner counts, against arithmetic done by hand, and what it concludes from it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from paper_repro.models.known import model_shape
from paper_repro.tasks.pretrained import MathDataTask
from sim.clock.hardware import HARDWARE, MODELS
from tests.support.reinforce import Reinforce
from tppo.algorithms import PPO, TPPO
from tppo.config.demand import token_bytes
from tppo.config.run import Compute, Optimizer, Rollout, RunConfig, VllmOptions
from tppo.models.folder import as_critic, as_policy
from tppo.models.sizes import sizes
from tppo.plan.budget import budget
from tppo.plan.command import job_of
from tppo.plan.engine import WORKSPACE, engine_memory
from tppo.plan.formula import estimate, scaled
from tppo.plan.gpus import GPUS
from tppo.plan.search import arrangements, nearest
from tppo.plan.track import Figures, Job, track
from tppo.ranks.ranks import current, leave, pretend

GIB = 2**30
TINY = Qwen2Config(
    vocab_size=101,  # odd, so that shards are padded
    hidden_size=64,
    intermediate_size=176,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)
NAMES = ["Qwen2.5-0.5B", "Qwen2.5-7B", "Qwen2.5-32B"]


def big(**changes: Any) -> RunConfig:
    """The paper's run on Qwen2.5-32B, as far as memory and time are concerned."""
    config = RunConfig(
        recipe="big",
        task=MathDataTask(model="Qwen/Qwen2.5-32B"),
        algorithm=TPPO(window=8192),
        rollout=Rollout(slots=1024, max_response_tokens=24576),
        compute=Compute(dtype="bfloat16", recompute=True, micro_batch_tokens=32768),
        engine="vllm",
        vllm=VllmOptions(tensor_parallel=8, sleep=True, max_model_tokens=25600),
    )
    return config.with_values(**changes)


def pair(shape: Any) -> tuple[Any, Any]:
    """Policy and critic without memory."""
    with torch.device("meta"):
        one, other = (AutoModelForCausalLM.from_config(shape) for _ in range(2))
        return as_policy(one, recompute=False), as_critic(other, recompute=False)


def job(ranks: int, rows: int, width: int, needed: int, *, chunk: int = 1024, **more: Any) -> Job:
    """A micro-batch of a tiny model."""
    trained = {"policy": needed, "critic": needed}
    compute = Compute(logit_chunk_tokens=chunk)
    return Job(TINY, ranks, rows, width, trained, PPO(), Rollout(), Optimizer(), compute, **more)


@pytest.fixture(scope="module", params=[2, 64])
def tracked(request: pytest.FixtureRequest) -> tuple[Job, dict[str, Figures]]:
    """The tracker's figures of a tiny model; each in a process of its own, of about five seconds."""
    of_two = job(request.param, 2, 96, 2 * 80, chunk=32, foreach=False)
    return of_two, track(of_two)


def test_tracked_shards_are_exact_to_the_byte(tracked: tuple[Job, dict[str, Figures]]) -> None:
    """FSDP2 cuts the first dimension in as many parts as there are ranks, rounded up; AdamW adds one step a weight."""
    job, figures = tracked
    for name, model in zip(("policy", "critic"), pair(TINY), strict=True):
        weights = list(model.parameters())
        shards = sum(4 * math.ceil(p.shape[0] / job.ranks) * (p.numel() // p.shape[0]) for p in weights)
        f = figures[name]
        for of in (f.resident, f.peak):
            assert of["parameters"] == shards
            assert of["gradients"] == shards
            assert of["optimizer"] == 2 * shards + 4 * len(weights)
        assert f.numbers == sum(p.numel() for p in weights)
        assert f.largest == max(p.numel() for p in weights)
        # A share of the whole, and padding of less than one row of each weight.
        whole = 4 * f.numbers / job.ranks
        assert whole <= shards < whole + sum(4 * p.numel() // p.shape[0] for p in weights)
        assert f.resident_total < f.peak_total
        assert f.resident["gathered"] == f.resident["reduced"] == f.resident["temporary"] == 0
        assert f.resident["activations"] <= 16 * job.needed[name]  # the micro-batch's own numbers


def test_formula_and_tracker_agree(tracked: tuple[Job, dict[str, Figures]]) -> None:
    """Shards but for padding; the working memory of a step to a quarter: one is a model of the other."""
    job, figures = tracked
    for name, f in figures.items():
        by_formula = estimate(job, name)
        assert by_formula.numbers == f.numbers
        assert by_formula.resident["parameters"] <= f.resident["parameters"]
        working, modelled = (x.peak["activations"] + x.peak["temporary"] for x in (f, by_formula))
        assert modelled == pytest.approx(working, rel=0.25)


def test_activations_do_not_depend_on_the_number_of_ranks() -> None:
    two, many = (estimate(job(ranks, 1, 96, 80), "policy") for ranks in (2, 64))
    assert two.peak["activations"] == many.peak["activations"]
    assert two.peak["parameters"] == 32 * many.peak["parameters"]


@pytest.mark.parametrize("name", [*NAMES, "smollm2-135m"])
def test_shapes_have_the_published_number_of_parameters(name: str) -> None:
    shape = model_shape(name if name == "smollm2-135m" else f"Qwen/{name}")
    profile = MODELS["SmolLM2-135M" if name == "smollm2-135m" else name]
    policy, critic = pair(shape)
    assert sum(p.numel() for p in policy.parameters()) == profile.parameters
    assert sizes(shape).numbers == profile.parameters
    assert sizes(shape, critic=True).numbers == sum(p.numel() for p in critic.parameters())
    assert sizes(shape).largest == max(p.numel() for p in policy.parameters())


def test_gpus_are_those_of_the_clock() -> None:
    assert {name: hardware.memory for name, hardware in HARDWARE.items()} == GPUS


def test_pretended_ranks_come_and_go() -> None:
    current.cache_clear()
    pretend(48)
    try:
        assert (current().size, current().rank, current().joined) == (48, 0, True)
        with pytest.raises(RuntimeError, match="a process of its own"):
            pretend(2)
    finally:
        leave()
    assert (current().size, current().joined) == (1, False)


def test_largest_micro_batch() -> None:
    """As many tokens as allowed, in no row longer than the longest; one whole row at least."""
    config = big()
    shape = config.task.shape()
    assert shape is not None
    assert shape.prompt_tokens == 1024
    longest = 1024 + 24576
    for allowed, expected in [(32768, (2, 16384)), (8192, (1, longest)), (longest, (1, longest)), (65536, (3, 21845))]:
        found = job_of(config.with_values(compute__micro_batch_tokens=allowed), shape, 64)
        assert (found.rows, found.width) == expected
        assert found.needed == dict.fromkeys(("policy", "critic"), found.rows * (found.width - 1))
    only_window = config.with_values(algorithm__imitate=0.0)
    # The critic's targets are whole responses whatever the policy trains on.
    assert job_of(only_window, shape, 64).needed == {"policy": 2 * 8192, "critic": 2 * (16384 - 1)}
    assert job_of(big(compute__cpu_offload=True), shape, 64) == job_of(big(), shape, 64)


FIGURES = {
    name: Figures(
        peak={"parameters": 1 * GIB, "gradients": 1 * GIB, "optimizer": 2 * GIB, "gathered": 3 * GIB,
              "reduced": 1 * GIB, "activations": 20 * GIB, "temporary": temporary, "buffers": 0},
        resident={"parameters": 1 * GIB, "gradients": 1 * GIB, "optimizer": 2 * GIB, "gathered": 0, "reduced": 0,
                  "activations": 0, "temporary": 0, "buffers": 0},
        numbers=10**9,
        largest=GIB // 2,
    )
    for name, temporary in (("policy", 5 * GIB), ("critic", 2 * GIB))
}  # fmt: skip


def totals(figures: dict[str, Figures] = FIGURES, memory: int = 80 * GIB, **changes: Any) -> dict[str, float]:
    """GiB of each phase."""
    config = big(**changes)
    shape = config.task.shape()
    assert shape is not None
    engine = engine_memory(config, sizes(shape.config), prompt=1024, gpus=64, memory=memory, positions=131072)
    found = budget(config, figures, engine, memory=memory, reserve=4 * GIB)
    return {p.name: p.total / GIB for p in found.phases}


def test_what_is_resident_when() -> None:
    """Two models of 3 GiB each, and 1 of gradients in their update; 4 GiB of reserve; the engine has half of 80."""
    found = totals(vllm__memory_fraction=0.5)
    weights = MODELS["Qwen2.5-32B"].parameters * 2 / 8 / GIB
    assert found["load weights"] == pytest.approx(6 + 4 + 2 * 2 * 0.5 + weights)  # the cache still sleeps
    assert found["generate"] == pytest.approx(6 + 4 + 3 + 40)
    assert found["update critic"] == pytest.approx(7 + 4 + 3 + 1 + 20 + 2)
    assert found["update policy"] == pytest.approx(7 + 4 + 3 + 1 + 20 + 5)
    awake = totals(vllm__memory_fraction=0.5, vllm__sleep=False)
    assert awake["update policy"] == pytest.approx(found["update policy"] + 40)
    assert awake["load weights"] == pytest.approx(6 + 4 + 2 + 40)
    # A reference model is its shards alone, offloaded shards are elsewhere.
    frozen = replace(FIGURES["policy"], resident=dict.fromkeys(FIGURES["policy"].resident, 0) | {"parameters": GIB})
    reference = totals(FIGURES | {"reference": frozen}, vllm__memory_fraction=0.5, algorithm__kl=0.1)
    assert all(reference[name] == pytest.approx(found[name] + 1) for name in found)
    assert set(totals({"policy": FIGURES["policy"]}, vllm__memory_fraction=0.5)) == {
        "load weights", "generate", "update policy"
    }  # fmt: skip
    offloaded = totals(vllm__memory_fraction=0.5, compute__cpu_offload=True)
    shards = {name: 7 if name.startswith("update") else 6 for name in found}
    assert all(offloaded[name] == pytest.approx(found[name] - shards[name]) for name in found)


def test_room_of_the_engine() -> None:
    config, shape = big(vllm__memory_fraction=0.5), model_shape("Qwen/Qwen2.5-32B")
    m = MODELS["Qwen2.5-32B"]

    def engine(config: RunConfig) -> Any:
        return engine_memory(config, sizes(shape), prompt=1024, gpus=64, memory=80 * GIB, positions=131072)

    found = engine(config)
    assert found.weights == m.parameters * 2 // 8
    # 64 layers, one head of 128 for keys and one for values on each of eight GPUs, two bytes a number
    cache = 40 * GIB - WORKSPACE - found.weights
    assert found.rows == cache // (2 * 64 * 128 * 2 * 25600)
    assert found.training == 0
    assert engine(config.with_values(vllm__tensor_parallel=1)).rows == 0  # 61 GiB of weights in 40
    sixteen = big(vllm__memory_fraction=0.5, vllm__tensor_parallel=16)  # eight heads: each is on two GPUs
    assert "keys and values 32 KiB a token" in engine(sixteen).note
    assert "keys and values 32 KiB a token" in found.note
    embedded = engine(config.with_values(engine="torch"))
    assert embedded.weights == m.parameters * 4
    assert embedded.cache == 2 * 64 * 8 * 128 * 4 * 16 * (1024 + 24576)  # 1,024 slots among 64 ranks
    assert embedded.training == embedded.weights + embedded.cache


def test_bytes_of_a_token_in_flight() -> None:
    """Four arrays of 8 bytes; the batch: sequence, row, token, version 8 each, log-prob and reward 4, a flag 1."""
    assert token_bytes() - 64 == 4 * 8 + (4 * 8 + 2 * 4 + 1)


def test_arrangements_are_near_and_possible() -> None:
    config = big(vllm__sleep=False, compute__micro_batch_tokens=65536)
    found = arrangements(config, 64, longest=25600, heads=(40, 8))
    assert found == sorted(found, key=lambda a: a.cost)
    assert found[0].flags in {("--vllm.memory-fraction 0.8",), ("--vllm.sleep",)}
    assert all(a.gpus % a.config.vllm.tensor_parallel == 0 for a in found)
    assert all(a.config.compute.micro_batch_tokens >= 25600 for a in found)
    assert {a.gpus for a in found} == {64, 128, 256, 512, 1024}
    assert len({a.flags for a in found}) == len(found)
    # Heads of keys and values are shared out or repeated, never split.
    few = arrangements(big(vllm__tensor_parallel=1), 64, longest=25600, heads=(12, 2))
    assert {a.config.vllm.tensor_parallel for a in few} == {1, 2, 4}


def test_nearest_takes_the_first_that_is_confirmed() -> None:
    candidates = arrangements(big(), 64, longest=25600, heads=(40, 8))
    shape = model_shape("Qwen/Qwen2.5-32B")

    def of(a: Any, memory: int) -> Any:
        engine = engine_memory(a.config, sizes(shape), prompt=1024, gpus=64, memory=memory, positions=131072)
        return budget(a.config, FIGURES, engine, memory=memory, reserve=4 * GIB)

    checked: list[Any] = []

    def refuses_one(a: Any) -> Any:
        checked.append(a)
        return of(a, 8 * GIB if len(checked) == 1 else 80 * GIB)

    found = nearest(candidates, lambda a: of(a, 80 * GIB), refuses_one)
    assert found is not None
    assert found[0] is checked[1] is not checked[0]
    assert found[1].fits
    assert nearest(candidates, lambda a: of(a, 8 * GIB), refuses_one) is None
    assert nearest(candidates, lambda a: of(a, 80 * GIB), lambda a: of(a, 8 * GIB)) is None


def test_scaling_from_what_was_tracked() -> None:
    four = job(4, 2, 96, 160)
    known = {name: estimate(four, name) for name in ("policy", "critic")}
    assert scaled(known, four, four) == known
    doubled = scaled(known, four, replace(four, ranks=8))
    assert doubled["policy"].peak["parameters"] == known["policy"].peak["parameters"] // 2
    assert doubled["policy"].peak["activations"] == known["policy"].peak["activations"]
    half = scaled(known, four, job(4, 1, 96, 80))
    assert half["critic"].peak["activations"] == known["critic"].peak["activations"] // 2


def test_a_plan_has_the_networks_that_the_algorithm_names() -> None:
    """No critic is tracked where none is named; a reference is its shards alone."""
    alone = replace(job(2, 1, 96, 80), algorithm=Reinforce(), needed={"policy": 80})
    assert set(track(alone)) == {"policy"}
    found = track(replace(job(2, 1, 96, 80), algorithm=PPO(kl=0.1)))
    assert set(found) == {"policy", "critic", "reference"}
    reference, policy = found["reference"], found["policy"]
    assert reference.resident == reference.peak
    assert reference.resident["parameters"] == policy.resident["parameters"]
    assert reference.resident_total == reference.resident["parameters"]
