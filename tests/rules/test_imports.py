"""Who may import whom, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"tppo", "sim", "reference", "paper_repro"}
ALLOWED = {"reference": {"reference"}, "sim": {"sim"}, "tppo": {"tppo"}, "paper_repro": {"tppo", "sim", "paper_repro"}}
OUTSIDE = {"reference": {"numpy"}, "sim": {"numpy", "gymnasium", "numba"}}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in {
            "import_module",
            "__import__",
        }:
            found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return found


@pytest.mark.parametrize("package", sorted(OURS))
def test_packages_import_only_what_they_may(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        tops = {name.partition(".")[0] for name in imports(path)}
        assert tops & OURS <= ALLOWED[package], path
        if package in OUTSIDE:
            third_party = {t for t in tops - OURS if t not in sys.stdlib_module_names}
            assert third_party <= OUTSIDE[package], path


def test_heavy_or_replaceable_packages_have_one_door() -> None:
    doors = {"vllm": ("engines", 1), "math_verify": ("grading", 1), "torch.distributed": ("ranks", 2)}
    for name, (room, count) in doors.items():
        users = [
            p for p in (ROOT / "tppo").rglob("*.py") if any(i == name or i.startswith(name + ".") for i in imports(p))
        ]
        assert [p.parent.name for p in users] == [room] * count, users


def test_no_circles_between_our_modules() -> None:
    graph: dict[str, set[str]] = {}
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            # Imports inside functions and under TYPE_CHECKING are not run at import time.
            found: set[str] = set()
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ImportFrom) and node.module:
                    found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                elif isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
            graph[name] = found
    edges = {name: {f for f in found if f in graph and f != name} for name, found in graph.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in edges[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_importing_tppo_loads_nothing_heavy() -> None:
    code = "import sys, tppo, tppo.cli; print(sorted({'torch', 'transformers', 'vllm', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
