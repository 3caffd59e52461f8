"""`import tppo` shows what one needs, and a type checker sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tppo

ROOT = Path(__file__).parents[2]


def test_every_public_name_is_there() -> None:
    assert len(tppo.__all__) > 60
    for name in tppo.__all__:
        assert getattr(tppo, name) is not None
    assert set(tppo.__all__) <= set(dir(tppo))


def test_names_for_people_and_for_type_checkers_are_the_same() -> None:
    lines = (ROOT / "tppo" / "__init__.py").read_text().splitlines()
    seen = {line.rpartition(" as ")[2] for line in lines if line.startswith("    from tppo.")}
    assert seen == set(tppo.__all__)


def test_a_type_checker_sees_them(tmp_path: Path) -> None:
    code = tmp_path / "user.py"
    code.write_text("import tppo\nreveal_type(tppo.egae)\nreveal_type(tppo.TPPO().window)\ntppo.egea\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", str(code)],  # with the project's settings, so that it reuses what it knows
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith(str(code.name)) or "user.py" in line]
    assert "def (" in lines[0], done.stdout
    assert "Tensor" in lines[0]
    assert '"int"' in lines[1] or '"builtins.int"' in lines[1]
    assert 'no attribute "egea"' in lines[2] or 'has no attribute "egea"' in lines[2]
    assert (ROOT / "tppo" / "py.typed").exists()
