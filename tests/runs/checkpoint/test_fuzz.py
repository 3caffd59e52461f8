"""Hundreds of mutated configurations and files: each runs, or fails with an error of ours before work starts."""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.helpers import leaves, small_token_mdp
from tests.support.reinforce import Reinforce
from tppo.cli import main
from tppo.config.registry import algorithm_entry_points, load_algorithm, with_algorithm
from tppo.config.run import validate
from tppo.data.problems import load_problems
from tppo.data.sources import DataSource
from tppo.errors import NonFiniteError, TPPOError
from tppo.runs.build import build_trainer
from tppo.runs.run import run

FUZZ = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
BASE = small_token_mdp(steps=1, evaluation__problems=4, checkpoint__every=0, phase_limit_seconds=None)
ALGORITHMS = [*(load_algorithm(name) for name in algorithm_entry_points()), Reinforce]
BASES = [with_algorithm(BASE, kind) for kind in ALGORITHMS]
LEAVES = [leaves(base) for base in BASES]
# Numbers at and beyond ranges, and things that are no numbers. Nothing in between is a size that only takes long.
ODD: list[Any] = [
    -1, 0, 1, 2, 3, 7, 17, 25, -0.5, 0.0, 1e-300, 1e-9, 0.5, 0.999, 1.0, 1.5, 3e38, math.nan, math.inf, -math.inf,
    None, True, False, "", "auto", "critic", "terminal", "gae", "constant", "vllm", "cuda:7", "é\udc80", [], {}, [1],
    b"x",
]  # fmt: skip
OUTCOMES: Counter[str] = Counter()


def mutation(leaf: tuple[str, Any, Any]) -> st.SearchStrategy[tuple[str, Any]]:
    """As often odd as of the kind that the leaf has."""
    name, _, value = leaf
    kin = [1, 2, 4, 8, 16, 24] if isinstance(value, int) else [0.1, 0.5, 0.9, 1.0] if isinstance(value, float) else ODD
    return st.tuples(st.just(name), st.one_of(st.sampled_from(kin), st.sampled_from(ODD)))


def mutations(algorithm: int) -> st.SearchStrategy[tuple[int, list[tuple[str, Any]]]]:
    """One or two leaves of a run by this algorithm; its own as often as all others."""
    own = [leaf for leaf in LEAVES[algorithm] if leaf[0].startswith("algorithm.")]
    leaf = st.one_of(st.sampled_from(LEAVES[algorithm]), st.sampled_from(own)).flatmap(mutation)
    return st.tuples(st.just(algorithm), st.lists(leaf, min_size=1, max_size=2))


@settings(FUZZ, max_examples=150)
@given(mutated=st.integers(0, len(BASES) - 1).flatmap(mutations))
def test_mutated_configurations(mutated: tuple[int, list[tuple[str, Any]]]) -> None:
    which, changes = mutated
    named = {name.replace(".", "__"): value for name, value in changes}
    if named.get("recipe") is not None and isinstance(named["recipe"], str):
        named.pop("recipe")  # a name for reports
    try:
        config = BASES[which].with_values(**named)
        validate(config)
        trainer = build_trainer(config)
    except TPPOError:
        OUTCOMES["refused"] += 1
        return
    try:
        trainer.evaluate()
        for _ in range(2):
            trainer.step()
        OUTCOMES["ran"] += 1
        OUTCOMES[f"ran: {config.algorithm.name}"] += 1
    except NonFiniteError:
        # A number in its range that is too large for the others: 3e38 as a learning rate.
        assert any(isinstance(v, float) and (v >= 1e38 or 0 < v < 1e-5) for v in named.values()), named
        OUTCOMES["stopped with a number that is not finite"] += 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fuzz") / "run"
    run(BASE, out, progress=False)
    return out


def mutate(tree: Any, draw: Any) -> Any:
    """One node of a JSON tree replaced, removed or added."""
    node, path = tree, []
    while isinstance(node, dict) and node and (not path or draw(st.booleans())):
        key = draw(st.sampled_from(sorted(node)))
        path.append(key)
        node = node[key]
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    how = draw(st.sampled_from(["replace", "remove", "add"]))
    if how == "replace":
        parent[path[-1]] = draw(st.sampled_from([v for v in ODD if not isinstance(v, bytes)]))
    elif how == "remove":
        del parent[path[-1]]
    else:
        parent["surprise"] = draw(st.sampled_from([1, "x", None, {}]))
    return tree


@settings(FUZZ, max_examples=30)
@given(data=st.data())
def test_mutated_configuration_files(finished: Path, data: st.DataObject) -> None:
    path = finished / "config.json"
    good = path.read_text()
    try:
        text = json.dumps(mutate(json.loads(good), data.draw))
        if data.draw(st.integers(0, 3)) == 0:
            cut = data.draw(st.integers(0, len(text)))
            text = text[:cut]
        path.write_text(text)
        status = main(["eval", str(finished)])
        assert status in (0, 1, 2)
        OUTCOMES[f"config.json: exit {status}"] += 1
    finally:
        path.write_text(good)


ROWS = [{"question": f"What is {i} + {i}?", "answer": f"{2 * i}", "id": f"q{i}"} for i in range(6)]


def originals() -> dict[str, bytes]:
    import io

    import pyarrow
    from pyarrow import parquet

    table = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), table)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    return {".jsonl": lines.encode(), ".json": json.dumps(ROWS).encode(), ".parquet": table.getvalue()}


@settings(FUZZ, max_examples=70)
@given(
    suffix=st.sampled_from([".jsonl", ".json", ".parquet"]),
    edits=st.lists(st.tuples(st.sampled_from("fdic"), st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=4),
)
def test_mutated_data_files(suffix: str, edits: list[tuple[str, float, bytes]]) -> None:
    pytest.importorskip("pyarrow", reason="parquet needs the extra 'data'")
    content = bytearray(originals()[suffix])
    for how, where, value in edits:
        at = int(where * max(len(content) - 1, 0))
        if how == "f" and content:
            content[at] ^= value[0] or 1
        elif how == "d":
            del content[at : at + 8]
        elif how == "i":
            content[at:at] = value
        elif how == "c":
            del content[at:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"sums{suffix}"
        path.write_bytes(bytes(content))
        try:
            report = load_problems(DataSource(name="sums", path=str(path)))
            assert 1 <= len(report.problems) <= report.rows
            OUTCOMES[f"data{suffix}: read"] += 1
        except TPPOError:
            OUTCOMES[f"data{suffix}: refused"] += 1


def test_the_mutations_hit_both_sides() -> None:
    """Neither everything refused nor everything accepted. Runs after the others, and judges what they counted."""
    if not OUTCOMES:
        pytest.skip("the fuzz tests did not run")
    print(f"\n{dict(OUTCOMES)}")
    for kind in ("refused", "ran"):
        assert OUTCOMES[kind] >= 10
    ran = [algorithm.name for algorithm in ALGORITHMS if OUTCOMES[f"ran: {algorithm.name}"]]
    assert len(ran) > len(ALGORITHMS) / 2, ran
