"""Recipes, tasks and algorithms of packages elsewhere: found again by name, or refused in one line."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from paper_repro.tasks.token_mdp import TokenMDPTask
from tests.support.helpers import small_token_mdp
from tppo.cli import main
from tppo.config.recipes import load_recipe
from tppo.config.stored import as_dict, class_name, config_of, read_config
from tppo.errors import ConfigError, DataError
from tppo.runs.run import run

MODULE = '''
"""A package of one module: a recipe, its task and its algorithm."""
from dataclasses import dataclass, replace
from paper_repro.recipes.small import token_mdp
from paper_repro.tasks.token_mdp import TokenMDPTask
from tppo.algorithms import PPO

@dataclass(frozen=True)
class Task(TokenMDPTask):
    """A task."""

@dataclass(frozen=True)
class Mine(PPO):
    """An algorithm that no entry point names."""

class Nest:
    @dataclass(frozen=True)
    class Egg(TokenMDPTask):
        """A task inside a class."""

def local():
    @dataclass(frozen=True)
    class Hidden(TokenMDPTask):
        """A task inside a function."""
    return Hidden

def recipe():
    """The recipe of one module."""
    return replace(token_mdp(), recipe="single", task=Task(), algorithm=Mine())
'''
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Install:
    """Installs a module of a name of its own for each test, and what its entry points say."""
    home = tmp_path / "site"
    monkeypatch.syspath_prepend(home)

    def write(module: str, text: str = MODULE, entry: str = "recipe") -> Path:
        info = home / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[tppo.recipes]\n{module} = {module}:{entry}\n")
        (home / f"{module}.py").write_text(text)
        request.addfinalizer(lambda: sys.modules.pop(module, None))
        return home / f"{module}.py"

    return write


def test_a_run_of_a_one_module_package_is_evaluated_and_exported_from_anywhere(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = install("single")
    small = {"rollout__slots": 16, "rollout__max_response_tokens": 16, "evaluation__problems": 8}
    config = load_recipe("single").with_values(steps=2, algorithm__warmup_steps=0, evaluation__every=0, **small)
    run(config, tmp_path / "run", progress=False)
    assert read_config(tmp_path / "run").with_values(started="") == config
    monkeypatch.chdir("/")
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "model")]) == 0
    assert (tmp_path / "model" / "policy.safetensors").exists()
    file.unlink()
    sys.modules.pop("single")
    for command in (
        ["eval", str(tmp_path / "run")],
        ["export", str(tmp_path / "run"), str(tmp_path / "again")],
        ["train", "single", "--out", str(tmp_path / "b")],
    ):
        capsys.readouterr()
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "single:" in said
        assert "No module named 'single'" in said
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert "No module named 'single'" in listed
    assert "toy-language-ppo" in listed


def test_classes_inside_others_are_found_and_those_inside_functions_are_named(install: Install, tmp_path: Path) -> None:
    install("nested")
    tree = json.loads(json.dumps(as_dict(load_recipe("nested"))))
    tree["task"]["class"] = "nested:Nest.Egg"
    assert type(config_of(tree, tmp_path).task).__qualname__ == "Nest.Egg"
    tree["task"]["class"] = "nested:local.<locals>.Hidden"
    with pytest.raises(DataError, match="is not a class of tasks defined inside a function"):
        config_of(tree, tmp_path)
    for name in ("nested:Gone", "nested:", "nested:Nest", "nested:Nest.Egg.model.x", "nested"):
        tree["task"]["class"] = name
        with pytest.raises(DataError, match="is not a class of tasks"):
            config_of(tree, tmp_path)
    for name in ("nested.deeper:Task", "nestedother:Task", "os:path", ":", "", "..:x", None, 3):
        tree["task"]["class"] = name
        with pytest.raises(DataError, match=r"cannot be imported|belongs to no installed package"):
            config_of(tree, tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import no_such_package", "No module named 'no_such_package'"),
        ("def recipe(:", "SyntaxError"),
        ("raise ValueError('one\\ntwo')", "ValueError: one$"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("", "AttributeError"),
        ("recipe = 3", "TypeError"),
        ("def recipe(): return 1 / 0", "ZeroDivisionError"),
        ("def recipe(): return {}", "returns a tppo.RunConfig, found dict"),
        ("def recipe(needed): pass", "needed"),
    ],
)
def test_a_recipe_that_cannot_be_had_is_one_line(install: Install, text: str, says: str) -> None:
    install("broken", text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_recipe("broken")
    assert caught.value.field == "recipe"
    assert "\n" not in str(caught.value)


def test_a_class_of_the_program_itself_has_the_name_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a script which is also an installed module can be evaluated by others; and by itself without that."""
    script = types.ModuleType("__main__")
    script.__file__ = "/anywhere/script.py"
    monkeypatch.setitem(sys.modules, "__main__", script)

    @dataclasses.dataclass(frozen=True)
    class Task(TokenMDPTask):
        """Of the script."""

    Task.__module__, Task.__qualname__ = "__main__", "Task"
    assert class_name(Task) == "script:Task"
    config = dataclasses.replace(small_token_mdp(), task=Task())
    assert type(config_of(as_dict(config), tmp_path).task) is Task
    script.__spec__ = types.SimpleNamespace(name="package.part.__main__")  # type: ignore[assignment]
    assert class_name(Task) == "package.part:Task"
    script.__spec__, script.__file__ = None, None
    assert class_name(Task) == "__main__:Task"
