"""One run on 1, 2 and 4 ranks: the same tokens, the same gradients, the same weights; and what a lost rank costs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.launch import MDP, TOY, WORKER, Forks, succeed, torchrun
from tppo.models.call import deal
from tppo.runs.checkpoint.responses import read_responses
from tppo.runs.checkpoint.store import listed
from tppo.runs.folder import read_metrics

ROUND_OFF = 1e-12
"""Of float64 gradients, relative to each tensor's largest entry; sums over ranks are taken in another order."""
FIVE_STEPS = 5e-6
"""Largest difference of a float32 weight after five steps of Adam on other numbers of ranks; weights are up to 1."""


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """A process that has everything imported, and starts ranks."""
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def launched(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """On 1, 2 and 4 ranks: gradients of one batch, then five steps of runs."""
    out = {}
    for ranks in (1, 2, 4):
        root = out[ranks] = tmp_path_factory.mktemp(f"ranks-{ranks}")
        runs = []
        for name, recipe in (("toy", TOY), ("mdp", MDP))[: 1 if ranks == 4 else 2]:
            dump = ["--dump-rollouts", str(root / f"{name}-tokens"), "--checkpoint.keep", "9"]
            runs.append(["train", *recipe, "--steps", "5", "--out", str(root / name), *dump])
        (root / "gradients").mkdir()
        succeed(forks.run(ranks, ["gradients and runs", root / "gradients", json.dumps(runs)]))
    return out


@pytest.fixture(scope="session")
def gradient_files(launched: dict[int, Path]) -> dict[int, Path]:
    """Gradients of one batch, computed on 1, 2 and 4 ranks."""
    return {ranks: root / "gradients" for ranks, root in launched.items()}


@pytest.fixture(scope="session")
def runs(launched: dict[int, Path]) -> dict[int, Path]:
    """Five steps on 1, 2 and 4 ranks."""
    return launched


def relative_errors(one: Path, other: Path, prefix: str = "") -> dict[str, float]:
    """Largest difference of each tensor over its largest entry."""
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    return {k: float((a[k] - b[k]).abs().max() / a[k].abs().max()) for k in a if k.startswith(prefix) and a[k].any()}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("case", ["token-mean", "seq-mean", "recompute"])
def test_gradients_do_not_depend_on_the_number_of_ranks(gradient_files: dict[int, Path], ranks: int, case: str) -> None:
    errors = relative_errors(*(gradient_files[n] / f"{case}.safetensors" for n in (1, ranks)))
    assert sum(name.startswith("policy.") for name in errors) > 10
    assert sum(name.startswith("critic.") for name in errors) > 10
    # Statistics are counted in float32.
    assert {k: e for k, e in errors.items() if e > (1e-6 if k.startswith("stat.") else ROUND_OFF)} == {}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_packed_rows_give_the_gradients_of_padded_ones(gradient_files: dict[int, Path], ranks: int) -> None:
    errors = relative_errors(gradient_files[1] / "token-mean.safetensors", gradient_files[ranks] / "packed.safetensors")
    assert {k: e for k, e in errors.items() if e > (1e-6 if k.startswith("stat.") else ROUND_OFF)} == {}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("fault", ["counts", "reduction", "lost rows"])
def test_an_average_over_one_rank_would_be_seen(gradient_files: dict[int, Path], ranks: int, fault: str) -> None:
    sound, broken = gradient_files[1] / "token-mean.safetensors", gradient_files[ranks] / f"fault {fault}.safetensors"
    for model in ("policy.", "critic."):
        assert max(relative_errors(sound, broken, model).values()) > 1e-2


@pytest.mark.parametrize("ranks", [2, 4])
def test_messages_between_ranks(gradient_files: dict[int, Path], ranks: int) -> None:
    heard = [json.loads((gradient_files[ranks] / f"messages-{rank}.json").read_text()) for rank in range(ranks)]
    last = ranks - 1
    for rank, found in enumerate(heard):
        assert found["broadcast"] == {"rank": 0}
        assert found["gather"] == list(range(ranks))
        assert found["sum"] == [ranks, sum(range(ranks))]
        assert found["any"] == [True, False]
        assert found["lead"] == 40
        assert found["same"] == []
        assert found["differ"][0] == "RanksDiffer"
        assert f"the batch on ranks [{last}] differ" in found["differ"][1]
        there = "" if rank == last else f"rank {last}: EngineError: "
        assert found["engine"] == ["EngineError", f"{there}the engine broke"]
        assert found["disk"][0] == ("OSError" if rank == last else "OutputError")  # which is an OSError, too
        assert "[Errno 28]" in found["disk"][1]
        assert found["lead fails"][0] == ("FileNotFoundError" if rank == 0 else "OutputError")


@pytest.mark.parametrize("method", ["generate", "score"])
def test_an_engine_that_fails_on_one_rank_stops_all_and_loses_nothing(
    forks: Forks, tmp_path: Path, method: str
) -> None:
    argv = ["train", *MDP, "--steps", "6", "--checkpoint.every", "50", "--out", tmp_path / "run"]
    done = forks.run(2, ["broken engine", method, "2", *argv])
    assert done.returncode == 1
    assert "tppo: EngineError: rank 1: EngineError: the engine broke" in done.stderr
    assert "tppo: rank 1: EngineError: the engine broke" in done.stderr
    steps = len(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert 2 <= steps < 6
    assert [step for step, _ in listed(tmp_path / "run" / "checkpoints")] == [steps, 0]


def test_bfloat16_over_float32_masters(tmp_path: Path) -> None:
    argv = ["train", *TOY, "--steps", "2", "--out", tmp_path / "run", "--compute.dtype", "bfloat16", "--compute.packed"]
    succeed(torchrun(2, ["-m", "tppo", *argv, "--compute.recompute"]))
    [folder] = [path for step, path in listed(tmp_path / "run" / "checkpoints") if step == 2]
    kept = [x for path in (folder / "tensors").iterdir() for x in load_file(path).values() if x.is_floating_point()]
    assert {x.dtype for x in kept} == {torch.float32}
    fine = [x for x in kept if x.numel() > 1 and not torch.equal(x, x.bfloat16().float())]
    assert fine  # masters are not narrowed between steps
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert 0 < metrics[-1]["engine_gap_max"] < 0.1  # the engine has the narrowed weights, but computes in float32
    assert metrics[-1]["policy_updates"] > 0


def tokens_of(folder: Path) -> list[list[tuple[int, list[int], float | None]]]:
    """(response, its tokens, its reward) of every step."""
    steps = sorted(folder.glob("step-*.safetensors"))
    return [[(r.uid, r.tokens.tolist(), r.reward) for r in read_responses(path)[0]] for path in steps]


@pytest.mark.parametrize(("ranks", "task"), [(2, "toy"), (4, "toy"), (2, "mdp")])
def test_a_run_does_not_depend_on_the_number_of_ranks(runs: dict[int, Path], ranks: int, task: str) -> None:
    one, many = tokens_of(runs[1] / f"{task}-tokens"), tokens_of(runs[ranks] / f"{task}-tokens")
    assert len(one) == 5
    assert one == many
    name = {"toy": "model.safetensors", "mdp": "policy.safetensors"}[task]
    start = weights_after_training(runs[1] / task, 0)
    a, b = (load_file(runs[n] / task / "policy" / name) for n in (1, ranks))
    moved = max(float((a[k] - start[f"policy.{'model.' if task == 'toy' else ''}{k}"]).abs().max()) for k in a)
    apart = max(float((a[k] - b[k]).abs().max()) for k in a)
    assert moved > 20 * FIVE_STEPS
    assert apart <= FIVE_STEPS
    for mine, theirs in zip(*(read_metrics(runs[n] / task / "metrics.jsonl") for n in (1, ranks)), strict=True):
        for key in mine.keys() - {k for k in mine if "second" in k}:
            number = isinstance(mine[key], float)
            assert theirs[key] == (pytest.approx(mine[key], rel=1e-3, abs=1e-5) if number else mine[key]), key


def weights_after_training(run: Path, step: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint of a single rank."""
    [folder] = [path for at, path in listed(run / "checkpoints") if at == step]
    return {k: v for path in (folder / "tensors").glob("*.safetensors") for k, v in load_file(path).items()}


@pytest.fixture(scope="session")
def interrupted(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of five on two ranks."""
    root = tmp_path_factory.mktemp("interrupted")
    every = ["--checkpoint.every", "3", "--dump-rollouts", root / "tokens"]
    succeed(forks.run(2, ["tppo", "train", *TOY, "--steps", "3", "--out", root / "run", *every]))
    return root


@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_checkpoint_of_two_ranks_goes_on_with_any_number(
    forks: Forks, runs: dict[int, Path], interrupted: Path, tmp_path: Path, ranks: int
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(interrupted, root)
    shards = list((root / "run" / "checkpoints" / "step-00000003" / "tensors").iterdir())
    assert len(shards) == 2
    go_on = ["--checkpoint.every", "3", "--steps", "5", "--resume", "auto", "--allow-change", "steps,checkpoint"]
    argv = ["tppo", "train", *TOY, "--out", root / "run", "--dump-rollouts", root / "tokens", *go_on]
    succeed(forks.run(ranks, argv))
    assert tokens_of(root / "tokens") == tokens_of(runs[2] / "toy-tokens")
    a, b = (load_file(run / "policy" / "model.safetensors") for run in (runs[2] / "toy", root / "run"))
    apart = max(float((a[k] - b[k]).abs().max()) for k in a)
    assert apart <= (0.0 if ranks == 2 else FIVE_STEPS)  # the same number of ranks: the same bits


def test_a_disk_that_refuses_rank_0_leaves_no_mixed_checkpoint(
    forks: Forks, runs: dict[int, Path], tmp_path: Path
) -> None:
    """No rank may begin a checkpoint that another one skips: its shards would end up in the next."""
    argv = ["train", *TOY, "--steps", "5", "--out", tmp_path / "run", "--checkpoint.keep", "9"]
    done = forks.run(2, ["full disk", "2", *argv, "--checkpoint.every", "1", "--checkpoint.keep-best", "0"])
    succeed(done)
    assert "no checkpoint of step 2" in done.stderr
    steps = dict(listed(tmp_path / "run" / "checkpoints"))
    assert sorted(steps) == [0, 1, 3, 4, 5]
    undisturbed = dict(listed(runs[2] / "toy" / "checkpoints"))
    for name in ("shard-00001-model-00001-of-00001.safetensors", "shard-00002-model-00001-of-00001.safetensors"):
        a, b = (load_file(of[5] / "tensors" / name) for of in (steps, undisturbed))
        assert a.keys() == b.keys()
        # Of the global generators nothing is drawn: each process has its own.
        assert all(torch.equal(a[k], b[k]) for k in a if not k.startswith("random."))


def test_a_killed_rank_comes_back_by_itself(runs: dict[int, Path], tmp_path: Path) -> None:
    train = ["train", *TOY, "--steps", "5", "--out", tmp_path / "run", "--resume", "auto"]
    every = ["--checkpoint.every", "2", "--dump-rollouts", tmp_path / "tokens"]
    done = torchrun(2, [WORKER, "killed", "3", "1", *train, *every], restarts=2)
    succeed(done)
    assert "failed (exitcode: -9)" in done.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["resumed"] == [{"step": 2, "changed": []}]
    assert tokens_of(tmp_path / "tokens") == tokens_of(runs[2] / "toy-tokens")
    a, b = (load_file(run / "policy" / "model.safetensors") for run in (runs[2] / "toy", tmp_path / "run"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_rows_are_dealt_out_evenly() -> None:
    """A long tail: most rows short, a few at the cap, as in a window of T-PPO."""
    g = torch.Generator().manual_seed(0)
    lengths = sorted(int(x) for x in (torch.randn(500, generator=g) * 1.2 + 5).exp().clamp(1, 4096))
    for ranks in (1, 2, 8):
        runs = deal(lengths, 8192, ranks)
        assert [first for first, _ in runs] == [0, *[end for _, end in runs[:-1]]]
        assert runs[-1][1] == len(lengths)
        sizes = [(end - first) * lengths[end - 1] for first, end in runs]
        assert max(sizes) <= 8192
        assert len(runs) % ranks == 0
        rounds = [sizes[i : i + ranks] for i in range(0, len(sizes), ranks)]
        waiting = sum(max(r) * ranks - sum(r) for r in rounds) / sum(sizes)
        assert waiting < 0.35
    # Where the longest row alone is longer than a fair share, no cut can be even; nothing is longer than it.
    assert max((end - first) * lengths[end - 1] for first, end in deal(lengths, 8192, 64)) == max(lengths)


def test_more_ranks_than_rows() -> None:
    assert deal([3, 5], 100, 4) == [(0, 1), (1, 2)]
    assert deal([], 100, 4) == []
    assert deal([200], 100, 2) == [(0, 1)]
