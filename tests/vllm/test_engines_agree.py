"""Two engines, one contract: the same distribution of samples, and the same schedule from the same answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tests.support.helpers import tiny_lm
from tppo.algorithms.parts.select import every_window
from tppo.engines.base import Engine
from tppo.engines.embedded import EmbeddedEngine
from tppo.engines.options import VllmOptions
from tppo.loop.slots import Slots
from tppo.models.transformer import TransformerPolicy
from tppo.ranks.ranks import Ranks
from tppo.types import GenerationRequest, Prompt, Sampling

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
CONTEXT = (1, 2, 3)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TransformerPolicy, dict[str, Engine]]]:
    from tppo.engines.vllm import VllmEngine

    folder = tmp_path_factory.mktemp("model")
    model = tiny_lm("qwen2", tied=True, head_dim=32)
    model.save_pretrained(folder)
    policy = TransformerPolicy(model)
    options = VllmOptions(max_rows=64, memory_fraction=0.1, max_model_tokens=64)
    engines: dict[str, Engine] = {
        "torch": EmbeddedEngine(policy),
        "vllm": VllmEngine(Path(folder), options, dtype="float32", seed=0, ranks=Ranks()),
    }
    for engine in engines.values():
        engine.load_policy(policy.weights(), 0)
    yield policy, engines
    engines["vllm"].close()


def distribution(policy: TransformerPolicy, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Exact probabilities of the first token, and of the first two, behind CONTEXT."""
    vocab = policy.vocab_size
    with torch.no_grad():
        rows = torch.tensor([[*CONTEXT, token] for token in range(vocab)])
        table = (policy.model(rows).logits.double() / temperature).softmax(-1)
    first = table[0, len(CONTEXT) - 1].numpy()
    return first, first[:, None] * table[:, -1].numpy()


def p_value(observed: np.ndarray, probabilities: np.ndarray) -> float:
    """Chi-square against known probabilities; cells expected fewer than five times are one cell."""
    expected = probabilities * observed.sum() / probabilities.sum()
    rare = expected < 5
    obs = np.append(observed[~rare], observed[rare].sum())
    exp = np.append(expected[~rare], expected[rare].sum())
    if exp[-1] < 5:
        obs, exp = obs[:-1], exp[:-1] * obs[:-1].sum() / exp[:-1].sum()
    return float(stats.chisquare(obs, exp).pvalue)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_follow_the_same_distribution(both: Any, temperature: float) -> None:
    """4,000 pairs of tokens from each engine, one seed, against exact probabilities. False alarm: four tests a
    temperature at 1e-6 each. That the tests see the temperature is checked as well."""
    policy, engines = both
    first, pairs = distribution(policy, temperature)
    _, other = distribution(policy, 1.7 - temperature)
    vocab, count = policy.vocab_size, 4000
    requests = [GenerationRequest(uid, CONTEXT, 0, 2) for uid in range(count)]
    for name, engine in engines.items():
        answers = engine.generate(requests, Sampling(temperature, frozenset(), seed=11))
        drawn = np.array([a.tokens for a in answers])
        assert drawn.shape == (count, 2)
        assert p_value(np.bincount(drawn[:, 0], minlength=vocab), first) > 1e-6, name
        together = np.bincount(drawn[:, 0] * vocab + drawn[:, 1], minlength=vocab**2)
        assert p_value(together, pairs.ravel()) > 1e-6, name
        assert p_value(together, other.ravel()) < 1e-6, f"{name}: the test could not have failed"
        # Draws of different responses are independent: neighbours share no number.
        assert Counter(map(tuple, drawn.tolist())).most_common(1)[0][1] < 3 * count * pairs.max() + 50


def test_the_same_windowed_schedule(both: Any) -> None:
    """At zero temperature both engines say the same, so admission, windows, statuses and retirement must be equal."""
    _, engines = both
    sampling = Sampling(0.0, frozenset({0, 4, 9, 17}), seed=2)
    histories: dict[str, list[Any]] = {}
    for name, engine in engines.items():
        slots = Slots(
            lambda i: Prompt(str(i), (1 + i % 22, 1 + (i * i) % 22)),
            slots=12, group_size=3, window=5, max_response_tokens=17, select=every_window,
        )  # fmt: skip
        history = histories.setdefault(name, [])
        for version in range(12):
            batch = slots.admit()
            slots.extend(engine.generate(slots.requests(), sampling), version)
            for r in batch:
                history.append((version, r.uid, r.group, r.status, list(r.tokens), list(r.window_starts)))
            assert slots.settle(version) > 0
            assert slots.take() == batch
    assert histories["torch"] == histories["vllm"]
    seen = {status.value for _, _, _, status, _, _ in histories["torch"]}
    assert seen == {"unfinished", "eos", "length"}


def test_logprobs_of_one_engine_are_those_of_the_other(both: Any) -> None:
    _, engines = both
    requests = [GenerationRequest(uid, CONTEXT, 0, 8) for uid in range(16)]
    for answer in engines["vllm"].generate(requests, Sampling(1.0, frozenset(), seed=3)):
        tokens = [*CONTEXT, *answer.tokens]
        ours = engines["torch"].score(tokens, len(CONTEXT))
        assert np.abs(np.array(ours) - np.array(answer.logprobs)).max() < 1e-5
        assert np.abs(np.array(engines["vllm"].score(tokens, len(CONTEXT))) - np.array(ours)).max() < 1e-5
