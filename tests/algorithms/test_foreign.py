"""An algorithm of twenty lines in another package: found by name, trained, stopped, resumed, without a line of tppo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launch import BASE

ROOT = Path(__file__).parents[2]
REINFORCE = '''
"""-A log pi, A = R - mean of the group."""
from dataclasses import dataclass
from typing import Annotated, ClassVar

from tppo import Algorithm, Loss, Parts, Range, Term, finished_tokens, outcome, whole_group
from tppo.maths.groups import group_mean


@dataclass(frozen=True)
class Reinforce(Algorithm):
    """REINFORCE with the mean of the group as baseline."""
    name: ClassVar[str] = "reinforce"
    scale: Annotated[float, Range(0, above=True)] = 1.0
    """Of the advantage."""
    window: Annotated[int, Range(1)] = 8
    """Most new tokens of a response in a round."""

    def parts(self, rollout):
        loss = lambda now, data: Loss(-data["advantages"] * now.value_X)
        return Parts(
            select=whole_group, window=self.window, tokens=finished_tokens,
            advantage=outcome(lambda R_S, batch: self.scale * (R_S - group_mean(R_S, batch.group_S))),
            terms=(Term("policy_loss", loss, reads=frozenset({"advantages"})),),
        )
'''
TOY = [
    "--algorithm.window", "3",
    "--rollout.slots", "16", "--rollout.max-response-tokens", "48", "--policy.mini-batch", "16",
    "--evaluation.problems", "16", "--evaluation.every", "0", "--compute.micro-batch-tokens", "512",
    *BASE,
]  # fmt: skip
MDP = ["--rollout.slots", "64", "--policy.mini-batch", "64", "--evaluation.problems", "64"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed package that brings one algorithm."""
    home = tmp_path_factory.mktemp("site")
    (home / "elsewhere.py").write_text(REINFORCE)
    info = home / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tppo.algorithms]\nreinforce = elsewhere:Reinforce\n")
    return home


def tppo(package: Path, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(package), str(ROOT)])
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "COLUMNS": "100"}
    command = [sys.executable, "-m", "tppo", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=package, timeout=600, check=False)


def test_it_is_listed_and_shows_its_own_numbers_only(package: Path) -> None:
    listed = tppo(package, "algorithms").stdout
    assert "reinforce" in listed
    assert "REINFORCE with the mean of the group as baseline." in listed
    shown = json.loads(tppo(package, "show", "token-mdp", "--algorithm", "reinforce").stdout)
    # The recipe's window goes along, since both have one.
    assert shown["algorithm"] == {"class": "elsewhere:Reinforce", "scale": 1.0, "window": 8}
    refused = tppo(package, "show", "token-mdp", "--algorithm", "reinforce", "--algorithm.clip-low", "0.3")
    assert refused.returncode == 2
    assert "clip-low" in refused.stderr
    unknown = tppo(package, "show", "token-mdp", "--algorithm", "reinforcee")
    assert unknown.returncode == 2
    assert "reinforce" in unknown.stderr
    assert "tppo" in unknown.stderr


@pytest.mark.parametrize(("recipe", "small", "steps"), [("token-mdp", MDP, 40), ("toy-language", TOY, 6)])
def test_it_trains_and_resumes_bit_for_bit(
    recipe: str, small: list[str], steps: int, package: Path, tmp_path: Path
) -> None:
    common = ["train", recipe, "--algorithm", "reinforce", "--quiet", "--checkpoint.every", "2", *small]
    whole = tppo(package, *common, "--steps", str(steps), "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-2000:]
    half = tppo(package, *common, "--steps", str(steps // 2), "--out", tmp_path / "half")
    assert half.returncode == 0, half.stderr[-2000:]
    again = ["--resume", "auto", "--allow-change", "steps"]
    rest = tppo(package, *common, "--steps", str(steps), "--out", tmp_path / "half", *again)
    assert rest.returncode == 0, rest.stderr[-2000:]

    def weights(run: str) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in (tmp_path / run / "policy").glob("*.safetensors")}

    assert weights("whole") == weights("half") != {}
    lines = [json.loads(line) for line in (tmp_path / "half" / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in lines] == list(range(steps))
    assert all("critic_loss" not in m and "seconds_critic" not in m for m in lines)
    assert max(m["waiting"] for m in lines) > 0
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["algorithm"] == "reinforce"
    if recipe == "token-mdp":
        assert summary["exact_return"] > summary["exact_return_base"] + 0.1
    stored = json.loads((tmp_path / "half" / "config.json").read_text())["config"]
    assert stored["algorithm"]["class"] == "elsewhere:Reinforce"
