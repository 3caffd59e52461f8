"""What depends on how the program was started: refusals before anything is loaded, messages, signals."""

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from paper_repro.recipes.small import toy_language
from tests.support.helpers import small_token_mdp
from tppo.config.run import RunConfig
from tppo.errors import ConfigError
from tppo.ranks.ranks import Ranks, current
from tppo.ranks.shard import full, full_weights, put
from tppo.runs.build import build_trainer, check_ranks
from tppo.runs.signals import Termination

ALONE = Ranks()


def ranks(size: int) -> Any:
    """As many as torchrun would have started."""
    return SimpleNamespace(joined=True, size=size)


@pytest.mark.parametrize(
    ("found", "config", "field"),
    [
        (ALONE, toy_language().with_values(compute__dtype="bfloat16"), "compute.dtype"),
        (ALONE, toy_language().with_values(compute__cpu_offload=True), "compute.cpu_offload"),
        (ranks(2), toy_language().with_values(compute__cpu_offload=True), "compute.cpu_offload"),
        (ranks(3), toy_language().with_values(engine="vllm", vllm__tensor_parallel=2), "vllm.tensor_parallel"),
        (ranks(2), toy_language().with_values(engine="vllm", vllm__own_process=True), "vllm.own_process"),
    ],
)
def test_an_arrangement_that_cannot_be(found: Any, config: RunConfig, field: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_ranks(config, found)
    assert error.value.field == field


@pytest.mark.parametrize("size", [1, 2, 8])
def test_arrangements_that_can_be(size: int) -> None:
    check_ranks(toy_language().with_values(compute__dtype="bfloat16"), ranks(size))
    check_ranks(toy_language().with_values(engine="vllm", vllm__tensor_parallel=size), ranks(size))
    check_ranks(toy_language(), ALONE)


def test_tables_take_no_packed_rows() -> None:
    with pytest.raises(ConfigError, match=r"compute\.packed"):
        build_trainer(small_token_mdp(compute__packed=True))


def test_alone_every_message_is_the_identity() -> None:
    import torch

    alone = current()
    assert (alone.rank, alone.size, alone.main, alone.joined) == (0, 1, True, False)
    assert alone.background.size == 1
    x = torch.ones(3)
    assert alone.sum(x) is x
    assert alone.broadcast(x) is x
    assert alone.gather(x) == [x]
    assert alone.main_first(lambda: 7) == alone.lead(lambda: 7) == 7
    assert [alone.any(flag) for flag in (True, False)] == [True, False]
    assert full(x) is x
    put(x, torch.zeros(3))
    assert not x.any()
    weights = full_weights(iter([("w", torch.ones(2)), ("ids", torch.ones(2, dtype=torch.int64))]), torch.bfloat16)
    assert [(name, t.dtype) for name, t in weights] == [("w", torch.bfloat16), ("ids", torch.int64)]
    with pytest.raises(ZeroDivisionError):
        alone.lead(lambda: 1 // 0)


def test_under_torchrun_the_echo_of_a_signal_is_no_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    ended: list[int] = []
    monkeypatch.setattr("tppo.runs.signals.os._exit", ended.append)
    with Termination() as termination:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert (termination.requested, ended) == (True, [])
        monkeypatch.setattr("tppo.runs.signals.ECHO_SECONDS", 0.0)  # later
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [128 + signal.SIGTERM]
