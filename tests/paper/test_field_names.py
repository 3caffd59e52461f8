"""Errors of tasks and data sources name the field as it stands in the configuration, from its root."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from paper_repro.models.known import model_shape
from paper_repro.recipes.registry import RECIPES
from paper_repro.tasks.pretrained import MathDataTask
from tppo.config.run import RunConfig, TaskConfig, validate
from tppo.data.problems import Problem
from tppo.data.prompts import to_prompts
from tppo.data.sources import DataSource, OnBadRow
from tppo.errors import ConfigError, DataError, renamed
from tppo.ranks.ranks import Ranks
from tppo.types import Prompt


def lines(path: Path, *rows: tuple[str, str]) -> Path:
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    train = DataSource("t", path=str(lines(tmp_path / "train.jsonl", ("1 + 1", "2"), ("1 + 2", "3"))))
    held_out = DataSource("h", path=str(lines(tmp_path / "held-out.jsonl", ("2 + 2", "4"))))
    task = MathDataTask(train=train, held_out=held_out)
    return RunConfig(recipe="none", task=task).with_values(evaluation__problems=1)


def read(config: RunConfig, length: int = 1) -> Any:
    """What the task reads, by an encoder of ``length`` tokens a prompt."""
    task = config.task
    assert isinstance(task, MathDataTask)
    most = task.max_prompt_tokens

    def encode(problems: Sequence[Problem], template: str, how: OnBadRow) -> list[Prompt]:
        return to_prompts(
            problems, lambda text: [1] * length, template=template, max_prompt_tokens=most, on_overlong=how
        ).prompts

    return task.problems(config, encode, Ranks())


def test_what_is_right_is_read(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    stream, held_out, truths = read(config)
    assert {stream(i).truth for i in range(2)} == {"2", "3"}
    assert held_out(0).truth == "4"
    assert truths == ["2", "3", "4"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task__train__path": "/nowhere.jsonl"}, r"^task\.train\.path = '/nowhere\.jsonl': expected an existing file"),
        ({"task__held_out__path": "/nowhere.jsonl"}, r"^task\.held_out\.path = '/nowhere\.jsonl'"),
        ({"task__held_out__path": None}, r"^task\.held_out\.path = .*expected either path or hub"),
        ({"task__train__template": "x"}, r"^task\.train\.template = 'x'"),
        ({"task__train__columns__answer": "truth"}, r"^task\.train\.columns\.answer = 'truth'"),
        ({"task__held_out__wrapped_in": "Q: {question}"}, r"set task\.held_out\.bad_rows\.wrapper = 'drop'"),
        ({"task__held_out__limit": 0}, r"^task\.held_out\.limit = 0"),
        ({"evaluation__problems": 2}, r"^evaluation\.problems = 2: expected at most 1"),
    ],
)
def test_a_source_of_the_task_is_named_by_its_path(config: RunConfig, changes: dict[str, Any], says: str) -> None:
    with pytest.raises((ConfigError, DataError), match=says):
        read(config.with_values(**changes))


def test_options_of_the_task_are_named_by_their_paths(config: RunConfig, tmp_path: Path) -> None:
    same = config.with_values(task__held_out__path=str(tmp_path / "train.jsonl"))
    with pytest.raises(DataError, match=r"set task\.on_overlap = 'drop'"):
        read(same)
    with pytest.raises(DataError, match=r"raise task\.max_prompt_tokens, or set task\.on_overlong = 'drop'"):
        read(config.with_values(task__max_prompt_tokens=4), length=5)
    with pytest.raises(ConfigError, match=r"^task\.model = '/nowhere'"):
        config.with_values(task__model="/nowhere").task.build(config.with_values(task__model="/nowhere"), Ranks())
    with pytest.raises(ConfigError, match=r"^task\.model = 'Qwen9'"):
        config.with_values(task__model="shrunken:Qwen9").task.build(config, Ranks())


def test_only_names_are_renamed() -> None:
    """Neither a word of a sentence, nor a part of a file's name or of another field's."""
    told = {"model": "task.model", "data.path": "task.train.path"}
    with pytest.raises(ConfigError) as caught, renamed(told):
        raise ConfigError("model", "a model", "a model of ours", "see /data.path/x, my-data.path and mydata.path.y")
    assert str(caught.value) == (
        "task.model = 'a model': expected a model of ours; see /data.path/x, my-data.path and mydata.path.y"
    )
    with pytest.raises(DataError, match=r"^set task\.train\.path or data\.paths$"), renamed(told):
        raise DataError("set data.path or data.paths")


@pytest.mark.parametrize(
    ("name", "base", "positions"),
    [
        ("Qwen/Qwen2.5-7B", "Qwen2.5-7B", 131072),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen2.5-7B", 32768),
        ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen2.5-0.5B", 32768),
        ("Qwen/Qwen2.5-32B-Instruct", "Qwen2.5-32B", 32768),
        ("Qwen/Qwen2.5-Math-7B", "Qwen2.5-7B", 4096),
        ("Qwen/Qwen2.5-Math-1.5B-Instruct", "Qwen2.5-1.5B", 4096),
        ("Qwen/Qwen2.5-Coder-14B-Instruct", "Qwen2.5-14B", 32768),
    ],
)
def test_tuned_models_have_the_shape_of_their_base(name: str, base: str, positions: int) -> None:
    found, plain = model_shape(name).to_dict(), model_shape(base).to_dict()
    assert found["max_position_embeddings"] == positions
    assert {k: v for k, v in found.items() if k != "max_position_embeddings"} == {
        k: v for k, v in plain.items() if k != "max_position_embeddings"
    }


@pytest.mark.parametrize("name", ["HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M"])
def test_smollm2_is_known_by_its_name_on_the_hub(name: str) -> None:
    assert model_shape(name).to_dict() == model_shape("smollm2-135m").to_dict()


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-9B-Instruct", "Qwen/Qwen2.5-7B-Instruct-GGUF", "a/Qwen2.5-VL-7B"])
def test_other_models_are_refused_by_their_whole_name(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^task\.model = '{name}': expected a local folder, or smollm2-135m"):
        model_shape(name)


def test_tasks_say_nothing_of_themselves_by_default() -> None:
    config = RECIPES["token-mdp"]()
    assert (TaskConfig().needs(config), TaskConfig().idle(config)) == ((), {})
    validate(config)
