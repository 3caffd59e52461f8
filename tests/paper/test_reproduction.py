"""The reproduction end to end on a dry run: once, again, stopped in the middle, with other inputs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import pytest

from paper_repro.reproduction import command as module
from paper_repro.reproduction.command import PARTS, Reproduction, Stopped, main, reproduce
from paper_repro.reproduction.pairs import SIZES, pair, parse_changes
from paper_repro.reproduction.pipeline import Stage, digest_of_stage, on_main, result_of_stage, run_stage
from tests.support.mutants import mutants
from tppo.algorithms import PPO, TPPO, ValuePretraining
from tppo.config.registry import with_algorithm
from tppo.config.run import validate
from tppo.errors import ConfigError, DataError, TPPOError
from tppo.loop.trainer import Trainer
from tppo.ranks.ranks import Ranks

ROOT = Path(__file__).parents[2]


class Said(Ranks):
    """Rank 0 of two; remembers what it said."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        self.said: list[Any] = []

    def gather(self, value: Any) -> list[Any]:
        self.said.append(value)
        return [value, (None, None)]


class Told(Ranks):
    """Rank 1 of two: hears what rank 0 said, and must touch no file."""

    def __init__(self, *said: Any) -> None:
        super().__init__(1, 2)
        self.said = list(said)

    def gather(self, value: Any) -> list[Any]:
        assert value == (None, None)
        return [self.said.pop(0), value]


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPPO_CACHE", str(cache))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A dry run of the largest size, from data to figures."""
    out = tmp_path_factory.mktemp("whole") / "32b"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPPO_CACHE", str(cache))
        assert main(["--size", "32b", "--dry-run", "--quiet", "--out", str(out)]) == 0
    return out


def test_every_stage_leaves_its_folder(whole: Path) -> None:
    names = ["data", "value", "tppo-seed0", "ppo-seed0", "evaluate-base", "evaluate-tppo-seed0", "evaluate-ppo-seed0"]
    for name in [*names, "figures"]:
        assert digest_of_stage(whole, name)
    assert len((whole / "data" / "train.jsonl").read_text().splitlines()) == 16
    report = (whole / "figures" / "report.md").read_text()
    assert "**Dry run: a small random model." in report
    assert "| evaluate" not in report
    assert "| tppo-seed0 | " in report
    assert "- tppo-seed0 - ppo-seed0: " in report
    assert (whole / "figures" / "figure.png").read_bytes().startswith(b"\x89PNG")
    done = json.loads((whole / "evaluate-base" / "done.json").read_text())["result"]
    assert (done["problems"], done["samples"]) == (2, 2)
    assert {"avg@2", "pass@2"} == set(done["scores"])


def test_both_algorithms_begin_with_the_pretrained_critic(whole: Path) -> None:
    value = json.loads((whole / "value" / "run" / "config.json").read_text())["config"]
    assert value["algorithm"]["class"].endswith(":ValuePretraining")
    assert value["steps"] == 2
    for name in ("tppo-seed0", "ppo-seed0"):
        config = json.loads((whole / name / "run" / "config.json").read_text())["config"]
        assert config["algorithm"]["critic"]["start"] == str(whole / "value" / "run")
        assert config["algorithm"]["warmup_steps"] == 0
        assert config["task"]["model"] == "shrunken:Qwen2.5-32B"
        rows = (whole / name / "run" / "metrics.jsonl").read_text().splitlines()
        assert len(rows) == 3
        assert all(json.loads(row)["trained_tokens"] > 0 for row in rows)


def test_the_second_call_touches_nothing(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(whole)
    monkeypatch.setattr(module, "run", lambda *a, **k: pytest.fail("a run was begun"))
    monkeypatch.setattr(module, "evaluate_policy", lambda *a: pytest.fail("a policy was asked"))
    assert main(["--size", "32b", "--dry-run", "--quiet", "--out", str(whole)]) == 0
    made = whole / "made-problems"  # rewritten, with the same bytes
    after = snapshot(whole)
    assert {p: v for p, v in after.items() if made not in p.parents} == {
        p: v for p, v in before.items() if made not in p.parents
    }
    assert capsys.readouterr().err.count("was done before, skipped") == 8


def test_other_inputs_are_refused_with_their_names(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(whole / "value")
    command = ["--size", "32b", "--dry-run", "--quiet", "--out", str(whole)]
    assert main([*command, "--set", "algorithm.critic.lr=0.5"]) == 2
    said = capsys.readouterr().err
    assert "a stage with the same inputs, but these changed: config.algorithm.critic.lr; set them back" in said
    assert main(["--size", "7b", "--dry-run", "--quiet", "--out", str(whole), "--stages", "value"]) == 2
    assert "config.task.model" in capsys.readouterr().err
    assert snapshot(whole / "value") == before
    # What cannot change a result may change.
    assert main([*command, "--stages", "value,tppo", "--set", "checkpoint.every=2"]) == 0


def test_changed_problems_are_noticed(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    shutil.copytree(whole / "made-problems", data)
    command = ["--size", "32b", "--dry-run", "--quiet", "--out", str(whole), "--stages", "data", "--data", str(data)]
    assert main(command) == 0  # the same bytes elsewhere
    with (data / "dapo-math-17k.jsonl").open("a") as file:
        file.write("\n")
    assert main(command) == 2
    assert "but these changed: train.sha256;" in capsys.readouterr().err


def toy(out: Path, **options: Any) -> Reproduction:
    return Reproduction(pair("toy", dry_run=True), out, Ranks(), progress=False, **options)


def test_stopped_in_the_middle_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T-PPO dies in its second step; the same call then does what is left, as if nothing had happened."""
    parts = ("value", "tppo")
    reproduce(toy(tmp_path / "whole"), parts)
    step, calls = Trainer.step, 0

    def dies(self: Trainer) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == 4:  # two of value pretraining, one of T-PPO
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        reproduce(toy(tmp_path / "r"), parts)
    assert not (tmp_path / "r" / "tppo-seed0" / "done.json").exists()
    with pytest.raises(ConfigError, match="stages = 'tppo-seed0': expected a stage that is done; run it first"):
        digest_of_stage(tmp_path / "r", "tppo-seed0")
    monkeypatch.setattr(Trainer, "step", step)
    value = snapshot(tmp_path / "r" / "value")
    assert reproduce(toy(tmp_path / "r"), parts) == ["tppo-seed0"]
    assert snapshot(tmp_path / "r" / "value") == value
    one, two = (tmp_path / name / "tppo-seed0" / "run" for name in ("whole", "r"))
    for name in ("model.safetensors", "config.json"):
        assert (one / "policy" / name).read_bytes() == (two / "policy" / name).read_bytes()
    assert len((two / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_signal_stops_it_with_a_status_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "run", lambda *a, **k: {"terminated": True, "interrupted": False})
    assert main(["--size", "toy", "--dry-run", "--quiet", "--out", str(tmp_path / "r"), "--stages", "value"]) == 75
    assert "value was ended by SIGTERM; the same command goes on" in capsys.readouterr().err
    with pytest.raises(Stopped):
        reproduce(toy(tmp_path / "r"), ("value",))
    assert not (tmp_path / "r" / "value" / "done.json").exists()


def test_a_stage_needs_those_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--size", "toy", "--dry-run", "--out", str(tmp_path / "r"), "--stages", "ppo"]) == 2
    assert "stages = 'value': expected a stage that is done; run it first" in capsys.readouterr().err


def test_more_seeds_later_add_runs_and_draw_again(tmp_path: Path) -> None:
    done = reproduce(toy(tmp_path / "r"))
    assert done[-1] == "figures"
    again = reproduce(toy(tmp_path / "r", seeds=2))
    assert again == ["tppo-seed1", "ppo-seed1", "evaluate-tppo-seed1", "evaluate-ppo-seed1", "figures"]
    assert "toy-language, seed 1" in (tmp_path / "r" / "figures" / "table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--size", "3b"], "size = '3b': expected one of toy, smollm2, 0.5b, 7b, 32b"),
        (["--size", "toy", "--seeds", "0"], "seeds = 0: expected a number in [1, 10000]"),
        (["--size", "toy", "--target", "90"], "target = 90.0: expected a number in (0, 1]"),
        (["--size", "toy", "--stages", "value,train"], "stages = 'train': expected some of data,value"),
        (["--size", "toy", "--data", "."], "data = '.': expected no --data for size 'toy'; its problems are made"),
        (["--size", "7b", "--data", "nowhere"], "data = 'nowhere': expected one of dapo-math-17k.parquet"),
        (["--size", "toy", "--set", "rollout.slots"], "set = 'rollout.slots': expected FIELD=VALUE"),
        (["--size", "toy", "--set", "seed=4"], "set = 'seed': expected a field that the reproduction leaves open"),
        (["--size", "toy", "--set", "rollout.slot=4"], "slot = 'unknown': expected one of"),
        (
            ["--size", "toy", "--set", "steps=3", "--set", "steps=4"],
            "set = 'steps=4': expected one value; steps is",
        ),
        (["--size", "toy", "--set", "rollout.slots=-4"], "rollout.slots = -4: expected a number in [1, 1000000]"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(
    tmp_path: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "r")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "r" / "data" / "inputs.json").exists()
    assert not (tmp_path / "r" / "value").exists()


@pytest.mark.parametrize("name", list(SIZES))
@pytest.mark.parametrize("dry", [False, True])
def test_every_size_compares_like_with_like(name: str, dry: bool) -> None:
    chosen = pair(name, dry_run=dry)
    for config in (chosen.tppo, chosen.ppo, chosen.value):
        validate(config)
    a, b = chosen.tppo, chosen.ppo
    assert (a.task, a.rollout, a.policy, a.steps, a.evaluation) == (b.task, b.rollout, b.policy, b.steps, b.evaluation)
    one, two, value = a.algorithm, b.algorithm, chosen.value.algorithm
    assert isinstance(one, TPPO)
    assert type(two) is PPO
    assert one.window < a.rollout.max_response_tokens
    assert two == with_algorithm(a, PPO).algorithm  # the same numbers, the critic's too
    assert one.warmup_steps == two.warmup_steps == 0
    assert isinstance(value, ValuePretraining)
    assert value.window is None  # the critic sees whole responses, long ones too
    assert value.critic == two.critic
    assert chosen.dry_run == dry


def test_fields_go_to_the_runs_they_belong_to() -> None:
    changes = parse_changes(
        ["steps=7", "rollout.slots=64", "algorithm.window=16", "value.steps=9", "engine=torch",
         "algorithm.imitate=0.0", "evaluation.problems=5"]
    )  # fmt: skip
    chosen = pair("toy", changes)
    assert [c.steps for c in (chosen.tppo, chosen.ppo, chosen.value)] == [7, 7, 9]
    assert [c.rollout.slots for c in (chosen.tppo, chosen.ppo, chosen.value)] == [64] * 3
    one, two = chosen.tppo.algorithm, chosen.ppo.algorithm
    assert isinstance(one, TPPO)
    assert isinstance(two, PPO)
    assert (one.window, one.imitate, two.imitate) == (16, 0.0, 0.0)
    assert (chosen.tppo.evaluation.problems, chosen.value.evaluation.problems) == (5, 2)


def stage_of(inputs: dict[str, Any], work: Callable[[Path], Any] = lambda folder: {"x": 1}) -> Stage:
    return Stage("s", lambda: inputs, work)


def test_a_damaged_stage_is_refused(tmp_path: Path) -> None:
    assert run_stage(stage_of({"a": 1}), tmp_path, Ranks())
    (tmp_path / "s" / "done.json").write_text('{"digest": "0", "result": {}}')
    with pytest.raises(DataError, match=r"done\.json does not belong to .*inputs\.json: were they edited\? Remove"):
        run_stage(stage_of({"a": 1}), tmp_path, Ranks())
    (tmp_path / "s" / "done.json").write_text('{"dig')
    with pytest.raises(DataError, match=r"done\.json: expected JSON, found .*; remove .* to do the stage again"):
        run_stage(stage_of({"a": 1}), tmp_path, Ranks())


def test_every_mutant_of_a_stage_is_done_or_refused(tmp_path: Path) -> None:
    """inputs.json and done.json, each node removed or replaced; and no file at all in their place."""
    run_stage(stage_of({"a": 1, "b": [2]}), tmp_path, Ranks())
    shape, refused, done = {"x": int}, 0, 0
    for name in ("inputs.json", "done.json"):
        path = tmp_path / "s" / name
        good = path.read_text()
        for _, text in mutants(json.loads(good)):
            path.write_text(text)
            try:
                run_stage(stage_of({"a": 1, "b": [2]}), tmp_path, Ranks())
                result_of_stage(tmp_path, "s", TypedDict("S", shape))
                done += 1
            except TPPOError as error:
                refused += "\n" not in str(error)
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(TPPOError, match="regular file"):
            run_stage(stage_of({"a": 1, "b": [2]}), tmp_path, Ranks())
        path.unlink()
        path.write_text(good)
    assert refused > 40
    assert done >= 1


def test_ranks_hear_what_rank_0_found(tmp_path: Path) -> None:
    """A result, a refusal and a failure reach every rank, so none waits for one that has stopped."""
    zero = Said()
    calls: list[Path] = []
    run_stage(stage_of({"a": 1}, lambda folder: calls.append(folder) or {}), tmp_path, zero)
    other = Told(*zero.said)
    run_stage(stage_of({"a": 1}, lambda folder: calls.append(folder) or {}), tmp_path / "none", other)
    assert calls == [tmp_path / "s", tmp_path / "none" / "s"]  # the work itself is done by all
    assert not (tmp_path / "none").exists()
    assert not other.said
    zero = Said()
    with pytest.raises(ConfigError, match="but these changed: a;"):
        run_stage(stage_of({"a": 2}), tmp_path, zero)
    with pytest.raises(ConfigError, match="but these changed: a;"):
        run_stage(stage_of({"a": 2}), tmp_path / "none", Told(*zero.said))
    zero = Said()
    with pytest.raises(DataError, match="FileNotFoundError"):
        on_main(zero, lambda: (tmp_path / "nowhere").read_text())
    with pytest.raises(DataError, match="FileNotFoundError"):
        on_main(Told(*zero.said), lambda: "")


def test_it_is_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "paper_repro.reproduction", "--size", "3b", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "size = '3b': expected one of toy, smollm2, 0.5b, 7b, 32b" in done.stderr


@pytest.mark.parametrize("name", ["launch/launch_32b.sh", "launch/reproduce_32b.slurm"])
def test_launchers_are_sound_and_name_what_exists(name: str) -> None:
    path = ROOT / "paper_repro" / name
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert os.access(path, os.X_OK)
    text = path.read_text()
    assert "set -euo pipefail" in text
    if name.endswith(".sh"):
        assert "-m paper_repro.reproduction " in text
        [listed] = [line for line in text.splitlines() if line.startswith("STAGES=")]
        assert tuple(listed.partition(":-")[2].strip('}"').split()) == PARTS
