"""Hundreds of checkpoints: memory, handles, threads and files stay where they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tppo.figures import BLUE, new_figure, save_figure

HERE = Path(__file__).parent
KEPT, FILES_EACH = 3, 6  # two newest and the best; files in a checkpoint
MEGABYTE = 2**20


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Memory by step."""
    figure = new_figure(7, 4)
    ax = figure.subplots()
    steps = [r["step"] + 1 for r in records]
    ax.plot(steps, [r["resident"] / MEGABYTE for r in records], color=BLUE, label="resident memory")
    ax.set(
        title="token-mdp, a checkpoint at every step", xlabel="training step", ylabel="resident memory [MiB]",
        ylim=(0, 1.25 * max(r["resident"] for r in records) / MEGABYTE),
    )  # fmt: skip
    ax.grid(alpha=0.25)
    ax.legend()
    save_figure(figure, path)


@pytest.mark.parametrize("steps", [80, pytest.param(500, marks=pytest.mark.slow)])
def test_a_checkpoint_at_every_step(steps: int, tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(HERE.parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE.parents[1] / "support" / "soak.py"), str(tmp_path / "run"), str(steps)],
        capture_output=True, text=True, check=True, env=env,
    )  # fmt: skip
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == steps
    draw(records, tmp_path / "soak.png")
    memory = np.array([r["resident"] for r in records]) / MEGABYTE
    quarter = steps // 4  # the first quarter is warming up: caches, arenas
    growth = np.median(memory[-quarter:]) - np.median(memory[quarter : 2 * quarter])
    print(
        f"\n{steps} checkpoints: {memory[0]:.0f} MiB at first, {memory[quarter]:.0f} after a quarter, "
        f"{memory[-1]:.0f} at the end; figure in {tmp_path / 'soak.png'}"
    )
    # A copy of the state that is never freed is 0.08 MiB a step here: twice this bound.
    assert growth < 0.02 * steps
    for name, slack in (("handles", 4), ("threads", 1)):  # the writer comes and goes
        assert records[-1][name] <= records[quarter][name] + slack
    # One more of each while it is written, one while it is removed.
    assert max(r["files"] for r in records) <= (KEPT + 2) * FILES_EACH
