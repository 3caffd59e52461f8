"""An update that overflows, in the last step or before: nothing is saved of it, and the weight is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support.helpers import small_token_mdp
from tppo.errors import NonFiniteError
from tppo.loop.metrics import Step
from tppo.loop.trainer import Trainer
from tppo.runs.run import run


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize(("network", "weight"), [("critic", "values_S"), ("policy", "logits_SA")])
def test_a_weight_that_is_not_finite_is_never_saved(
    network: str, weight: str, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def overflow(self: Trainer) -> Step:
        done = step(self)
        if self.steps_done == 2:
            with torch.no_grad():
                getattr(self.networks.models[network], weight).view(-1)[0] = float("inf")
        return done

    monkeypatch.setattr(Trainer, "step", overflow)
    with pytest.raises(NonFiniteError, match=rf"weight {weight} of {network} has 1 .* at step 2, .*no checkpoint or"):
        run(small_token_mdp(steps=2, checkpoint__every=every), tmp_path / "r", progress=False)
    assert not (tmp_path / "r" / "policy").exists()
    steps = sorted(path.name for path in (tmp_path / "r" / "checkpoints").glob("step-*"))
    assert steps == (["step-00000000", "step-00000001"] if every else [])
    assert "NonFiniteError" in json.loads((tmp_path / "r" / "summary.json").read_text())["error"]
