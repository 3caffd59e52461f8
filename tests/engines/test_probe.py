"""The probe after a load of weights: sound ones pass whatever either side computes in, and nothing else does."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.support.faults import stale_weights
from tests.support.helpers import small_token_mdp, tiny_lm
from tests.support.launch import TOY, other, succeed, torchrun
from tppo.cli import main
from tppo.config.stored import read_config
from tppo.engines.embedded import EmbeddedEngine
from tppo.engines.probe import BOUNDS, LEAST_TOKENS, probe
from tppo.errors import EngineError
from tppo.loop import trainer as trainer_part
from tppo.models.folder import load_causal_lm
from tppo.models.tabular import TabularPolicy
from tppo.models.transformer import TransformerPolicy
from tppo.ranks.ranks import Ranks
from tppo.runs.build import build_trainer
from tppo.runs.folder import read_metrics

KINDS = [("qwen2", True), ("qwen2", False), ("qwen3", True), ("qwen3", False), ("llama", True), ("llama", False)]
SHORT = [(1, 2), (3, 1, 4)]
FAULTS = ("stale output layer", "zeroed k_proj", "lost norm", "NaN")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Prompts = Sequence[Sequence[int]]


def narrow(model: Any, dtype: str) -> TransformerPolicy:
    """A copy in another precision."""
    return TransformerPolicy(copy.deepcopy(model).to(DTYPES[dtype]))


def gap(engine: Any, policy: Any, prompts: Prompts, dtypes: tuple[str, str]) -> float:
    """Of the probe with the bound that a run has by default; dtypes: of engine and trainer."""
    bound = BOUNDS["bfloat16" in dtypes]
    return probe(engine, policy, prompts, bound=bound, version=3, ranks=Ranks())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Prompts]:
    """The base model of the small toy runs, and the prompts that such a run probes with."""
    out = tmp_path_factory.mktemp("toy") / "run"
    assert main(["train", *other(TOY, "--steps", "1", "--algorithm.warmup-steps", "0"), "--out", str(out)]) == 0
    config = read_config(out)
    workload = config.task.build(config, Ranks())
    assert workload.folder is not None
    return load_causal_lm(workload.folder), [workload.prompts(i).tokens for i in range(2)]


@pytest.mark.parametrize(("kind", "tied"), KINDS)
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")])
def test_sound_weights_pass(kind: str, tied: bool, dtypes: tuple[str, str]) -> None:
    model = tiny_lm(kind, tied=tied)
    engine, policy = EmbeddedEngine(narrow(model, dtypes[0])), narrow(model, dtypes[1])
    found = gap(engine, policy, SHORT, dtypes)
    assert found < (1e-5 if dtypes[0] == "float32" else 0.01)
    engine.load_policy(narrow(tiny_lm(kind, tied=tied, seed=1), dtypes[1]).weights(), 4)
    with pytest.raises(EngineError, match=r"after loading policy version 3 .* \(probe_bound\)"):
        gap(engine, policy, SHORT, dtypes)


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")])
def test_a_trained_model_passes_and_each_fault_is_found(trained: tuple[Any, Prompts], dtypes: tuple[str, str]) -> None:
    """Beside sound weights a factor of three to the bound; with one fault beyond it."""
    model, prompts = trained
    engine, policy = EmbeddedEngine(narrow(model, dtypes[0])), narrow(model, dtypes[1])
    bound = BOUNDS["bfloat16" in dtypes]
    assert gap(engine, policy, prompts, dtypes) < bound / 3
    other = copy.deepcopy(model)
    head = other.get_output_embeddings().weight
    with torch.no_grad():
        head += head.std() * torch.randn(head.shape, generator=torch.Generator().manual_seed(1))
    faults = stale_weights(dict(policy.weights()), dict(narrow(other, dtypes[1]).weights()))
    assert faults.keys() == set(FAULTS)
    for fault, weights in faults.items():
        engine.load_policy(weights.items(), 3)
        with pytest.raises(EngineError, match="some weight in the engine is stale") as raised:
            gap(engine, policy, prompts, dtypes)
        assert ("nan nats" in str(raised.value)) == (fault == "NaN")
        engine.load_policy(policy.weights(), 3)
        assert gap(engine, policy, prompts, dtypes) < bound / 3, f"{fault} is gone with a sound load"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("kind", "tied"), [("qwen2", True), ("qwen3", False), ("llama", False)])
def test_in_float32_a_fault_of_a_random_model_is_found(kind: str, tied: bool, fault: str) -> None:
    model, g = tiny_lm(kind, tied=tied), torch.Generator().manual_seed(0)
    prompts = [tuple(torch.randint(0, 23, (n,), generator=g).tolist()) for n in (12, 20)]
    policy, engine = TransformerPolicy(model), EmbeddedEngine(TransformerPolicy(model))
    before = dict(TransformerPolicy(tiny_lm(kind, tied=tied, seed=1)).weights())
    assert BOUNDS[False] == 0.01
    assert gap(engine, policy, prompts, ("float32", "float32")) < 1e-5
    engine.load_policy(stale_weights(dict(policy.weights()), before)[fault].items(), 3)
    with pytest.raises(EngineError, match="stale"):
        gap(engine, policy, prompts, ("float32", "float32"))


class Asked:
    """An engine that says what it is told to; keeps what it is asked."""

    def __init__(self, *answers: Sequence[float]) -> None:
        self.answers, self.texts = list(answers), list[tuple[int, ...]]()

    def score(self, tokens: Sequence[int], first: int) -> Sequence[float]:
        assert first == 1
        self.texts.append(tuple(tokens))
        return self.answers.pop(0)


def uniform(words: int = 4) -> TabularPolicy:
    """Every token has probability 1/words."""
    return TabularPolicy(torch.zeros(1, words, dtype=torch.int64), torch.zeros(1, words))


def test_the_mean_over_all_tokens_of_all_prompts() -> None:
    """Not the largest, and not a mean of means: the longer prompt weighs more. A short one gets fixed tokens."""
    policy, long = uniform(), (4, *[1] * 12)
    sure = -torch.tensor(4.0).log().item()
    engine: Any = Asked([sure + 0.8] + [sure] * 7, [sure - 0.1] * 12)
    prompts = [(4,), long]
    found = probe(engine, policy, prompts, bound=0.1 + 1e-6, version=0, ranks=Ranks())
    assert found == pytest.approx((0.8 + 12 * 0.1) / 20, abs=1e-6)
    assert engine.texts == [(4, 0, 1, 2, 3, 0, 1, 2, 3), long]
    assert len(engine.texts[0]) == LEAST_TOKENS + 1
    engine = Asked([sure + 0.8] + [sure] * 7, [sure - 0.1] * 12)
    with pytest.raises(EngineError, match=r"version 7 .* differ by 0\.1 nats on average, expected at most 0\.09 "):
        probe(engine, policy, prompts, bound=0.09, version=7, ranks=Ranks())


def test_one_that_is_not_a_number_is_enough() -> None:
    engine: Any = Asked([-1.4] * 7 + [float("nan")])
    with pytest.raises(EngineError, match="differ by nan nats"):
        probe(engine, uniform(), [(4,)], bound=1e9, version=0, ranks=Ranks())


def test_the_worst_rank_decides() -> None:
    """A NaN above all; the failure of an engine is that engine's own error."""

    class Three(Ranks):
        def __init__(self, *others: float) -> None:
            super().__init__()
            self.others, self.failures = others, list[Exception | None]()

        def together(self, value: Any, failure: Exception | None) -> list[Any]:
            self.failures.append(failure)
            if failure is not None:
                raise failure
            return [value, *self.others]

    sure = -torch.tensor(4.0).log().item()

    def found(*others: float) -> float:
        engine: Any = Asked([sure] * 8)
        return probe(engine, uniform(), [(4,)], bound=0.5, version=0, ranks=Three(*others))

    assert found(0.3, 0.2) == 0.3
    for others in ((0.6, 0.2), (float("nan"), 0.9), (0.9, float("nan"))):
        with pytest.raises(EngineError, match=r"differ by (0\.6|nan) nats"):
            found(*others)
    broken, ranks = mock.Mock(**{"score.side_effect": EngineError("the engine broke")}), Three()
    with pytest.raises(EngineError, match="the engine broke"):
        probe(broken, uniform(), [(4,)], bound=0.5, version=0, ranks=ranks)
    assert [str(e) for e in ranks.failures] == ["the engine broke"]  # the other ranks were told


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({}, 0.01),
        ({"compute__dtype": "bfloat16"}, 0.15),
        ({"vllm__dtype": "bfloat16"}, 0.01),  # the embedded engine does not read that
        ({"engine": "vllm", "vllm__dtype": "float16"}, 0.15),
        ({"engine": "vllm", "vllm__dtype": "float32", "compute__dtype": "bfloat16"}, 0.15),
        ({"engine": "vllm", "compute__dtype": "bfloat16"}, 0.15),
        ({"engine": "vllm"}, 0.01),
        ({"probe_bound": 0.5}, 0.5),
        ({"probe_bound": 1e-4, "compute__dtype": "bfloat16"}, 1e-4),
    ],
)
def test_every_load_is_probed_with_the_bound_of_its_precision(changes: dict[str, Any], bound: float) -> None:
    trainer = build_trainer(small_token_mdp())
    trainer.config = trainer.config.with_values(**changes)
    with mock.patch.object(trainer_part, "probe") as probed:
        trainer.load_policy()
    [call] = probed.call_args_list
    assert call.kwargs == {"bound": bound, "version": 0, "ranks": trainer.ranks}
    assert call.args[2] == [trainer.workload.prompts(i).tokens for i in range(2)]


def test_a_fault_stops_a_step_before_anything_is_generated() -> None:
    trainer = build_trainer(small_token_mdp())
    trainer.step()
    load = trainer.engine.load_policy
    stale = [(name, w.clone() + torch.randn_like(w)) for name, w in trainer.policy.weights()]
    trainer.engine.load_policy = lambda named, version: load(stale, version)  # type: ignore[method-assign]
    trainer.engine.generate = mock.Mock()  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="stale"):
        trainer.step()
    trainer.engine.generate.assert_not_called()
    with pytest.raises(EngineError, match="stale"):
        trainer.evaluate()
    trainer.engine.generate.assert_not_called()


def test_a_run_in_bfloat16_passes_the_probe_of_every_step(tmp_path: Path) -> None:
    """Its weights move in every step; the bound is the one by default."""
    argv = ["train", *other(TOY, "--steps", "8", "--compute.dtype", "bfloat16", "--algorithm.warmup-steps", "0")]
    succeed(torchrun(1, ["-m", "tppo", *argv, "--out", tmp_path / "run"]))
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [m["step"] for m in metrics] == list(range(8))
    assert all(m["policy_updates"] > 0 for m in metrics)
    assert all(0 < m["engine_gap_mean"] < BOUNDS[True] / 3 for m in metrics)
    assert read_config(tmp_path / "run").probe_bound is None
