"""The command line as a stranger uses it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tppo.cli import main
from tppo.config.stored import read_config
from tppo.errors import ConfigError, DataError
from tppo.runs.folder import free_folder, read_metrics

FAST = [
    "--steps", "3", "--rollout.slots", "16", "--evaluation.problems", "32", "--evaluation.every", "2",
    "--algorithm.value-target.warmup-steps", "1",
]  # fmt: skip


def tppo(*args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tppo", *args], capture_output=True, text=True, **kwargs)


def test_help_answers_at_once_and_loads_no_torch() -> None:
    call = "try: main(['--help'])\nexcept SystemExit: pass"
    code = f"import sys; from tppo.cli import main\n{call}\nassert 'torch' not in sys.modules"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # A bound on a promise to the user (one second on an idle machine), not a measurement.
    assert time.perf_counter() - start < 5
    assert "tppo train toy-language" in done.stdout


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert "token-mdp-ppo " in out
    assert "T-PPO on a reasoning ladder" in out


def test_show_prints_the_resolved_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "token-mdp", "--algorithm.schedule.window", "12", "--seed", "5"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["algorithm"]["schedule"]["window"] == 12
    assert tree["seed"] == 5
    assert tree["task"]["class"] == "paper_repro.tasks.token_mdp:TokenMDPTask"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["train", "nonsense"], "recipe = 'nonsense': expected one of"),
        (["train"], "recipe = None"),
        (["show", "token-mdp", "--algorithm.schedule.window", "2"], "more than algorithm.filter.ignore_last"),
        (["show", "token-mdp", "--seed", "-3"], "seed = -3"),
        (["eval", "/nonexistent"], "config.json"),
    ],
)
def test_bad_input_exits_with_2_and_says_why(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("args", [["--no.such.field", "1"], ["--seed", "three"], ["--algorithm.schedule.window"]])
def test_unknown_or_unreadable_options_exit_with_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["show", "token-mdp", *args])
    assert caught.value.code == 2


def test_a_run_from_start_to_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", "token-mdp", "--out", str(out), "--quiet", *FAST]) == 0
    assert {p.name for p in out.iterdir()} == {
        "config.json", "metrics.jsonl", "summary.json", "curves.png", "policy", "checkpoints",
    }  # fmt: skip
    rows = read_metrics(out / "metrics.jsonl")
    assert [r["step"] for r in rows] == [0, 1, 2]
    assert "held_out_solve_rate" in rows[1]
    summary = json.loads((out / "summary.json").read_text())
    for name in ("solve_rate_base", "solve_rate_final", "wall_seconds", "tokens_generated", "exact_return"):
        assert summary[name] is not None
    assert summary["tokens_generated"] == sum(r["new_tokens"] for r in rows)
    config = json.loads((out / "config.json").read_text())
    assert config["environment"]["packages"]["torch"]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert read_config(out).rollout.slots == 16

    capsys.readouterr()
    assert main(["eval", str(out)]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["held_out_solve_rate"] == summary["solve_rate_final"]
    assert again["exact_return"] == summary["exact_return"]
    assert main(["train", "token-mdp", "--out", str(out), "--quiet", *FAST]) == 2  # never written over
    assert "empty or does not exist" in capsys.readouterr().err


def test_the_token_mdp_recipe_reaches_the_optimum(tmp_path: Path) -> None:
    """The recipe as it is shipped: at least 95% of the exact optimum."""
    out = tmp_path / "run"
    assert main(["train", "token-mdp", "--out", str(out), "--quiet"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["exact_return_base"] < 0.5 * summary["optimal_return"]
    assert summary["exact_return"] >= 0.95 * summary["optimal_return"]


def test_ctrl_c_ends_cleanly_with_everything_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "tppo", "train", "token-mdp", "--out", str(out), "--quiet", "--steps", "100000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )  # fmt: skip
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["interrupted"] is True
    rows = read_metrics(metrics)
    assert [r["step"] for r in rows] == list(range(len(rows)))
    assert (out / "curves.png").exists()
    assert (out / "policy" / "policy.safetensors").exists()


def test_free_folder_counts_up(tmp_path: Path) -> None:
    assert free_folder("a", tmp_path) == tmp_path / "a"
    (tmp_path / "a").mkdir()
    assert free_folder("a", tmp_path) == tmp_path / "a-2"


def test_a_configuration_file_cannot_import_what_it_likes(tmp_path: Path) -> None:
    main(["train", "token-mdp", "--out", str(tmp_path / "run"), "--quiet", *FAST])
    path = tmp_path / "run" / "config.json"
    good = json.loads(path.read_text())
    bad = json.loads(path.read_text())
    bad["config"]["task"]["class"] = "subprocess:Popen"
    path.write_text(json.dumps(bad))
    with pytest.raises(DataError, match="belongs to no installed recipe package"):
        read_config(tmp_path / "run")
    good["config"]["rollout"]["wheels"] = 4
    path.write_text(json.dumps(good))
    with pytest.raises(DataError, match=r"unknown field\(s\) \['wheels'\] of Rollout"):
        read_config(tmp_path / "run")
    path.write_text("not json")
    with pytest.raises(DataError, match="not a run's configuration"):
        read_config(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"a folder with a config\.json"):
        read_config(tmp_path / "elsewhere")


def test_a_torn_metrics_file_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"ste')
    with pytest.raises(DataError, match="line 2"):
        read_metrics(path)


def test_tensorboard_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", "token-mdp", "--out", str(out), "--quiet", "--tensorboard", *FAST]) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out))
    events.Reload()
    logged = [e.value for e in events.Scalars("new_tokens")]
    assert logged == [r["new_tokens"] for r in read_metrics(out / "metrics.jsonl")]


def test_tensorboard_absent_is_a_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["train", "token-mdp", "--out", str(tmp_path / "run"), "--quiet", "--tensorboard", *FAST]) == 2
    assert "pip install 'tppo[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()  # nothing was begun


@pytest.mark.parametrize("out", ["/proc/nowhere/run", "/dev/null"])
def test_a_folder_that_cannot_be_written(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "token-mdp", "--out", out, "--quiet", *FAST]) == 2
    assert "out = " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["show", "token-mdp", "--policy.beta1", "1"], "policy.beta1 = 1"),
        (["show", "token-mdp", "--recipe", "token-mdp-ppo"], "the recipe named first"),
        (["show", "toy-language", "--task.base.max-positions", "150"], "at most 117"),
        (["show", "toy-language", "--rollout.max-response-tokens", "511"], "at most 479"),
        (["show", "toy-language", "--task.base.width", "90"], "a multiple of 8"),
        (["show", "toy-language", "--task.base.language.difficulty.tail", "-1"], "Difficulty.tail"),
        (["show", "token-mdp", "--algorithm.policy-loss.dual-clip", "1.1"], "more than 1 + clip_high"),
        (["train", "token-mdp", "--compute.device", "meta", "--quiet"], "meta is not supported"),
    ],
)
def test_more_bad_input(args: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if args[0] == "train":
        args = [*args, "--out", str(tmp_path / "run")]
    try:
        status: Any = main(args)
    except SystemExit as stop:  # found while the options were being read
        status = stop.code
    assert status == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_eval_of_broken_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    main(["train", "token-mdp", "--out", str(out), "--quiet", *FAST])
    capsys.readouterr()
    assert main(["eval", str(out), "--task.size", "3"]) == 2
    assert "the task that the run was trained on" in capsys.readouterr().err
    config = out / "config.json"
    good = config.read_text()
    tree = json.loads(good)
    tree["config"]["task"]["class"] = 5
    missing = json.loads(good)
    del missing["config"]["recipe"]
    for text in (json.dumps(tree).encode(), json.dumps(missing).encode(), b"\xff\xfe{", b"not json"):
        config.write_bytes(text)
        assert main(["eval", str(out)]) == 2
        assert "config.json" in capsys.readouterr().err
    config.write_text(good)
    (out / "policy" / "policy.safetensors").unlink()
    (out / "policy").rmdir()
    assert main(["eval", str(out)]) == 2
    assert "a run with a policy/ folder" in capsys.readouterr().err


def test_a_run_that_fails_says_so_in_its_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tppo.errors import NonFiniteError
    from tppo.loop.trainer import Trainer

    def broken(self: Trainer) -> dict[str, Any]:
        raise NonFiniteError("policy loss", [3], 1)

    monkeypatch.setattr(Trainer, "step", broken)
    assert main(["train", "token-mdp", "--out", str(tmp_path / "run"), "--quiet", *FAST]) == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["error"].startswith("NonFiniteError: policy loss has 1")
