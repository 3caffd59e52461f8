"""The embedded engine against plain forward passes."""

import pytest
import torch

from tests.support.helpers import Largest, tiny_lm
from tppo.engines.embedded import EmbeddedEngine
from tppo.engines.sampling import pick, uniforms
from tppo.errors import ConfigError, EngineError
from tppo.models.tabular import TabularPolicy
from tppo.models.transformer import TransformerPolicy
from tppo.types import GenerationRequest, Sampling

KINDS = [("qwen2", True), ("qwen2", False), ("qwen3", True), ("llama", False), ("table", True)]


def policy_of(kind: str, tied: bool):  # type: ignore[no-untyped-def]
    if kind == "table":
        g = torch.Generator().manual_seed(1)
        table = torch.randint(0, 6, (6, 23), generator=g)
        table[:, :4] = -1
        return TabularPolicy(table, torch.randn(6, 23, generator=g))
    return TransformerPolicy(tiny_lm(kind, tied=tied))


def contexts(kind: str) -> list[list[int]]:
    if kind == "table":
        return [[23 + i % 6, *[5 + i] * i] for i in range(9)]
    return [[(7 * i + j) % 23 for j in range(1 + 3 * (i % 5))] for i in range(9)]


def naive(policy, context, uid, position, budget, sampling):  # type: ignore[no-untyped-def]
    """One response at a time, the whole sequence again for every token."""
    ids, logprobs = list(context), []
    u = uniforms(sampling.seed, uid, position, budget)
    for k in range(budget):
        with torch.no_grad():
            hidden = policy.hidden(torch.tensor([ids]))[:, -1]
            token, lp = pick(policy.logits(hidden), torch.tensor(u[k : k + 1]), temperature=sampling.temperature)
        ids.append(int(token))
        logprobs.append(float(lp))
        if ids[-1] in sampling.stop_ids:
            return ids[len(context) :], logprobs, True
    return ids[len(context) :], logprobs, False


@pytest.mark.parametrize(("kind", "tied"), KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equals_one_response_at_a_time(kind: str, tied: bool, temperature: float) -> None:
    policy = policy_of(kind, tied)
    sampling = Sampling(temperature, frozenset({0, 1, 2, 3}), seed=5)
    requests = [
        GenerationRequest(uid=100 + i, tokens=tuple(c), position=i % 3, max_new_tokens=1 + (5 * i) % 17)
        for i, c in enumerate(contexts(kind))
    ]
    answers = EmbeddedEngine(policy, max_rows=5, prefill_tokens=16).generate(requests, sampling)
    endings = set()
    for request, got in zip(requests, answers, strict=True):
        tokens, logprobs, stopped = naive(
            policy, request.tokens, request.uid, request.position, request.max_new_tokens, sampling
        )
        assert (got.uid, list(got.tokens), got.stopped) == (request.uid, tokens, stopped)
        assert torch.allclose(torch.tensor(got.logprobs), torch.tensor(logprobs), atol=1e-5)
        endings.add(stopped)
    assert endings == {True, False}  # both ways to end were met


@pytest.mark.parametrize(("kind", "tied"), [("qwen2", True), ("table", True)])
def test_windows_and_company_change_nothing(kind: str, tied: bool) -> None:
    policy = policy_of(kind, tied)
    engine = EmbeddedEngine(policy)
    sampling = Sampling(1.0, frozenset({0}), seed=2)
    starts = contexts(kind)
    whole = engine.generate([GenerationRequest(i, tuple(c), 0, 12) for i, c in enumerate(starts)], sampling)
    for i in (8, 0, 3):
        tokens: list[int] = []
        stopped = False
        while len(tokens) < 12 and not stopped:
            request = GenerationRequest(i, (*starts[i], *tokens), len(tokens), min(5, 12 - len(tokens)))
            [part] = engine.generate([request], sampling)
            tokens += part.tokens
            stopped = part.stopped
        assert (tuple(tokens), stopped) == (whole[i].tokens, whole[i].stopped)


def test_loads_new_weights_and_refuses_incomplete_ones() -> None:
    first, second = policy_of("qwen2", False), TransformerPolicy(tiny_lm("qwen2", tied=False, seed=9))
    engine = EmbeddedEngine(first)
    sampling = Sampling(1.0, frozenset(), seed=0)
    request = [GenerationRequest(0, (1, 2, 3), 0, 8)]
    before = engine.generate(request, sampling)
    engine.load_policy(second.weights(), 7)
    after = engine.generate(request, sampling)
    assert after == EmbeddedEngine(second).generate(request, sampling) != before
    named = dict(second.weights())
    head = named.pop("lm_head.weight")
    with pytest.raises(EngineError, match=r"would be stale: \['lm_head.weight'\]"):
        engine.load_policy(named.items(), 8)
    with pytest.raises(EngineError, match="the engine has"):
        engine.load_policy([("lm_head.weight", head[:5])], 8)
    with pytest.raises(EngineError, match="no such weight"):
        engine.load_policy([("other", head)], 8)


def test_the_engine_has_its_own_weights() -> None:
    policy = policy_of("table", True)
    engine = EmbeddedEngine(policy)
    with torch.no_grad():
        policy.logits_SA.fill_(0.0)
    assert not torch.equal(engine.policy.logits_SA, policy.logits_SA)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("tokens", "budget"), [((), 4), ((1,), 0)])
def test_bad_requests(tokens: tuple[int, ...], budget: int) -> None:
    with pytest.raises(EngineError, match="request 3"):
        EmbeddedEngine(policy_of("table", True)).generate(
            [GenerationRequest(3, tokens, 0, budget)], Sampling(1.0, frozenset(), 0)
        )


def test_sliding_windows_are_refused() -> None:
    model = tiny_lm("qwen2")
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ConfigError, match="full_attention in every layer"):
        TransformerPolicy(model).check(longest=None, decodes=True, packed=False)


@torch.no_grad()
def test_a_prefill_makes_no_mask_of_all_positions() -> None:
    """T x T at 24k tokens is 576 MB. Mixed lengths all the same end in their own last tokens."""
    policy, lengths = TransformerPolicy(tiny_lm()), torch.tensor([301, 4, 1])
    ids = torch.randint(0, 23, (3, 301), generator=torch.Generator().manual_seed(0))
    state = policy.decode_state(3, 310)
    with Largest() as largest:
        hidden = state.prefill(ids, lengths, 0)
    assert largest.numel <= 3 * 301 * 48 < 301 * 301  # the inside of the feed-forward layer
    for row, length in enumerate(lengths.tolist()):
        assert torch.allclose(hidden[row], policy.hidden(ids[row : row + 1, :length])[0, -1], atol=1e-5)
