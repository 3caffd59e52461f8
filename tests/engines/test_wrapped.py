"""Engines around engines: whatever a wrapper does not do itself reaches the engine inside."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tppo.engines.base import Engine, EngineBase, Wrapped
from tppo.engines.embedded import EmbeddedEngine
from tppo.engines.restarting import RestartingEngine
from tppo.engines.sharded import ShardedEngine
from tppo.engines.vllm import VllmEngine
from tppo.errors import EngineDied, EngineError
from tppo.ranks.ranks import Ranks
from tppo.types import Continuation, GenerationRequest, Sampling

METHODS = {name for name, member in vars(Engine).items() if inspect.isfunction(member) and not name.startswith("_")}
WEIGHTS = [("w", torch.zeros(1)), ("v", torch.ones(2))]
REQUESTS = [GenerationRequest(i, (1, 2), 0, 3) for i in range(4)]
SAMPLING = Sampling(0.7, frozenset({0}), seed=3)


class Noting:
    """An engine that keeps what it is asked, and answers something that can be told apart."""

    def __init__(self, dies: tuple[str, ...] = ()) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.dies = list(dies)

    def note(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] in self.dies:
            self.dies.remove(call[0])
            raise EngineDied(f"gone while {call[0]}")

    def load_policy(self, named_tensors: Any, version: int) -> None:
        self.note("load_policy", list(named_tensors), version)

    def generate(
        self, requests: Any, sampling: Sampling, done: Callable[[Continuation], None] | None = None
    ) -> list[Continuation]:
        answers = [Continuation(r.uid, (5, r.uid), (-1.0, -2.0), r.uid % 2 == 0) for r in requests]
        for answer in answers[:2]:
            if done is not None:
                done(answer)
        self.note("generate", list(requests), sampling)
        for answer in answers[2:]:
            if done is not None:
                done(answer)
        return answers

    def score(self, tokens: Any, first: int) -> list[float]:
        self.note("score", tokens, first)
        return [-0.5] * (len(tokens) - first)

    def metrics(self) -> dict[str, float]:
        self.note("metrics")
        return {"engine_metric": 4.0}

    def close(self) -> None:
        self.note("close")


WRAPPERS: dict[str, Callable[[Engine], Wrapped]] = {
    "plain": Wrapped,
    "restarting": lambda engine: RestartingEngine(lambda: engine, 0),
    "sharded": lambda engine: ShardedEngine(engine, Ranks()),
    "all": lambda engine: Wrapped(ShardedEngine(RestartingEngine(lambda: engine, 2), Ranks())),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_every_method_reaches_the_engine(name: str) -> None:
    inner = Noting()
    engine = WRAPPERS[name](inner)
    assert isinstance(engine, Wrapped)
    heard: list[Continuation] = []
    engine.load_policy(iter(WEIGHTS), 6)
    answers = engine.generate(REQUESTS, SAMPLING, heard.append)
    assert answers == heard == [Continuation(i, (5, i), (-1.0, -2.0), i % 2 == 0) for i in range(4)]
    assert engine.generate(REQUESTS[:1], SAMPLING) == answers[:1]
    assert engine.score((3, 1, 4), 1) == [-0.5, -0.5]
    assert engine.metrics()["engine_metric"] == 4.0
    engine.close()
    assert inner.calls == [
        ("load_policy", WEIGHTS, 6), ("generate", REQUESTS, SAMPLING), ("generate", REQUESTS[:1], SAMPLING),
        ("score", (3, 1, 4), 1), ("metrics",), ("close",),
    ]  # fmt: skip
    assert {call[0] for call in inner.calls} == METHODS, "a method of Engine that this test does not know"


def test_no_method_of_an_engine_is_left_to_chance() -> None:
    """A wrapper that inherited one of EngineBase would answer for the engine inside."""
    assert {"load_policy", "generate", "score", "metrics", "close"} == METHODS
    assert vars(Wrapped).keys() >= METHODS
    for method in METHODS:
        of_protocol, of_wrapped = (inspect.signature(getattr(c, method)).parameters for c in (Engine, Wrapped))
        assert [(p.name, p.kind, p.default) for p in of_wrapped.values()] == [
            (p.name, p.kind, p.default) for p in of_protocol.values()
        ]


@pytest.mark.parametrize("kind", [EmbeddedEngine, VllmEngine, RestartingEngine, ShardedEngine])
def test_the_kinds_of_engines(kind: type) -> None:
    assert issubclass(kind, EngineBase)
    assert issubclass(kind, Wrapped) == (kind in (RestartingEngine, ShardedEngine))
    assert all(callable(getattr(kind, method)) for method in METHODS)


def test_most_engines_have_nothing_to_say_and_nothing_to_free() -> None:
    engine = EngineBase()
    assert engine.metrics() == {}
    engine.close()


def test_replicas_report_how_long_they_waited_beside_what_the_engine_says() -> None:
    inner = Noting()
    engine = ShardedEngine(inner, Ranks())
    assert engine.metrics() == {"engine_metric": 4.0}  # nothing was generated yet
    engine.generate(REQUESTS, SAMPLING)
    engine.busy = [1.0, 4.0, 4.0, 3.0]
    assert engine.metrics() == {"engine_metric": 4.0, "generate_idle": pytest.approx(0.25)}


@pytest.mark.parametrize("method", ["load_policy", "generate", "score"])
def test_a_call_that_dies_is_made_again_by_a_new_engine(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The old one is closed; the new one has the newest weights, and nothing is reported twice."""
    made: list[Noting] = []

    def make() -> Engine:
        made.append(Noting(() if made else (method,)))
        return made[-1]

    engine = RestartingEngine(make, restarts=1)
    heard: list[Continuation] = []
    engine.load_policy(iter(WEIGHTS), 6)
    answers = engine.generate(REQUESTS, SAMPLING, heard.append)
    assert answers == heard
    assert engine.score((3, 1, 4), 1) == [-0.5, -0.5]
    dead, living = made
    assert [call for call, *_ in dead.calls][-2:] == [method, "close"]
    assert living.calls[0] == ("load_policy", WEIGHTS, 6)
    order = ["load_policy", "generate", "score"]
    assert [call for call, *_ in living.calls[1:]] == order[order.index(method) + (method == "load_policy") :]
    assert "gone while" in capsys.readouterr().err
    living.dies = ["score"]
    with pytest.raises(EngineDied, match="gone while score"):
        engine.score((3,), 0)  # no restart is left
    assert len(made) == 2


def test_an_engine_that_fails_alive_is_not_started_again() -> None:
    class Failing(Noting):
        def score(self, tokens: Any, first: int) -> list[float]:
            raise EngineError("too long")

    made: list[Noting] = []

    def make() -> Engine:
        made.append(Failing())
        return made[-1]

    with pytest.raises(EngineError, match="too long"):
        RestartingEngine(make, restarts=3).score((1,), 0)
    assert len(made) == 1
