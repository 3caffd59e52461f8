"""Who may import whom, read from the source: all imports count, those inside functions and under TYPE_CHECKING too."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"tppo", "sim", "reference", "paper_repro"}
ALLOWED = {"reference": {"reference"}, "sim": {"sim"}, "tppo": {"tppo"}, "paper_repro": {"tppo", "sim", "paper_repro"}}
OUTSIDE = {"reference": {"numpy"}, "sim": {"numpy", "gymnasium", "numba"}}

# Ground floor first. A room imports only what stands on a floor below it; rooms of one floor never import each other.
FLOORS = [
    {"errors"},
    {"maths", "ranges", "files", "environment", "figures"},
    {"types", "ranks", "shapes"},
    {"models"},
    {"engines", "grading", "fit"},
    {"data"},
    {"algorithms"},
    {"config"},
    {"loop"},
    {"runs", "studies", "evaluation", "plan"},
    {"cli", "__init__"},
    {"__main__"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def modules(package: str) -> dict[str, Path]:
    """Dotted name to file."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


def imports(path: Path) -> set[str]:
    """Every dotted name that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in {
            "import_module",
            "__import__",
        }:
            found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return found


def graph(packages: set[str]) -> dict[str, set[str]]:
    """Module to the modules of ours that it imports."""
    known = {name: path for package in packages for name, path in modules(package).items()}
    edges = {name: {f for f in imports(path) if f in known and f != name} for name, path in known.items()}
    # A package imports its own modules to show their names; asking it for one of them is asking for that one.
    return {
        n: {e for e in found if not any(e != x and x.startswith(e + ".") for x in found)} for n, found in edges.items()
    }


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The first circle that is found, as a way back to where it began; empty if there is none."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name not in done:
            for other in sorted(edges[name]):
                if found := visit(other, [*trail, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := visit(name, []))), [])


def test_the_search_finds_circles_of_every_kind() -> None:
    """Those that hid behind laziness before: a configuration and its ranks, a report and its figure."""
    lazy = {
        "config": {"workload"}, "workload": {"rewards"}, "rewards": {"distributed"}, "distributed": {"config"},
        "report": {"figure"}, "figure": {"report"},
    }  # fmt: skip
    assert circle(lazy) == ["config", "workload", "rewards", "distributed", "config"]
    assert circle({k: lazy[k] for k in ("report", "figure")}) == ["figure", "report", "figure"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_lazy_and_type_checking_imports_are_seen(tmp_path: Path) -> None:
    code = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import one.two\n"
    code += "def f():\n    from three import four\n"
    (tmp_path / "m.py").write_text(code)
    assert {"one.two", "three", "three.four"} <= imports(tmp_path / "m.py")


@pytest.mark.parametrize("package", sorted(OURS))
def test_packages_import_only_what_they_may(package: str) -> None:
    for path in modules(package).values():
        tops = {name.partition(".")[0] for name in imports(path)}
        assert tops & OURS <= ALLOWED[package], path
        if package in OUTSIDE:
            third_party = {t for t in tops - OURS if t not in sys.stdlib_module_names}
            assert third_party <= OUTSIDE[package], path


def test_no_circles_of_any_kind() -> None:
    assert circle(graph(OURS)) == []


def room(module: str) -> str:
    """Where in tppo a module lies."""
    return module.split(".")[1] if "." in module else "__init__"


def arrows() -> Iterator[tuple[str, str]]:
    """(importer, imported) between different rooms of tppo."""
    for name, found in graph({"tppo"}).items():
        for other in found:
            if room(name) != room(other) and other != "tppo":
                yield name, other


def test_rooms_stand_on_floors() -> None:
    rooms = {room(name) for name in modules("tppo")}
    assert rooms == set(FLOOR)
    assert len(rooms) <= 25
    assert len(FLOORS) <= 12
    upward = sorted({f"{a} -> {b}" for a, b in arrows() if FLOOR[room(b)] >= FLOOR[room(a)]})
    assert upward == []


def test_no_floor_is_higher_than_it_must_be() -> None:
    """The order above is the shape of the imports and not a wish: every floor has a room that needs the one below."""
    needs = {(FLOOR[room(a)], FLOOR[room(b)]) for a, b in arrows()}
    for low, high in itertools.pairwise(range(len(FLOORS))):
        assert (high, low) in needs, (FLOORS[high], FLOORS[low])


def test_the_equations_know_torch_alone() -> None:
    for path in (ROOT / "tppo" / "maths").glob("*.py"):
        tops = {name.partition(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
        assert tops <= {"torch", "tppo"}, path
        assert {n for n in imports(path) if n.startswith("tppo")} <= {
            *(n for n in imports(path) if n.startswith(("tppo.maths", "tppo.errors"))),
        }, path


def test_algorithms_do_not_know_the_loop_and_the_loop_no_algorithm() -> None:
    names = {"ppo", "tppo", "waiting", "value_pretraining"}
    for path in (ROOT / "tppo" / "algorithms").glob("*.py"):
        assert not any(n.startswith(("tppo.loop", "tppo.runs", "tppo.config")) for n in imports(path)), path
    for name in ("loop", "fit"):
        for path in (ROOT / "tppo" / name).glob("*.py"):
            assert not {f"tppo.algorithms.{a}" for a in names} & imports(path), path
            words = {
                w.lower() for w in ast.unparse(_without_docstrings(path)).replace("(", " ").replace('"', " ").split()
            }
            assert not words & {"ppo", "grpo", "egae", "gae", "waiting_ppo"}, path


def _without_docstrings(path: Path) -> ast.Module:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))] or [
                ast.Pass()
            ]  # type: ignore[attr-defined]
    return tree


def test_ranks_are_given_and_not_looked_up() -> None:
    doors = {"tppo/runs/build.py", "tppo/runs/run.py", "tppo/cli.py", "tppo/ranks/ranks.py"}
    users = set()
    for path in modules("tppo").values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "current":
                users.add(str(path.relative_to(ROOT)))
    assert users <= doors


def test_heavy_or_replaceable_packages_have_one_door() -> None:
    doors = {"vllm": ("engines", 1), "math_verify": ("grading", 1), "torch.distributed": ("ranks", 2)}
    for name, (where, count) in doors.items():
        users = [p for p in modules("tppo").values() if any(i == name or i.startswith(name + ".") for i in imports(p))]
        assert [p.parent.name for p in users] == [where] * count, users


def test_importing_tppo_loads_nothing_heavy() -> None:
    code = "import sys, tppo, tppo.cli; print(sorted({'torch', 'transformers', 'vllm', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
