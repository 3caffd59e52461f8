"""What the rooms of `sim` may import from one another, lazy and TYPE_CHECKING imports included."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import sim

ROOT = Path(sim.__file__).parent
BELOW = {"mdp": set(), "exact": {"mdp"}, "language": set(), "clock": set()}


def graph() -> dict[str, set[str]]:
    """Module to modules that it imports, anywhere in the file."""
    found = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                found[name] |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
    return {name: {other for other in others if other in found} for name, others in found.items()}


def room(module: str) -> str:
    return module.split(".")[1]


def test_no_circles() -> None:
    edges = graph()
    assert len(edges) > 20
    assert list(TopologicalSorter(edges).static_order())  # raises CycleError with the circle


def test_rooms_stand_on_what_is_below() -> None:
    for name, others in graph().items():
        if name != "sim":
            assert {room(other) for other in others} - {room(name)} <= BELOW[room(name)], name


def test_nothing_in_the_clock_asks_which_schedule_it_is() -> None:
    """Schedules are a protocol: the classes are named where they are defined and nowhere else in the clock."""
    names = {"PPO", "TPPO", "Partial"}
    for path in (ROOT / "clock").glob("*.py"):
        if path.name != "schedules.py":
            used = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
            assert not used & names, path
