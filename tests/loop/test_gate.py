"""Ten steps of every variant give the weights, tokens and responses that they gave before the loop was taken apart.

The recorded digests hold on the machine they were made on; elsewhere the identities of the other tests have to do.
Recorded with two ranks too: ``python -m tests.support.gate --out new.json`` makes them all, in ten minutes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import gate

KEPT = json.loads(Path(__file__).with_name("gate.json").read_text())
HERE = gate.fingerprint()
OTHER = [name for name, value in KEPT["machine"].items() if HERE[name] != value]
CASES = [key for key in gate.cases() if key.endswith("/1")]
SLOW = [
    key
    for key in CASES
    if key.startswith("toy-language") and not key.startswith(("toy-language/tppo/", "toy-language/ppo/"))
]


def digests(steps: list[dict[str, Any]]) -> list[str]:
    """One a step, over what the step left behind."""
    parts = ("policy", "critic", "tokens", "responses")
    return [hashlib.sha256("".join(s[part] for part in parts).encode()).hexdigest()[:16] for s in steps]


def test_every_variant_is_kept() -> None:
    assert set(KEPT["variants"]) == set(gate.cases())


@pytest.mark.skipif(bool(OTHER), reason=f"recorded with another {', '.join(OTHER)}: bits may differ")
@pytest.mark.parametrize("key", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in CASES])
def test_ten_steps_are_the_same_bit_for_bit(key: str) -> None:
    assert digests(gate.run(gate.cases()[key])["steps"]) == KEPT["variants"][key]
