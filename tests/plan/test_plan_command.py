"""`tppo plan` as a stranger uses it: what is printed, what is refused, and what to change."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from paper_repro.plan_clock import predict
from tests.plan.test_plan import big
from tppo.algorithms import PPO
from tppo.cli import main
from tppo.config.recipes import load_recipe
from tppo.config.registry import with_algorithm
from tppo.config.run import RunConfig, TaskConfig
from tppo.errors import ConfigError, TPPOError
from tppo.plan import clock
from tppo.plan.clock import TimeQuestion
from tppo.plan.command import Options, make_plan
from tppo.plan.formula import estimate
from tppo.plan.report import as_json, memory_table, text
from tppo.plan.track import Figures, Job, track

ROOT = Path(__file__).parents[2]


@pytest.fixture
def by_formula(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Arithmetic in the place of the tracker, which takes a minute at 32B; the jobs that were tracked."""
    jobs: list[Job] = []

    def instead(job: Job) -> dict[str, Figures]:
        jobs.append(job)
        return {name: estimate(job, name) for name in ("policy", "critic")}

    monkeypatch.setattr("tppo.plan.track.track", instead)
    return jobs


def ask(config: RunConfig, gpus: int = 64, gpu: str = "H800", **changes: Any) -> TimeQuestion:
    shape = config.task.shape()
    assert shape is not None
    question = TimeQuestion(config, shape.config, shape.prompt_tokens, gpus, gpu, 2000.0, 1.0, None)
    return dataclasses.replace(question, **changes)


def test_plan_of_a_small_recipe(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The whole way, tracker included."""
    out = tmp_path / "plan.json"
    assert main(["plan", "toy-language", "--gpus", "2", "--gpu", "h800", "--json", str(out), "--steps", "7"]) == 0
    said = capfd.readouterr()
    assert "toy-language on 2 H800: qwen2, 0.50 million parameters" in said.out
    assert "It fits" in said.out
    assert "policy: 0.50 million parameters among 2 ranks" in said.err
    found = json.loads(out.read_text())
    assert found["config"]["steps"] == 7
    assert found["models"]["policy"]["numbers"] == 47 * 128 + 3 * 164_480 + 128
    phases = found["tracked"]["phases"]
    assert list(phases) == ["load weights", "generate", "update critic", "update policy"]
    for parts in phases.values():
        assert parts.pop("total") == sum(parts.values())
    assert found["nearest"] is None


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["plan", "token-mdp", "--gpus", "2", "--gpu", "h800"], "recipe = 'token-mdp': expected a recipe with a trans"),
        (["plan", "toy-language", "--gpus", "2", "--gpu", "x1"], "gpu = 'x1': expected one of a100, h100"),
        (["plan", "toy-language", "--gpu", "h800"], "gpus = None"),
        (["plan", "toy-language", "--gpus", "2"], "gpu = None"),
        (["plan", "toy-language", "--gpus", "0", "--gpu", "h800"], "gpus = 0"),
        (["plan", "toy-language", "--gpus", "2", "--gpu", "h800", "--sigma", "-1"], "sigma = -1.0"),
        (["plan", "toy-language", "--gpus", "2", "--gpu", "h800", "--reserve", "nan"], "reserve = nan"),
        (["plan", "toy-language", "--gpus", "2", "--gpu", "h800", "--json", "/nowhere/x"], "json = '/nowhere/x'"),
        (["plan", "smollm2-135m", "--gpus", "4", "--gpu", "h100", "--vllm.tensor-parallel", "3"], "gpus = 4: expected"),
        (["plan", "smollm2-135m", "--gpus", "4", "--gpu", "h100", "--vllm.tensor-parallel", "2"], "9 attention heads"),
        (["plan", "smollm2-135m", "--gpus", "4", "--gpu", "h100", "--vllm.own-process"], "vllm.own_process = True"),
        (["plan", "smollm2-135m", "--gpus", "4", "--gpu", "h100", "--task.model", "a/b"], "task.model = 'a/b'"),
        (["plan", "smollm2-135m", "--gpus", "4", "--gpu", "h100", "--vllm.max-model-tokens", "99"], "at least 192"),
        (["plan", "smollm2-135m", "--gpus", "4", "--gpu", "h100", "--rollout.max-response-tokens", "9000",
          "--vllm.max-model-tokens", "9200"], "8064: "),
        (["plan"], "recipe = None"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert says in capsys.readouterr().err


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--help"]) == 0
    assert "--gpu-memory GIB" in capsys.readouterr().out


def test_what_does_not_fit_exits_with_2_and_the_nearest_flags(
    by_formula: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    """4.09 GiB with the reserve; of 4.05 nothing but a cache cut among more ranks gives way."""
    assert main(["plan", "toy-language", "--gpus", "2", "--gpu", "h800", "--gpu-memory", "4.07"]) == 2
    out = capsys.readouterr().out
    assert "It does not fit:\n  - load weights: 4.1 GiB on each GPU of 4.1 GiB" in out
    assert "--gpus 4" in out.splitlines()[-1]


def test_the_paper_s_run_needs_a_smaller_share_for_the_engine(by_formula: list[Job]) -> None:
    """At 0.85 vLLM and the sleeping trainer's shards do not fit on 80 GB; one flag is enough, and nothing is tracked
    again for it."""
    plan = make_plan(big(), Options(64, "h800"))
    assert not plan.tracked.fits
    assert [p.name for p in plan.tracked.phases if p.total > plan.tracked.memory] == ["generate"]
    assert plan.remedy is not None
    assert plan.remedy[0].flags == ("--vllm.memory-fraction 0.7",)
    assert len(by_formula) == 1
    assert make_plan(big(vllm__memory_fraction=0.65), Options(64, "h800")).tracked.fits
    larger = make_plan(big(), Options(64, "h200"))
    assert larger.remedy is not None
    assert larger.remedy[0].flags == ("--vllm.memory-fraction 0.8",)
    assert make_plan(big(), Options(64, "h800", search=False)).remedy is None


def test_search_checks_what_it_changes(by_formula: list[Job]) -> None:
    """Without recompute at a quarter of the GPUs: activations decide, and the tracker is asked again."""
    plan = make_plan(big(compute__recompute=False, vllm__memory_fraction=0.5), Options(64, "h800"))
    assert plan.remedy is not None
    assert "--compute.recompute" in plan.remedy[0].flags
    assert by_formula[-1].compute.recompute
    assert by_formula[-1] == dataclasses.replace(by_formula[0], compute=by_formula[-1].compute)
    assert "No arrangement that was tried fits" in text(make_plan(big(), Options(8, "h800", memory=6.0)))


def test_table_and_json_say_the_same(by_formula: list[Job]) -> None:
    plan = make_plan(big(vllm__memory_fraction=0.6), Options(64, "h800"))
    table = memory_table(plan.tracked, plan.formula).splitlines()
    assert table[0].split("  ")[0] == "GiB on each GPU, by tracker (by formula)"
    total = next(line for line in table if line.startswith("total"))
    stored = as_json(plan)
    for name, parts in stored["tracked"]["phases"].items():
        assert f"{parts['total'] / 2**30:.2f} ({parts['total'] / 2**30:.2f})" in total, name
    assert len({len(line) for line in table if line.startswith(("-", "total", "free"))}) == 1
    assert json.loads(json.dumps(stored))["tracked"]["fits"] is True
    assert stored["host"]["worst"] > stored["host"]["expected"] > 0
    assert text(plan).count("\n") > 30


def test_a_machine_has_no_more_ranks_than_were_asked_for(by_formula: list[Job]) -> None:
    """One GPU is one rank; of more than eight, eight are in a machine."""
    small = load_recipe("qwen2.5-0.5b-tppo")
    for gpus, ranks in ((1, 1), (4, 4), (8, 8), (16, 8)):
        plan = make_plan(small, Options(gpus, "h200", search=False))
        line = next(line for line in text(plan).splitlines() if line.startswith("Machine:"))
        expected, worst = (f"{ranks * n / 2**30:.2f} GiB" for n in (plan.host.expected or 0, plan.host.worst))
        assert line.endswith(f"times {ranks} rank{'s' if ranks > 1 else ''} a machine {expected} to {worst}")


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-Math-7B"])
def test_tuned_models_are_planned_as_their_base(name: str, by_formula: list[Job]) -> None:
    base = load_recipe("qwen2.5-7b-tppo").with_values(
        rollout__max_response_tokens=2000, algorithm__window=1000, vllm__max_model_tokens=4096,
    )  # fmt: skip
    ours, theirs = (make_plan(c, Options(8, "h800")) for c in (base, base.with_values(task__model=name)))
    assert (ours.tracked.phases, ours.figures) == (theirs.tracked.phases, theirs.figures)


def test_a_dead_tracker_is_an_error() -> None:
    with pytest.raises(TPPOError, match="status 1"):
        track("no job")  # type: ignore[arg-type]


def test_time_follows_the_schedule() -> None:
    """A window as long as the cap is PPO; a shorter one generates less a step; epochs and a reference cost."""
    whole = predict(ask(with_algorithm(big(), PPO)))
    same = predict(ask(big(algorithm__window=24576)))
    cut = predict(ask(big()))
    assert whole.phases == same.phases
    assert cut.phases["decode"] < whole.phases["decode"]
    assert cut.finished < whole.finished == 1024
    twice = predict(ask(big(policy__epochs=2, algorithm__kl=0.1)))
    assert twice.phases["update_policy"] == pytest.approx(2 * cut.phases["update_policy"])
    assert twice.phases["reference"] == cut.phases["logprobs"]
    assert twice.seconds == pytest.approx(cut.seconds + cut.phases["update_policy"] + cut.phases["logprobs"])
    faster = predict(ask(big(), gpus=128))
    assert faster.phases["update_policy"] == pytest.approx(cut.phases["update_policy"] / 2)
    with pytest.raises(ConfigError, match=r"vllm\.tensor_parallel = 1"):
        predict(ask(big(vllm__tensor_parallel=1)))


def test_the_clock_comes_through_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"][clock.GROUP]["clock"].partition(":")
    assert getattr(import_module(module), name) is predict
    monkeypatch.setattr(clock, "plugins", lambda group: {})
    assert clock.predict(ask(big())) is None


def test_tasks_without_a_shape_have_none() -> None:
    assert TaskConfig().shape() is None
