"""The README's examples run, its links lead somewhere, and the commands it names exist."""

import ast
import doctest
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_python_examples() -> None:
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted > 4
    assert result.failed == 0


def test_links() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_reading_path_is_short() -> None:
    part = README.split("## Read it in ten minutes")[1].split("That is less than 500 lines")[0]
    files = re.findall(r"\d\. \[`[^`]+`\]\(([^)]+)\): (?:`(\w+)`)?", part)
    assert len(files) == 5
    lines = 0
    for path, name in files:
        text = (ROOT / path).read_text()
        nodes = [n for n in ast.parse(text).body if getattr(n, "name", None) == name]
        lines += nodes[0].end_lineno - nodes[0].lineno + 1 if name else len(text.splitlines())
    assert lines < 500
    trainer = (ROOT / "tppo" / "loop" / "trainer.py").read_text()
    assert len(trainer.splitlines()) <= 130
    methods = [n for n in ast.walk(ast.parse(trainer)) if isinstance(n, ast.FunctionDef)]
    assert max(n.end_lineno - n.lineno + 1 for n in methods if n.end_lineno) <= 45


def test_goals_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for goal in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{goal}:" in makefile


def test_ci_runs_the_command_of_the_readme() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-1] == "exec make test"
