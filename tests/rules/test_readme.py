"""The README's examples run, its links lead somewhere, and the commands it names exist."""

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


def test_goals_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for goal in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{goal}:" in makefile


def test_ci_runs_the_command_of_the_readme() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-1] == "exec make test"
