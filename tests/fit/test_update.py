"""The update against a plain computation, for policy and critic, and what it leaves alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import pytest
import torch

from tests.support.helpers import mixed_responses, response, states_equal, tiny_lm
from tppo.algorithms.auxiliaries.critic import Critic, CriticOptions
from tppo.algorithms.base import Columns, Context
from tppo.algorithms.parts.advantages import generalised
from tppo.algorithms.parts.terms import clipped, entropy_bonus, imitate_positives, kl_to_reference
from tppo.algorithms.parts.tokens import finished_tokens, new_tokens
from tppo.errors import NonFiniteError
from tppo.fit.mini_batches import mini_batches
from tppo.fit.optim import ModelOptimizer
from tppo.fit.options import Optimizer
from tppo.fit.terms import Loss, Now, Term
from tppo.fit.update import critic_now, policy_now, update
from tppo.maths.advantages import Boundary
from tppo.maths.aggregate import Aggregation
from tppo.models.call import Call
from tppo.models.transformer import TransformerCritic, TransformerPolicy
from tppo.ranks.ranks import Ranks
from tppo.types import Batch, Response, Status

KEY = (0, 0)
SMALL = Call(Ranks(), temperature=0.8, micro_batch_tokens=25, logit_chunk_tokens=3)
LARGE = replace(SMALL, micro_batch_tokens=32768, logit_chunk_tokens=1024)
COLD = replace(LARGE, temperature=1.0)
# One plain gradient step: the change of the weights is the gradient.
SGD_LIKE = Optimizer(lr=1e-3, weight_decay=0.0, grad_clip=None, mini_batch=1000)


class GradientKeeper(ModelOptimizer):
    """Keeps the gradient of the one mini-batch instead of stepping."""

    def step(self, *, name: str) -> float:
        self.gradient = {n: p.grad.clone() for n, p in self.named if p.grad is not None}
        return 0.0


@dataclass(frozen=True)
class Numbers:
    """Of the four terms of a policy."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = 10.0
    importance_cap: float | None = None
    aggregation: Aggregation = "token-mean"
    constant_length: int | None = None
    imitate: float = 0.1
    entropy: float = 0.0
    kl: float = 0.0

    def terms(self) -> tuple[Term, ...]:
        mean: dict[str, Any] = {"aggregation": self.aggregation, "constant_length": self.constant_length}
        surrogate = clipped(
            clip_low=self.clip_low, clip_high=self.clip_high, dual_clip=self.dual_clip,
            importance_cap=self.importance_cap, **mean,
        )  # fmt: skip
        others = [replace(term, **mean) for term in (entropy_bonus(self.entropy), kl_to_reference(self.kl))]
        return (surrogate, imitate_positives(self.imitate), *others)


def policy_gradient(numbers: Numbers, call: Call, seed: int = 0):  # type: ignore[no-untyped-def]
    policy = TransformerPolicy(tiny_lm(dtype=torch.float64))
    batch = Batch.of(mixed_responses(seed))
    g = torch.Generator().manual_seed(seed)
    keep = batch.window_N & (torch.rand(len(batch.tokens_N), generator=g) < 0.8)
    advantages = torch.randn(len(batch.tokens_N), generator=g, dtype=torch.float64) * keep
    old, _ = LARGE.logprobs(policy, batch, batch.window_N)
    old += 0.3 * torch.randn(len(old), generator=g, dtype=torch.float64) * batch.window_N
    anchor = old + 0.2
    keeper = GradientKeeper(policy, SGD_LIKE)
    columns = {
        "train": keep, "advantages": advantages, "old": old, "behaviour": batch.behaviour_N, "reference": anchor
    }  # fmt: skip
    stats = update(policy, keeper, batch, numbers.terms(), columns, call=call, now=policy_now, name="policy", key=KEY)
    return policy, batch, keep, advantages, old, anchor, keeper.gradient, stats


def naive_policy_losses(policy, batch, keep, advantages, old, anchor, numbers: Numbers):  # type: ignore[no-untyped-def]
    """Row by row from the equations; no micro-batch, no flat index. Surrogate, likelihood, entropy, KL."""
    terms, entropies, kls, nll, positives, rows = [], [], [], 0.0, 0, []
    for i, ids in enumerate(batch.sequences):
        first, end, prompt = int(batch.offsets[i]), int(batch.offsets[i + 1]), int(batch.prompt_lengths_S[i])
        if first == end:
            continue
        table = (policy.model(ids[None]).logits[0] / 0.8).log_softmax(-1)
        mine: list[torch.Tensor] = []
        for n in range(first, end):
            row = table[prompt - 1 + n - first]
            lp = row[batch.tokens_N[n]]
            if batch.positive_S[i]:
                nll, positives = nll - lp, positives + 1
            if keep[n]:
                ratio, a = (lp - old[n]).exp(), advantages[n]
                term = torch.maximum(-ratio * a, -ratio.clamp(1 - numbers.clip_low, 1 + numbers.clip_high) * a)
                if numbers.dual_clip is not None and a < 0:
                    term = torch.minimum(term, -numbers.dual_clip * a)
                if numbers.importance_cap is not None:
                    term = term * (old[n] - batch.behaviour_N[n]).exp().clamp(max=numbers.importance_cap)
                mine.append(term)
                entropies.append(-(row.exp() * row).sum())
                d = lp - anchor[n]
                kls.append((-d).exp() + d - 1)
        if mine:
            terms.append(torch.stack(mine))
            rows.append(i)
    if numbers.aggregation == "token-mean":
        mean = lambda parts: torch.cat(parts).mean()  # noqa: E731
    elif numbers.aggregation == "seq-mean-token-mean":
        mean = lambda parts: torch.stack([p.mean() for p in parts]).mean()  # noqa: E731
    elif numbers.aggregation == "seq-mean-token-sum":
        mean = lambda parts: torch.stack([p.sum() for p in parts]).mean()  # noqa: E731
    else:
        mean = lambda parts: torch.cat(parts).sum() / (len(parts) * numbers.constant_length)  # noqa: E731
    split = lambda flat: list(torch.stack(flat).split([len(t) for t in terms]))  # noqa: E731
    return {
        "policy_loss": mean(terms), "lm_loss": nll / max(positives, 1), "update_entropy": mean(split(entropies)),
        "reference_kl": mean(split(kls)),
    }  # fmt: skip


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"])
@pytest.mark.parametrize("cap", [None, 0.5])
def test_policy_gradient_equals_the_equations(aggregation, cap) -> None:  # type: ignore[no-untyped-def]
    numbers = Numbers(
        clip_low=0.1, clip_high=0.15, dual_clip=1.2, aggregation=aggregation, imitate=0.1, entropy=0.02, kl=0.3,
        constant_length=9 if aggregation == "constant" else None, importance_cap=cap,
    )  # fmt: skip
    policy, *rest, gradient, stats = policy_gradient(numbers, SMALL)
    losses = naive_policy_losses(policy, *rest, numbers)
    total = losses["policy_loss"] + 0.1 * losses["lm_loss"] - 0.02 * losses["update_entropy"]
    expected = torch.autograd.grad(total + 0.3 * losses["reference_kl"], list(policy.parameters()))
    for (name, _), wanted in zip(policy.named_parameters(), expected, strict=True):
        assert torch.allclose(gradient[name], wanted, rtol=1e-8, atol=1e-10), name
    assert {name: stats[name] for name in losses} == pytest.approx({n: x.item() for n, x in losses.items()}, rel=1e-6)
    assert stats["policy_updates"] == 1
    assert stats["clip_fraction_high"] + stats["clip_fraction_low"] > 0


def test_micro_batches_do_not_change_the_gradient() -> None:
    numbers = Numbers(entropy=0.01)
    small, large = policy_gradient(numbers, SMALL)[-2], policy_gradient(numbers, LARGE)[-2]
    for name in small:
        assert torch.allclose(small[name], large[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("imitate", "cap", "poison"), [(0.0, 2.0, float("nan")), (0.1, None, float("nan")), (0.1, 2.0, 3.0)]
)
def test_earlier_windows_and_dropped_tokens_train_nothing(imitate: float, cap: float | None, poison: float) -> None:
    """Only kept tokens enter: poison everything else. Another term may call the model on these tokens."""
    policy = TransformerPolicy(tiny_lm(dtype=torch.float64))
    batch = Batch.of(mixed_responses())
    keep = batch.window_N.clone()
    keep[batch.offsets[1:-1] - 1] = False
    old, _ = COLD.logprobs(policy, batch, keep)
    advantages = torch.ones(len(keep), dtype=torch.float64)
    terms = (clipped(clip_low=0.2, clip_high=0.28, importance_cap=cap), *([imitate_positives(imitate)] * bool(imitate)))
    results = []
    for bad in (0.0, poison):
        model = copy.deepcopy(policy)
        keeper = GradientKeeper(model, SGD_LIKE)
        columns = {"advantages": advantages, "old": old, "behaviour": batch.behaviour_N}
        poisoned = {name: x.masked_fill(~keep, bad) for name, x in columns.items()}
        found = update(
            model, keeper, batch, terms, {"train": keep, **poisoned}, call=replace(SMALL, temperature=1.0),
            now=policy_now, name="policy", key=KEY,
        )  # fmt: skip
        results.append((keeper.gradient, found))
    assert all(torch.equal(results[0][0][name], results[1][0][name]) for name in results[0][0])
    assert results[0][1] == results[1][1]


def critic_of(dtype: torch.dtype = torch.float64) -> TransformerCritic:
    torch.manual_seed(0)
    critic = TransformerCritic(tiny_lm(dtype=dtype).base_model).to(dtype)
    torch.nn.init.normal_(critic.head.weight, std=0.1)
    return critic


def critic_update(responses: Sequence[Response], options: CriticOptions | None = None, call: Call = SMALL):  # type: ignore[no-untyped-def]
    critic, policy = critic_of(), TransformerPolicy(tiny_lm())
    batch = Batch.of(responses)
    g = torch.Generator().manual_seed(1)
    old = torch.randn(len(batch.tokens_N), generator=g, dtype=torch.float64)
    columns = {
        "rewards": batch.rewards_N, "train": batch.window_N, "values": old, "stored_values": old,
        "cut_values": torch.zeros(batch.num_responses, dtype=torch.float64),
    }  # fmt: skip
    keeper = GradientKeeper(critic, SGD_LIKE)
    auxiliary = Critic(options or CriticOptions())
    stats = auxiliary.fit(Context(critic, keeper, policy, call, KEY, 0), batch, columns)
    return critic, batch, old, auxiliary.targets(batch, columns), getattr(keeper, "gradient", {}), stats


def test_critic_gradient_equals_the_equations() -> None:
    critic, batch, old, returns, gradient, stats = critic_update(mixed_responses())
    means = []
    for i, ids in enumerate(batch.sequences):
        first, end, prompt = int(batch.offsets[i]), int(batch.offsets[i + 1]), int(batch.prompt_lengths_S[i])
        if not batch.finished_S[i] or first == end:
            continue
        v = critic.values(critic.hidden(ids[None]))[0, prompt - 1 : prompt - 1 + end - first]
        outcome = batch.rewards_N[end - 1].double()  # gamma 1: the return of every token
        assert torch.equal(returns[first:end], outcome.expand(end - first))
        clipped_v = torch.minimum(torch.maximum(v, old[first:end] - 0.5), old[first:end] + 0.6)
        errors = torch.maximum((v - returns[first:end]) ** 2, (clipped_v - returns[first:end]) ** 2)
        means.append(0.5 * errors.mean())
    loss = torch.stack(means).mean()
    expected = torch.autograd.grad(loss, list(critic.parameters()))
    for (name, _), wanted in zip(critic.named_parameters(), expected, strict=True):
        assert torch.allclose(gradient[name], wanted, rtol=1e-8, atol=1e-10), name
    assert stats["critic_loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_unfinished_responses_do_not_touch_the_critic() -> None:
    responses = mixed_responses()
    finished = [r for r in responses if r.status.finished]
    # The same rows with other old values: compare with the clip off.
    off = CriticOptions(clip_low=None, clip_high=None)
    with_open, without = critic_update(responses, off)[-2], critic_update(finished, off)[-2]
    assert with_open.keys() == without.keys() != set()
    for name in with_open:
        assert torch.allclose(with_open[name], without[name], rtol=1e-9, atol=1e-12)


def test_no_finished_response_means_no_critic_step() -> None:
    unfinished = [response(i, [1, 2, 3], status=Status.UNFINISHED) for i in range(3)]
    *_, gradient, stats = critic_update(unfinished)
    assert gradient == {}
    assert stats["critic_updates"] == 0
    assert not {"critic_loss", "critic_grad_norm"} & stats.keys()


def likelihood(reads: str | None = None) -> Term:
    """A term of every token that trains; with a column, weighed by it."""

    def loss(now: Now, data: Columns) -> Loss:
        return Loss(-now.value_X if reads is None else -now.value_X * data[reads])

    return Term("likelihood", loss, reads=frozenset({reads} - {None}))  # type: ignore[arg-type]


def test_mini_batches_are_even_and_cover_everything_once_an_epoch() -> None:
    batch = Batch.of([*(response(i, [1 + i % 5, 2]) for i in range(10)), response(10, [], status=Status.EMPTY)])
    policy, options = TransformerPolicy(tiny_lm()), Optimizer(lr=1e-4, mini_batch=4, epochs=2)
    stats = update(
        policy, ModelOptimizer(policy, options), batch, [likelihood()], {"train": batch.window_N}, call=COLD,
        now=policy_now, name="policy", key=KEY,
    )  # fmt: skip
    assert stats["policy_updates"] == 6  # 4 + 3 + 3, twice

    def dealt(key: tuple[int, int], name: str) -> list[list[int]]:
        return list(mini_batches(options, batch, batch.window_N, key=key, name=name))

    parts = dealt(KEY, "policy")
    assert [len(part) for part in parts] == [4, 3, 3] * 2
    assert all(sorted(chain(*epoch)) == list(range(10)) for epoch in (parts[:3], parts[3:]))  # the empty one never
    assert parts == dealt(KEY, "policy")
    others = [parts, dealt((1, 0), "policy"), dealt((0, 1), "policy"), dealt(KEY, "critic"), parts[3:] + parts[:3]]
    assert all(a != b for i, a in enumerate(others) for b in others[:i])


@pytest.mark.parametrize("where", ["returns", "advantages", "old"])
def test_non_finite_losses_name_the_culprit_and_change_nothing(where: str) -> None:
    responses = [response(i, [1, 2, 3]) for i in (7, 8, 9)]
    batch = Batch.of(responses)
    bad = torch.zeros(9)
    bad[4] = float("nan")  # second token of response 8
    columns = {"train": batch.window_N, "advantages": torch.ones(9), "old": torch.zeros(9), "values": torch.zeros(9)}
    columns |= {where: bad}
    if where == "returns":
        model: Any = TransformerCritic(tiny_lm().base_model)
        terms, now, name = Critic(CriticOptions()).terms(), critic_now, "critic"
    else:
        model = TransformerPolicy(tiny_lm())
        terms, now, name = (clipped(clip_low=0.2, clip_high=0.28), imitate_positives(0.1)), policy_now, "policy"
    before = copy.deepcopy(model)
    with pytest.raises(NonFiniteError, match=rf"{name}_loss has 1 .* in responses \[8\]") as caught:
        update(
            model, ModelOptimizer(model, Optimizer(lr=1.0)), batch, terms, columns, call=COLD, now=now, name=name,
            key=KEY,
        )  # fmt: skip
    assert states_equal(model, before)
    error = caught.value
    assert (error.tensor, error.responses, error.count, error.step) == (f"{name}_loss", (8,), 1, None)


def test_every_culprit_of_a_micro_batch_is_named() -> None:
    batch = Batch.of([response(i, [1, 2, 3]) for i in range(6)])
    weights = torch.ones(18)
    weights[[4, 5, 16]] = float("inf")  # of responses 1 and 5
    policy = TransformerPolicy(tiny_lm())
    with pytest.raises(NonFiniteError, match="likelihood has") as caught:
        update(
            policy, ModelOptimizer(policy, SGD_LIKE), batch, [likelihood("weights")],
            {"train": batch.window_N, "weights": weights}, call=replace(COLD, micro_batch_tokens=1000),
            now=policy_now, name="policy", key=KEY,
        )  # fmt: skip
    assert (caught.value.responses, caught.value.count) == ((1, 5), 3)


def test_non_finite_gradients_name_the_weight() -> None:
    critic = TransformerCritic(tiny_lm().base_model)
    optimizer = ModelOptimizer(critic, Optimizer(lr=1.0))
    for p in critic.parameters():
        p.grad = torch.zeros_like(p)
    assert critic.head.weight.grad is not None
    critic.head.weight.grad[0, 0] = float("inf")
    before = copy.deepcopy(critic)
    with pytest.raises(NonFiniteError, match=r"gradient of critic weight head\.weight has 1"):
        optimizer.step(name="critic")
    assert states_equal(critic, before)


class Counting(Ranks):
    """Counts what a process says to the others."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[Any] = []

    def gather(self, value: Any) -> list[Any]:
        self.said.append(value)
        return super().gather(value)


def test_statistics_are_gathered_once() -> None:
    """Not once a mini-batch: each gather waits for the slowest rank."""
    batch, ranks = Batch.of([response(i, [1 + i % 5, 2]) for i in range(10)]), Counting()
    policy = TransformerPolicy(tiny_lm())
    columns = {"train": batch.window_N, "old": COLD.logprobs(policy, batch, batch.window_N)[0]}
    columns["advantages"] = torch.linspace(-1, 1, 20)
    stats = update(
        policy, ModelOptimizer(policy, Optimizer(lr=1e-3, mini_batch=2, epochs=2)), batch,
        [clipped(clip_low=0.2, clip_high=0.28)], columns, call=replace(COLD, ranks=ranks, micro_batch_tokens=10),
        now=policy_now, name="policy", key=KEY,
    )  # fmt: skip
    assert stats["policy_updates"] == 10
    assert len(ranks.said) == 1
    [(sums, peaks)] = ranks.said
    assert "policy_loss" in sums
    assert peaks.keys() == {"ratio_max"}
    # Averages over the updates; the maximum over all.
    assert stats["ratio_mean"] == pytest.approx(sums["ratio_mean"] / 10)
    assert stats["ratio_max"] == peaks["ratio_max"] > stats["ratio_mean"]


def test_live_columns_are_new_in_every_mini_batch_and_after_follows_every_step() -> None:
    batch = Batch.of([response(i, [1 + i % 5, 2, 3]) for i in range(5)])
    events: list[str] = []
    asked: list[torch.Tensor] = []
    given: list[float] = []

    class Telling(ModelOptimizer):
        def step(self, *, name: str) -> float:
            events.append("step")
            return super().step(name=name)

    def live(need_N: torch.Tensor) -> Columns:
        events.append("live")
        asked.append(need_N)
        return {"scale": torch.full((15,), float(len(asked)))}

    def loss(now: Now, data: Columns) -> Loss:
        given.extend(data["scale"].unique().tolist())
        return Loss(-now.value_X * data["scale"])

    policy = TransformerPolicy(tiny_lm())
    keep = batch.window_N.clone()
    keep[::3] = False
    stats = update(
        policy, Telling(policy, Optimizer(mini_batch=2, epochs=2)), batch,
        [Term("scaled", loss, reads=frozenset({"scale"}))],
        {"train": keep, "scale": torch.full((15,), -1.0)},  # of before the update: no term may see it
        call=COLD, now=policy_now, name="policy", key=KEY, live=live, after=lambda: events.append("after"),
    )  # fmt: skip
    assert stats["policy_updates"] == 6
    assert events == ["live", "step", "after"] * 6
    assert given == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    for epoch in (asked[:3], asked[3:]):  # asked for the tokens of its mini-batch only, each once an epoch
        assert torch.equal(torch.stack(epoch).long().sum(0), keep.long())


@pytest.mark.parametrize("shape", [(3,), (8,), (9, 1)])
def test_a_column_of_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    """[S] where [N] is meant would be read at the wrong places without a word."""
    batch = Batch.of([response(i, [1, 2, 3]) for i in range(3)])
    policy = TransformerPolicy(tiny_lm())
    before = copy.deepcopy(policy)

    def run(column: torch.Tensor) -> dict[str, float]:
        return update(
            policy, ModelOptimizer(policy, Optimizer(lr=1.0)), batch, [likelihood("weights")],
            {"train": batch.window_N, "weights": column}, call=COLD, now=policy_now, name="policy", key=KEY,
        )  # fmt: skip

    with pytest.raises(ValueError, match=r"column 'weights': found shape \(.*\), expected \[9\]; Batch.spread"):
        run(torch.ones(shape))
    assert states_equal(policy, before)
    assert run(batch.spread(torch.ones(3)))["policy_updates"] == 1


def test_a_term_gets_the_columns_that_it_declares_and_no_others() -> None:
    batch = Batch.of([response(i, [1, 2, 3]) for i in range(3)])
    policy = TransformerPolicy(tiny_lm())
    seen: list[set[str]] = []

    def loss(now: Now, data: Columns) -> Loss:
        seen.append(set(data))
        return Loss(-now.value_X * data["weights"])

    def run(*reads: str, **columns: torch.Tensor) -> None:
        update(
            policy, ModelOptimizer(policy, SGD_LIKE), batch, [Term("term", loss, reads=frozenset(reads))],
            {"train": batch.window_N, **columns}, call=COLD, now=policy_now, name="policy", key=KEY,
        )  # fmt: skip

    run("weights", weights=torch.ones(9), old=torch.ones(9))
    assert seen == [{"weights"}]
    for undeclared in ((), ("old",)):
        with pytest.raises(KeyError, match="weights"):
            run(*undeclared, weights=torch.ones(9), old=torch.ones(9))
    with pytest.raises(KeyError, match="weights"):
        run("weights")  # declared, but given by nobody


@pytest.mark.parametrize("over", ["window", "finished"])
@pytest.mark.parametrize("boundary", ["repeat", "critic", "terminal"])
def test_advantages_follow_the_reference_per_response(over: Literal["window", "finished"], boundary: Boundary) -> None:
    """From responses to whitened advantages, against a plain loop in float64."""
    responses = [r for seed in range(4) for r in mixed_responses(seed)]
    batch = Batch.of(responses)
    g = torch.Generator().manual_seed(3)
    values = torch.rand(len(batch.tokens_N), generator=g, dtype=torch.float64)
    cut = torch.rand(batch.num_responses, generator=g, dtype=torch.float64)
    advantage = generalised(
        over=over, boundary=boundary, gamma=0.97, lam=0.3, lam_alpha=0.05, window=6, max_length=14, whiten=True,
        clamp=1.5,
    )  # fmt: skip
    train = (new_tokens(ignore_last=2) if over == "window" else finished_tokens)(batch)
    columns = {"rewards": batch.rewards_N, "values": values, "cut_values": cut}
    got = advantage.estimate(batch, {name: columns[name] for name in advantage.reads}, train)
    assert got.keys() == advantage.gives
    read = batch.window_N if over == "window" else batch.finished_N
    flat, keep = [], []
    for i, r in enumerate(responses):
        first = int(batch.offsets[i])
        length = len(r.tokens) if r.status.finished else min(len(r.tokens) + 3, 14)
        lam = max(0.3, 1 - 1 / (0.05 * length)) if length else 0.3
        if length:
            assert float(got["lambda"][i]) == pytest.approx(lam, abs=1e-12)
        if over == "finished" and not r.status.finished:
            continue
        start = r.start if over == "window" else 0
        window = slice(first + start, first + len(r.tokens))
        v, rew = values[window].numpy(), batch.rewards_N[window].double().numpy()
        n = len(v)
        adv = [0.0] * n
        ahead = 0.0
        for t in reversed(range(n)):
            if t < n - 1:
                nxt = v[t + 1]
            elif r.status.finished:
                nxt = 0.0
            else:
                nxt = {"repeat": v[t], "critic": float(cut[i]), "terminal": 0.0}[boundary]
            ahead = rew[t] + 0.97 * nxt - v[t] + 0.97 * lam * ahead
            adv[t] = ahead
        flat += adv
        keep += [r.status.finished or t < n - 2 for t in range(n)]
    kept = torch.tensor(keep)
    raw = torch.tensor(flat, dtype=torch.float64)
    mean, var = raw[kept].mean(), raw[kept].var()
    white = torch.where(kept, ((raw - mean) / (var + 1e-8).sqrt()).clamp(-1.5, 1.5), 0.0)
    assert torch.equal(train[read], kept)
    assert not train[~read].any()
    assert torch.allclose(got["raw_advantages"][read], raw, rtol=0, atol=1e-12)
    assert torch.allclose(got["advantages"][read], white, rtol=0, atol=1e-12)
    assert not got["advantages"][~read].any()
