"""A reward function named on the command line: judged by it alone, noted with its digest, found again from anywhere."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from paper_repro.tasks.pretrained import WordProblemTask
from tests.models.test_folder import WORDS, save_tokenizer, small
from tests.support.helpers import tiny_lm
from tppo.cli import main
from tppo.config.run import RunConfig, validate
from tppo.errors import ConfigError
from tppo.grading.isolated import IsolatedReward
from tppo.grading.mathematics import MathReward
from tppo.ranks.ranks import Ranks
from tppo.runs.build import build_trainer
from tppo.runs.run import run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_lm("llama", vocab=len(WORDS)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the working directory; half of its calls end their process."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text(
        "import os\ndef score(prompt, text):\n"
        "    if len(text.split()) % 2: os.abort()\n    return float(prompt.truth.isdigit())\n"
    )
    return path


def config(model: Path, **changes: Any) -> RunConfig:
    return small(WordProblemTask(model=str(model), max_prompt_tokens=64, **changes), steps=2)


def no_mathematics(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("mathematics is not asked")

    monkeypatch.setattr(MathReward, "__init__", refuse)


def test_a_run_that_its_reward_cannot_end(
    model: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted in the summary; resumed and evaluated from another folder; a changed file is a change."""
    no_mathematics(monkeypatch)
    summary = run(config(model, reward="mine.py:score"), Path("run"), progress=False)
    verdicts = summary["verdicts"]
    assert verdicts["died"] > 0 < verdicts["ok"]
    assert set(verdicts) == {"ok", "timeout", "memory", "died"}
    stored = json.loads(Path("run/config.json").read_text())["config"]["task"]
    assert stored["reward"] == f"{file}:score"
    assert len(stored["reward_sha256"]) == 64
    run_folder = file.parent / "run"
    monkeypatch.chdir("/")
    again = config(model, reward=f"{file}:score").with_values(steps=3)
    with pytest.raises(ConfigError, match=r"fields changed: steps;"):
        run(again, run_folder, progress=False, resume="auto")
    file.write_text(file.read_text() + "# changed\n")
    with pytest.raises(ConfigError, match=r"fields changed: task\.reward_sha256; .*--allow-change task\.reward_sha256"):
        run(again, run_folder, progress=False, resume="auto", allow_change=["steps"])
    allowed = ["steps", "task.reward_sha256"]
    assert run(again, run_folder, progress=False, resume="auto", allow_change=allowed)["steps"] == 3
    file.write_text(file.read_text() + "# once more\n")
    capsys.readouterr()
    assert main(["eval", str(run_folder)]) == 0
    said = capsys.readouterr()
    assert "mine.py:score is not what it was when the run began" in said.err
    assert sum(json.loads(said.out)["verdicts"].values()) == 4
    file.unlink()
    assert main(["eval", str(run_folder)]) == 2
    assert f"there is no file {file}" in capsys.readouterr().err


def test_a_trusted_function_is_called_here_and_counts_nothing(
    model: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_mathematics(monkeypatch)
    file.write_text("import os\ncalls = []\ndef score(prompt, text):\n    calls.append(os.getpid())\n    return True\n")
    trainer = build_trainer(config(model, reward="mine.py:score", reward_in_process=True))
    assert trainer.evaluate().solve_rate == 1.0
    assert set(trainer.workload.reward.__globals__["calls"]) == {os.getpid()}  # type: ignore[attr-defined]
    assert trainer.grader.report() == {}


def test_the_report_is_of_the_reward_in_use(model: Path, file: Path) -> None:
    """A task that brings a reward of its own says nothing of the one that it replaced."""

    @dataclasses.dataclass(frozen=True)
    class Own(WordProblemTask):
        def build(self, config: RunConfig, ranks: Ranks) -> Any:
            return dataclasses.replace(super().build(config, ranks), reward=lambda prompt, text: 1.0)

    file.write_text("def score(prompt, text): return 0.0\n")
    trainer = build_trainer(small(Own(model=str(model), max_prompt_tokens=64, reward="mine.py:score")))
    assert trainer.evaluate().solve_rate == 1.0
    assert trainer.grader.report() == {}


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"reward": "gone.py:score"}, "task.reward", "there is no file /"),
        ({"reward": "mine.py"}, "task.reward", r"FILE\.py:FUNCTION or module:FUNCTION"),
        ({"reward_in_process": True}, "task.reward_in_process", r"task\.reward with it"),
        ({"reward_sha256": "ab"}, "task.reward_sha256", r"task\.reward with it"),
        ({"grader_memory": 1}, "task.grader_memory", "MiB"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    changes: dict[str, Any], field: str, says: str, model: Path, file: Path
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        validate(config(model, **changes))
    assert caught.value.field == field


def test_a_digest_that_was_asked_for_is_checked(model: Path, file: Path) -> None:
    task = config(model, reward="mine.py:score").task
    pinned = task.pinned()
    assert pinned.pinned() == pinned != task
    file.write_text("")
    with pytest.raises(ConfigError, match=r"task\.reward_sha256 = .*of the file as it is now"):
        pinned.pinned()


def test_limits_reach_the_processes(model: Path, file: Path) -> None:
    task = config(model, reward="mine.py:score", grader_workers=2, grader_seconds=0.5, grader_memory=512).task
    assert isinstance(task, WordProblemTask)
    reward = task.judge([])
    assert isinstance(reward, IsolatedReward)
    try:
        assert (len(reward._pool._threads), reward._pool.seconds) == (2, 0.5)
        assert reward._pool._start.args[2] == 512 * 2**20
    finally:
        reward.close()
