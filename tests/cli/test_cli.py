"""The command line as a stranger uses it."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers import small_token_mdp
from tppo.cli import main
from tppo.config.recipes import load_recipe
from tppo.config.registry import algorithm_entry_points, load_algorithm, with_algorithm
from tppo.config.stored import as_dict, read_config
from tppo.errors import ConfigError, DataError, FormatError
from tppo.runs.folder import free_folder, read_metrics

FAST = [
    "--steps", "3", "--rollout.slots", "16", "--evaluation.problems", "32", "--evaluation.every", "2",
    "--algorithm.warmup-steps", "1",
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
    assert main(["show", "token-mdp", "--algorithm.window", "12", "--seed", "5"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["algorithm"]["window"] == 12
    assert tree["seed"] == 5
    assert tree["task"]["class"] == "paper_repro.tasks.token_mdp:TokenMDPTask"
    assert tree["algorithm"]["class"] == "tppo.algorithms.tppo:TPPO"


def test_algorithms_are_listed_with_their_own_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """Every entry point, a sentence that no other has, what it trains on, its source, and exactly its fields."""
    assert main(["algorithms"]) == 0
    lines = capsys.readouterr().out.splitlines()
    installed = algorithm_entry_points()
    assert {"ppo", "tppo", "value-pretraining", "waiting", "waiting-behaviour"} <= set(installed)
    heads = [at for at, line in enumerate(lines) if not line.startswith(" ")]
    assert [lines[at].split()[0] for at in heads] == list(installed)
    said = [lines[at].partition(" ")[2].strip() for at in heads]
    assert all(said)
    assert len(set(said)) == len(said)
    for name, begin, end in zip(installed, heads, [*heads[1:], len(lines)], strict=True):
        needs, source, *departures, numbers = (line.strip() for line in lines[begin + 1 : end])
        assert needs.startswith("trains on: ")
        assert re.fullmatch(r"source: (ours|arXiv \d{4}\.\d{5}(, arXiv \d{4}\.\d{5})*)", source)
        assert all(line.startswith("departures: ") for line in departures)
        assert numbers == ", ".join(field.name for field in dataclasses.fields(load_algorithm(name)))
    assert "trains on: mixed group; networks: policy" in lines[heads[list(installed).index("dapo")] + 1]


def test_another_algorithm_keeps_the_recipe_s_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """The critic's optimiser and the warm-up are the recipe's, not the algorithm's defaults."""

    def shown(*args: str) -> dict[str, Any]:
        assert main(["show", "token-mdp", *args]) == 0
        return json.loads(capsys.readouterr().out)

    before, after = shown(), shown("--algorithm", "ppo")
    assert {k for k in before if before[k] != after[k]} == {"algorithm"}
    algorithm = after["algorithm"]
    assert algorithm["class"] == "tppo.algorithms.ppo:PPO"
    assert algorithm["warmup_steps"] == 5
    critic = algorithm["critic"]
    assert (critic["lr"], critic["weight_decay"], critic["mini_batch"], critic["grad_clip"]) == (0.05, 0.0, 32, None)
    assert critic.items() <= before["algorithm"]["critic"].items()
    assert not {"window", "boundary", "ignore_last"} & algorithm.keys()
    changed = shown("--algorithm", "ppo", "--algorithm.critic.lr", "0.5", "--algorithm.warmup-steps", "1")
    assert (changed["algorithm"]["critic"]["lr"], changed["algorithm"]["warmup_steps"]) == (0.5, 1)
    twin = shown("--algorithm", "ppo")
    assert main(["show", "token-mdp-ppo"]) == 0
    assert json.loads(capsys.readouterr().out) | {"recipe": "token-mdp"} == twin


@pytest.mark.parametrize("command", ["train", "show", "plan"])
def test_help_shows_the_numbers_of_the_algorithm_alone(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*args: str) -> set[str]:
        with pytest.raises(SystemExit) as caught:
            main([command, "token-mdp", *args, "--help"])
        assert caught.value.code == 0
        return set(re.findall(r"--([a-z][\w.-]*)", capsys.readouterr().out))

    own = shown()
    assert {"algorithm.window", "algorithm.boundary", "algorithm.ignore-last", "algorithm.critic.old-values"} <= own
    other = shown("--algorithm", "ppo")
    assert {"algorithm.gamma", "algorithm.warmup-steps", "algorithm.critic.lr", "rollout.slots"} <= other
    # Nothing of windows, by whatever name: PPO has none.
    windows = {"algorithm.window", "algorithm.boundary", "algorithm.ignore-last", "algorithm.critic.responses"}
    assert own - other - {"algorithm"} == windows | {"algorithm.critic.old-values"}
    assert not [name for name in other if "window" in name or "boundary" in name or "ignore" in name]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["train", "nonsense"], "recipe = 'nonsense': expected one of"),
        (["train"], "recipe = None"),
        (["show", "token-mdp", "--algorithm.window", "2"], "more than algorithm.ignore_last"),
        (["show", "token-mdp", "--seed", "-3"], "seed = -3"),
        (["show", "token-mdp", "--algorithm", "grpoo"], "algorithm = 'grpoo': expected one of areal, "),
        (["train", "token-mdp", "--algorithm", "3"], "see 'tppo algorithms'"),
        (["eval", "/nonexistent"], "config.json"),
    ],
)
def test_bad_input_exits_with_2_and_says_why(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert says in capsys.readouterr().err


WINDOWED = [n for n in algorithm_entry_points() if "window" in {f.name for f in dataclasses.fields(load_algorithm(n))}]
PPO_FIELDS = (
    "gamma, lam, lam_alpha, whiten, clamp, bias, clip_low, clip_high, dual_clip, importance_cap, aggregation, imitate, "
    "entropy, kl, warmup_steps, critic"
)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        # A number of another algorithm: its own numbers, whose it is, and where they are explained.
        (
            ["--algorithm", "ppo", "--algorithm.window", "8"],
            f"algorithm.window = '8': expected one of the fields of PPO: {PPO_FIELDS}; algorithms that have one: "
            f"{', '.join(WINDOWED)}; see 'tppo show token-mdp --algorithm ppo --help'",
        ),
        (
            ["--algorithm.ignore-lasst=8"],
            f"algorithm.ignore-lasst = '8': expected one of the fields of TPPO: {PPO_FIELDS}, window, ignore_last, "
            "boundary; see 'tppo show token-mdp --help'",
        ),
        (["--algorithm", "waiting", "--algorithm.boundary", "zero"], "of Waiting: " + PPO_FIELDS + ", window; algor"),
        (["--algorithm.schedule.window", "8"], "--algorithm.window may be meant; see"),  # as it was once called
        (["--algorithm.critic.lrr", "1", "--seed", "2"], "critic.lrr = '1': expected one of the fields of WindowedCri"),
        (["--critic.lr", "1"], "critic.lr = '1': expected one of the fields of RunConfig: recipe, task, seed, steps,"),
        (["--no.such.field", "1"], "no.such.field = '1': expected one of the fields of RunConfig"),
        (["--task.sise", "1"], "task.sise = '1': expected one of the fields of TokenMDPTask: family, size"),
        (["--seed", "2", "--tensorbord"], "tensorbord = ''"),
        (["--seed", "2", "5"], "options = '5': expected --any.field value"),
    ],
)
def test_an_unknown_field_is_refused_with_those_there_are(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "token-mdp", *args]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("tppo: ")
    assert says in said.err
    assert said.out == ""


def test_an_unknown_field_begins_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "token-mdp", "--out", str(tmp_path / "run"), "--quiet", *FAST, "--algorithm.windw", "8"]) == 2
    assert not (tmp_path / "run").exists()
    assert main(["plan", "toy-language", "--gpus", "1", "--gpu", "h100", "--algorithm.windw", "8"]) == 2
    assert capsys.readouterr().err.count("algorithm.windw = '8'") == 2


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out == f"tppo {project['version']}\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ["show", "token-mdp", "--seed", "1", "--seed", "2"],
            "seed = '--seed 1 --seed 2': expected one value; give",
        ),
        (["show", "token-mdp", "--seed=1", "--seed=1"], "seed = '--seed 1 --seed 1'"),
        (["show", "token-mdp", "--seed", "1", "--", "--seed", "2"], "give --seed once"),
        (["show", "token-mdp", "--policy.warmup-updates", "2", "--policy.warmup_updates", "2"], "warmup_updates once"),
        (["show", "toy-language", "--compute.packed", "--compute.no-packed"], "--compute.packed --compute.no-packed"),
        (
            ["train", "token-mdp", "--algorithm", "ppo", "--algorithm", "tppo"],
            "algorithm = '--algorithm ppo --a",
        ),
        (["train", "token-mdp", "--quiet", "--quiet"], "quiet = '--quiet --quiet'"),
        (["study", "bias", "--jobs", "1", "--jobs", "2"], "jobs = '--jobs 1 --jobs 2'"),
        (["plan", "toy-language", "--gpus", "1", "--gpus", "2", "--gpu", "h100"], "give --gpus once"),
        (["show", "token-mdp", "--see", "1"], "--seed may be meant: a flag is given by its whole name"),
        (["show", "token-mdp", "--polic.lr", "1"], "--policy.lr may be meant"),
        (["show", "token-mdp", "--algorithm.crit.min", "1"], "--algorithm.critic.mini-batch may be meant"),
        (["train", "token-mdp", "--qui"], "--quiet may be meant"),
        (["train", "token-mdp", "--res", "auto"], "--resume may be meant"),
        (["plan", "toy-language", "--gpus", "1", "--gpu", "h100", "--gpu-mem", "3"], "--gpu-memory may be meant"),
        (["study", "bias", "--ful"], "options = '--ful': expected no more than 'tppo study --help' lists; --full may"),
        (["study", "bias", "extra"], "options = 'extra'"),
        (["recipes", "--all"], "options = '--all'"),
    ],
)
def test_a_flag_is_given_once_and_by_its_whole_name(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.out == ""


def test_what_has_no_effect_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "toy-language", "--vllm.max-rows", "8", "--vllm.no-sleep", "--evaluation.every", "2"]) == 0
    said = capsys.readouterr()
    assert said.err.strip() == "tppo: warning: vllm.max_rows = 8 has no effect: the engine is 'torch'"
    assert json.loads(said.out)["vllm"]["max_rows"] == 8
    out = tmp_path / "run"
    assert main(["train", "token-mdp", "--out", str(out), "--quiet", *FAST, "--policy.mini-batch", "17"]) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "effect" in line] == [
        "tppo: warning: policy.mini_batch = 17 has no effect: a step has 16 responses at most (rollout.slots), all in "
        "one mini-batch"
    ]
    assert main(["eval", str(out), "--policy.lr", "3", "--evaluation.problems", "4"]) == 0
    said = capsys.readouterr()
    assert said.err.count("has no effect") == 1
    assert "policy.lr = 3.0 has no effect: an evaluation trains nothing" in said.err
    assert main(["show", "token-mdp"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["study", "bias", "--seeds", "100000000"], "seeds = 100000000: expected a number in [1, 10000]"),
        (["study", "bias", "--jobs", "1000000"], "jobs = 1000000: expected a number in [1, 4096] [processes]"),
        (["study", "bias", "--seed", "9" * 30], "seed = 999"),
        (["replay", "x", "--checkpoint", "y", "--steps", "9" * 30], "steps = 999"),
        (["plan", "toy-language", "--gpus", "9" * 30, "--gpu", "h100"], "gpus = 999"),
        (["plan", "toy-language", "--gpus", "2", "--gpu", "h100", "--gpu-memory", "1e308"], "gpu-memory = 1e+308"),
        (["plan", "toy-language", "--gpus", "2", "--gpu", "h100", "--median", "nan"], "median = nan"),
        (["show", "token-mdp", "--algorithm.ignore-last", "1" + "0" * 30], "algorithm.ignore_last = 1000"),
        (
            ["train", "token-mdp", "--quiet", "--evaluation.problems", "10000000"],
            "evaluation.problems = 1000000",
        ),
        (
            ["train", "token-mdp", "--quiet", "--task.size", "64"],
            "max_response_tokens = 64: expected at least 65",
        ),
    ],
)
def test_numbers_of_the_command_line_have_limits(
    args: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tppo.runs.build.machine_memory", lambda: 16 * 2**30)
    args += ["--out", str(tmp_path / "run")] if args[0] == "train" else []
    assert main(args) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("args", [["--seed", "three"], ["--algorithm.window"], ["--algorithm.window", "--seed", "1"]])
def test_unreadable_options_exit_with_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
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
    assert read_config(out).algorithm == load_recipe("token-mdp").with_values(algorithm__warmup_steps=1).algorithm
    assert summary["algorithm"] == "tppo"

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
    with pytest.raises(DataError, match="task class 'subprocess:Popen' belongs to no installed package of recipes"):
        read_config(tmp_path / "run")
    bad = json.loads(json.dumps(good))
    for foreign, says in (
        ("subprocess:Popen", "algorithm class 'subprocess:Popen' belongs to no installed package"),
        ("tppo.algorithms.tppo:replace", "is not a class of algorithms"),
        ("tppo.algorithms.tppo:WindowedCriticOptions", "is not a class of algorithms"),
        ("tppo.algorithms.tppo:Gone", "is not a class of algorithms"),
    ):
        bad["config"]["algorithm"]["class"] = foreign
        path.write_text(json.dumps(bad))
        with pytest.raises(DataError, match=says):
            read_config(tmp_path / "run")
    bad = json.loads(json.dumps(good))
    bad["config"]["algorithm"]["critic"]["wheels"] = 4
    path.write_text(json.dumps(bad))
    with pytest.raises(DataError, match=r"unknown field\(s\) \['wheels'\] of WindowedCriticOptions"):
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


@pytest.mark.parametrize("name", sorted(algorithm_entry_points()))
def test_a_configuration_comes_back_as_it_was_written(name: str, tmp_path: Path) -> None:
    """Of every algorithm, whatever its numbers are."""
    config = with_algorithm(small_token_mdp(algorithm__critic__clip_low=None), load_algorithm(name))
    (tmp_path / "config.json").write_text(json.dumps({"config": as_dict(config)}))
    assert read_config(tmp_path) == config


def test_algorithms_train_by_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of each kind, from command to evaluation; that all of them train is the contract's."""
    for name in ("tppo", "ppo", "value-pretraining", "dapo", "areal", "ppo-ewma"):
        out = tmp_path / name
        args = [
            "--steps",
            "2",
            "--rollout.slots",
            "16",
            "--evaluation.problems",
            "8",
            "--rollout.max-response-tokens",
            "16",
        ]
        if name != "value-pretraining" and hasattr(load_algorithm(name), "warmup_steps"):
            args += ["--algorithm.warmup-steps", "0"]
        assert main(["train", "token-mdp", "--algorithm", name, "--out", str(out), "--quiet", *args]) == 0, name
        assert json.loads((out / "summary.json").read_text())["algorithm"] == name
        assert type(read_config(out).algorithm) is load_algorithm(name)
        capsys.readouterr()
        assert main(["eval", str(out)]) == 0
        assert json.loads(capsys.readouterr().out)["held_out_solve_rate"] is not None


def test_a_run_of_an_older_version_is_refused_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Format 1: one set of options for all algorithms, and no class that says which."""
    old = {
        "name": "T-PPO",
        "schedule": {"window": 8},
        "advantage": {"estimator": "egae", "gamma": 1.0},
        "filter": {"ignore_last": 2},
    }
    config = as_dict(small_token_mdp()) | {"algorithm": old, "critic": {"lr": 0.05}, "critic_start": ""}
    (tmp_path / "config.json").write_text(json.dumps({"config": config}))
    with pytest.raises(FormatError, match=r"config\.json: format 1, .*; expected format 2\. Go on with it by the ver"):
        read_config(tmp_path)
    assert main(["eval", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "format 1" in said
    assert "by the version that wrote it (its config.json names the revision), or train again" in said


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
        (["show", "token-mdp", "--algorithm.dual-clip", "1.1"], "algorithm.dual_clip = 1.1: expected more than 1 + "),
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


@pytest.mark.parametrize("command", ["show token-mdp | head -1", "train token-mdp --steps 2 --out OUT 2>&-"])
def test_streams_that_close_early_end_nothing(command: str, tmp_path: Path) -> None:
    """A reader that has enough, and a standard error that is closed."""
    line = f"set -o pipefail; {sys.executable} -m tppo {command.replace('OUT', str(tmp_path / 'run'))}"
    small = (
        " --evaluation.problems 4 --evaluation.every 0 --rollout.slots 8 --algorithm.warmup-steps 1"
        if "train" in command
        else ""
    )
    line = line.replace(" 2>&-", f"{small} 2>&-")
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if small:
        assert (tmp_path / "run" / "curves.png").exists()
