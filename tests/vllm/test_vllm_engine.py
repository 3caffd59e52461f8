"""vLLM against transformers: the same log-probabilities after every load, the same contract, stale layers caught."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.faults import stale_weights
from tests.support.helpers import tiny_lm
from tppo.algorithms.parts.select import every_window
from tppo.engines.options import VllmOptions
from tppo.engines.probe import BOUNDS, probe
from tppo.errors import EngineError
from tppo.loop.slots import Slots
from tppo.models.transformer import TransformerPolicy
from tppo.ranks.ranks import Ranks
from tppo.types import GenerationRequest, Prompt, Sampling, Status

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own
]
OPTIONS = VllmOptions(max_rows=32, memory_fraction=0.1)
PROMPTS = [(1, 2, 3, 5, 8, 13, 21, 11), (7, 4, 4, 19, 2, 16, 16, 9, 20, 6, 12, 1)]
KINDS = [("qwen2", True), ("qwen2", False), ("qwen3", False), ("llama", False)]


@pytest.fixture(scope="module", params=KINDS, ids=lambda p: f"{p[0]}-{'tied' if p[1] else 'untied'}")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    from tppo.engines.vllm import VllmEngine

    kind, tied = request.param
    folder = tmp_path_factory.mktemp(kind)
    model = tiny_lm(kind, tied=tied, head_dim=32)
    model.save_pretrained(folder)
    engine = VllmEngine(Path(folder), OPTIONS, dtype="float32", seed=0, ranks=Ranks())
    yield TransformerPolicy(model), engine
    engine.close()


def requests(count: int = 12, budget: int = 10) -> list[GenerationRequest]:
    return [GenerationRequest(i, tuple(range(1, 3 + i % 7)), 0, budget) for i in range(count)]


def largest_gap(policy: TransformerPolicy, reqs: list[GenerationRequest], answers: Any, temperature: float) -> float:
    gap = 0.0
    for r, a in zip(reqs, answers, strict=True):
        ids = torch.tensor([[*r.tokens, *a.tokens]])
        with torch.no_grad():
            table = (policy.model(ids).logits[0] / temperature).log_softmax(-1)
        at = torch.arange(len(r.tokens) - 1, ids.shape[1] - 1)
        ours = table[at, ids[0, len(r.tokens) :]]
        gap = max(gap, float((ours - torch.tensor(a.logprobs)).abs().max()))
    return gap


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_agree_after_five_updates_in_place(pair: tuple[Any, Any], temperature: float) -> None:
    policy, engine = pair
    g = torch.Generator().manual_seed(0)
    for version in range(5):
        with torch.no_grad():
            for p in policy.parameters():
                p.add_(0.05 * p.std() * torch.randn(p.shape, generator=g) if p.numel() > 1 else 0.0)
        engine.load_policy(policy.weights(), version)
        reqs = requests()
        answers = engine.generate(reqs, Sampling(temperature, frozenset({0, 1}), seed=version))
        assert largest_gap(policy, reqs, answers, temperature) < 1e-5
        assert probe(engine, policy, PROMPTS, bound=1e-4, version=version, ranks=Ranks()) < 1e-5


def test_the_contract_of_a_window(pair: tuple[Any, Any]) -> None:
    """Slots, statuses and budgets through the scheduler; a window's end is never the cap."""
    policy, engine = pair
    engine.load_policy(policy.weights(), 9)
    slots = Slots(
        lambda i: Prompt(str(i), (1, 2, 3 + i % 5)),
        slots=8, group_size=2, window=4, max_response_tokens=9, select=every_window,
    )  # fmt: skip
    sampling = Sampling(1.0, frozenset(range(3)), seed=1)
    seen = set()
    for version in range(8):
        batch = slots.admit()
        assert len(batch) == 8
        slots.extend(engine.generate(slots.requests(), sampling), version)
        for r in batch:
            seen.add(r.status)
            stopped = r.tokens[-1] in sampling.stop_ids
            assert stopped == (r.status is Status.EOS)
            assert (len(r.tokens) == 9 and not stopped) == (r.status is Status.LENGTH)
        slots.settle(version)
        assert slots.take() == batch
    assert seen == {Status.EOS, Status.LENGTH, Status.UNFINISHED}


def test_a_response_does_not_depend_on_its_company(pair: tuple[Any, Any]) -> None:
    policy, engine = pair
    engine.load_policy(policy.weights(), 9)
    sampling = Sampling(1.0, frozenset({0}), seed=3)
    together = engine.generate(requests(), sampling)
    assert engine.generate(requests()[4:5], sampling)[0].tokens == together[4].tokens
    other = engine.generate(requests(), Sampling(1.0, frozenset({0}), seed=4))
    assert [a.tokens for a in other] != [a.tokens for a in together]


def test_a_stale_layer_is_caught(pair: tuple[Any, Any]) -> None:
    """One that was not given: vLLM says nothing, and goes on with the one it has."""
    policy, engine = pair
    engine.load_policy(policy.weights(), 10)
    probe(engine, policy, PROMPTS, bound=1e-4, version=10, ranks=Ranks())
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.add_(
            torch.randn(policy.vocab_size, 1, generator=torch.Generator().manual_seed(1))
        )
    engine.load_policy(
        [(n, w) for n, w in policy.weights() if n not in ("lm_head.weight", "model.embed_tokens.weight")], 11
    )
    with pytest.raises(EngineError, match="stale"):
        probe(engine, policy, PROMPTS, bound=BOUNDS[True], version=11, ranks=Ranks())


@pytest.mark.parametrize("fault", ["stale output layer", "zeroed k_proj", "lost norm"])
def test_a_fault_in_one_layer_is_caught(pair: tuple[Any, Any], fault: str) -> None:
    policy, engine = pair
    before = {name: w + w.std() * torch.randn_like(w) for name, w in policy.weights()}
    engine.load_policy(stale_weights(dict(policy.weights()), before)[fault].items(), 13)
    with pytest.raises(EngineError, match="stale"):
        probe(engine, policy, PROMPTS, bound=BOUNDS[False], version=13, ranks=Ranks())
    engine.load_policy(policy.weights(), 14)
    probe(engine, policy, PROMPTS, bound=1e-4, version=14, ranks=Ranks())


def test_bfloat16_passes_the_default_bound(tmp_path: Path) -> None:
    """Sound weights, in an engine that computes in bfloat16, beside a trainer in float32 and one in bfloat16. NaN does
    not; it comes last, for it stays in the engine's memory for keys and values.
    """
    from tppo.engines.vllm import VllmEngine

    model = tiny_lm("qwen3", tied=False, head_dim=32)
    model.save_pretrained(tmp_path)
    engine = VllmEngine(tmp_path, OPTIONS, dtype="bfloat16", seed=0, ranks=Ranks())
    try:
        for of_trainer in (model, copy.deepcopy(model).bfloat16()):
            trainer = TransformerPolicy(of_trainer)
            engine.load_policy(trainer.weights(), 1)
            assert 0 < probe(engine, trainer, PROMPTS, bound=BOUNDS[True], version=1, ranks=Ranks()) < BOUNDS[True] / 3
        weights = dict(trainer.weights())
        engine.load_policy(stale_weights(weights, weights)["NaN"].items(), 2)
        with pytest.raises(EngineError):
            probe(engine, trainer, PROMPTS, bound=BOUNDS[True], version=2, ranks=Ranks())
    finally:
        engine.close()


def test_many_seeded_requests_at_once(pair: tuple[Any, Any]) -> None:
    """More prompt tokens than one batch of the engine holds: no prefill may be cut in two."""
    policy, engine = pair
    engine.load_policy(policy.weights(), 12)
    reqs = [GenerationRequest(i, tuple(1 + (i + k) % 20 for k in range(100)), 0, 3) for i in range(96)]
    answers = engine.generate(reqs, Sampling(1.0, frozenset({0}), seed=0))
    # A hundred tokens of context in float32: round-off of a few 1e-5.
    assert largest_gap(policy, reqs, answers, 1.0) < 1e-4


class Sleeper:
    """Stands for vLLM on a GPU, where it can sleep: notes the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.llm_engine = self

    def collective_rpc(self, method: str, kwargs: Any) -> None:
        self.calls.append(method)

    def reset_prefix_cache(self) -> bool:
        return True

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake {tags[0]}")

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def enqueue(self, prompts: Any, params: Any, use_tqdm: bool) -> list[str]:
        self.calls.append("generate")
        return ["0"]

    def has_unfinished_requests(self) -> bool:
        return False


def test_memory_is_given_back_after_a_generation_and_taken_before_weights() -> None:
    """The order that vLLM asks for: weights' memory, weights, then the cache's. Nothing is generated while asleep."""
    from tppo.engines.vllm import VllmEngine

    engine: Any = object.__new__(VllmEngine)
    engine.llm, engine._own_process, engine._sleeps, engine._asleep = Sleeper(), False, True, False
    engine._sampling_params = dict
    for version in range(2):
        engine.load_policy([("w", torch.zeros(1))], version)
        engine.generate([], Sampling(1.0, frozenset(), seed=0))
    assert engine.llm.calls == [
        "reload_weights", "generate", "sleep 2",
        "wake weights", "reload_weights", "wake kv_cache", "generate", "sleep 2",
    ]  # fmt: skip
    with pytest.raises(EngineError, match="load a policy before each generation"):
        engine.generate([], Sampling(1.0, frozenset(), seed=0))
