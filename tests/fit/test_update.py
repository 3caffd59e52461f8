"""The two updates against a plain computation, and what they leave alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tppo.algorithms.estimate import Estimate, estimate_advantages, value_targets

from tests.support.helpers import mixed_responses, response, states_equal, tiny_lm
from tppo.algorithms.base import Algorithm, PolicyLoss, ValueTarget
from tppo.config.run import Compute, Optimizer
from tppo.errors import NonFiniteError
from tppo.fit.optim import ModelOptimizer
from tppo.fit.update import update_critic, update_policy
from tppo.models.call import logprobs_of
from tppo.models.transformer import TransformerCritic, TransformerPolicy
from tppo.types import Batch, Status

SMALL = Compute(micro_batch_tokens=25, logit_chunk_tokens=3)
LARGE = Compute()
# One plain gradient step: the change of the weights is the gradient.
SGD_LIKE = Optimizer(lr=1e-3, weight_decay=0.0, grad_clip=None, mini_batch=1000)


class GradientKeeper(ModelOptimizer):
    """Keeps the gradient of the one mini-batch instead of stepping."""

    def step(self, *, name: str, step: int) -> float:
        self.gradient = {n: p.grad.clone() for n, p in self.named if p.grad is not None}
        return 0.0


def policy_gradient(loss: PolicyLoss, compute: Compute, seed: int = 0):  # type: ignore[no-untyped-def]
    policy = TransformerPolicy(tiny_lm(dtype=torch.float64))
    batch = Batch.of(mixed_responses(seed))
    g = torch.Generator().manual_seed(seed)
    keep = batch.window_N & (torch.rand(len(batch.tokens_N), generator=g) < 0.8)
    advantages = torch.randn(len(batch.tokens_N), generator=g, dtype=torch.float64) * keep
    old, _ = logprobs_of(policy, batch, batch.window_N, temperature=0.8, max_tokens=1000, chunk=1000)
    old += 0.3 * torch.randn(len(old), generator=g, dtype=torch.float64) * batch.window_N
    anchor = old + 0.2
    keeper = GradientKeeper(policy, SGD_LIKE)
    stats = update_policy(
        policy, keeper, batch, Estimate(advantages, advantages, keep, torch.ones(batch.num_responses)),
        old_logprobs_N=old, reference_N=anchor, loss=loss, temperature=0.8, compute=compute, step=0, seed=0,
    )  # fmt: skip
    return policy, batch, keep, advantages, old, anchor, keeper.gradient, stats


def naive_policy_loss(policy, batch, keep, advantages, old, anchor, loss: PolicyLoss):  # type: ignore[no-untyped-def]
    """Row by row from the equations; no micro-batch, no flat index."""
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
                term = torch.maximum(-ratio * a, -ratio.clamp(1 - loss.clip_low, 1 + loss.clip_high) * a)
                if loss.dual_clip is not None and a < 0:
                    term = torch.minimum(term, -loss.dual_clip * a)
                if loss.importance_cap is not None:
                    term = term * (old[n] - batch.behaviour_N[n]).exp().clamp(max=loss.importance_cap)
                mine.append(term)
                entropies.append(-(row.exp() * row).sum())
                d = lp - anchor[n]
                kls.append((-d).exp() + d - 1)
        if mine:
            terms.append(torch.stack(mine))
            rows.append(i)
    if loss.aggregation == "token-mean":
        mean = lambda parts: torch.cat(parts).mean()  # noqa: E731
    elif loss.aggregation == "seq-mean-token-mean":
        mean = lambda parts: torch.stack([p.mean() for p in parts]).mean()  # noqa: E731
    elif loss.aggregation == "seq-mean-token-sum":
        mean = lambda parts: torch.stack([p.sum() for p in parts]).mean()  # noqa: E731
    else:
        mean = lambda parts: torch.cat(parts).sum() / (len(parts) * loss.constant_length)  # noqa: E731
    split = lambda flat: list(torch.stack(flat).split([len(t) for t in terms]))  # noqa: E731
    total = mean(terms) - loss.entropy_coef * mean(split(entropies)) + loss.kl_coef * mean(split(kls))
    return total + loss.lm_coef * nll / max(positives, 1)


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"])
@pytest.mark.parametrize("cap", [None, 0.5])
def test_policy_gradient_equals_the_equations(aggregation, cap) -> None:  # type: ignore[no-untyped-def]
    loss = PolicyLoss(
        clip_low=0.1, clip_high=0.15, dual_clip=1.2, aggregation=aggregation, lm_coef=0.1, entropy_coef=0.02,
        kl_coef=0.3, constant_length=9 if aggregation == "constant" else None, importance_cap=cap,
    )  # fmt: skip
    policy, *rest, gradient, stats = policy_gradient(loss, SMALL)
    total = naive_policy_loss(policy, *rest, loss)
    expected = torch.autograd.grad(total, list(policy.parameters()))
    for (name, _), wanted in zip(policy.named_parameters(), expected, strict=True):
        assert torch.allclose(gradient[name], wanted, rtol=1e-8, atol=1e-10), name
    assert stats["policy_updates"] == 1
    assert stats["clip_fraction_high"] + stats["clip_fraction_low"] > 0


def test_micro_batches_do_not_change_the_gradient() -> None:
    loss = PolicyLoss(entropy_coef=0.01)
    small, large = policy_gradient(loss, SMALL)[-2], policy_gradient(loss, LARGE)[-2]
    for name in small:
        assert torch.allclose(small[name], large[name], rtol=1e-9, atol=1e-12)


def test_earlier_windows_and_dropped_tokens_train_nothing() -> None:
    """Only kept tokens enter: poison everything else."""
    policy = TransformerPolicy(tiny_lm(dtype=torch.float64))
    batch = Batch.of(mixed_responses())
    keep = batch.window_N.clone()
    keep[batch.offsets[1:-1] - 1] = False
    old, _ = logprobs_of(policy, batch, keep, temperature=1.0, max_tokens=1000, chunk=1000)
    advantages = torch.ones(len(keep), dtype=torch.float64)
    results = []
    for poison in (0.0, float("nan")):
        model = copy.deepcopy(policy)
        keeper = GradientKeeper(model, SGD_LIKE)
        update_policy(
            model, keeper, batch,
            Estimate(advantages.masked_fill(~keep, poison), advantages, keep, torch.ones(batch.num_responses)),
            old_logprobs_N=old.masked_fill(~keep, poison), reference_N=None, loss=PolicyLoss(lm_coef=0.0),
            temperature=1.0, compute=SMALL, step=0, seed=0,
        )  # fmt: skip
        results.append(keeper.gradient)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def critic_update(responses, loss: ValueTarget | None = None, compute: Compute = SMALL):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    critic = TransformerCritic(tiny_lm(dtype=torch.float64).base_model).double()
    torch.nn.init.normal_(critic.head.weight, std=0.1)
    batch = Batch.of(responses)
    g = torch.Generator().manual_seed(1)
    old = torch.randn(len(batch.tokens_N), generator=g, dtype=torch.float64)
    returns = value_targets(Algorithm(), batch, old)
    keeper = GradientKeeper(critic, SGD_LIKE)
    stats = update_critic(
        critic, keeper, batch, returns_N=returns, old_values_N=old, loss=loss or ValueTarget(), compute=compute,
        step=0, seed=0,
    )  # fmt: skip
    return critic, batch, old, returns, getattr(keeper, "gradient", {}), stats


def test_critic_gradient_equals_the_equations() -> None:
    critic, batch, old, returns, gradient, _ = critic_update(mixed_responses())
    means = []
    for i, ids in enumerate(batch.sequences):
        first, end, prompt = int(batch.offsets[i]), int(batch.offsets[i + 1]), int(batch.prompt_lengths_S[i])
        if not batch.finished_S[i] or first == end:
            continue
        v = critic.values(critic.hidden(ids[None]))[0, prompt - 1 : prompt - 1 + end - first]
        assert torch.equal(returns[first:end], batch.scores_S[i].double().expand(end - first))  # gamma 1: the outcome
        clipped = torch.minimum(torch.maximum(v, old[first:end] - 0.5), old[first:end] + 0.6)
        errors = torch.maximum((v - returns[first:end]) ** 2, (clipped - returns[first:end]) ** 2)
        means.append(0.5 * errors.mean())
    expected = torch.autograd.grad(torch.stack(means).mean(), list(critic.parameters()))
    for (name, _), wanted in zip(critic.named_parameters(), expected, strict=True):
        assert torch.allclose(gradient[name], wanted, rtol=1e-8, atol=1e-10), name


def test_unfinished_responses_do_not_touch_the_critic() -> None:
    responses = mixed_responses()
    finished = [r for r in responses if r.status.finished]
    # The same rows with other old values: compare with the clip off.
    off = ValueTarget(clip_low=None, clip_high=None)
    with_open, without = critic_update(responses, off)[-2], critic_update(finished, off)[-2]
    for name in with_open:
        assert torch.allclose(with_open[name], without[name], rtol=1e-9, atol=1e-12)


def test_no_finished_response_means_no_critic_step() -> None:
    unfinished = [response(i, [1, 2, 3], status=Status.UNFINISHED) for i in range(3)]
    *_, gradient, stats = critic_update(unfinished)
    assert gradient == {}
    assert stats == {"critic_updates": 0}


def test_mini_batches_are_even_and_cover_everything_once_an_epoch() -> None:
    responses = [response(i, [1 + i % 5, 2]) for i in range(10)]
    batch = Batch.of(responses)
    policy = TransformerPolicy(tiny_lm())
    old, _ = logprobs_of(policy, batch, batch.window_N, temperature=1.0, max_tokens=999, chunk=999)
    optimizer = ModelOptimizer(policy, Optimizer(lr=1e-4, mini_batch=4, epochs=2))
    stats = update_policy(
        policy, optimizer, batch, Estimate(torch.ones(20), torch.ones(20), batch.window_N, torch.ones(10)),
        old_logprobs_N=old,
        reference_N=None, loss=PolicyLoss(lm_coef=0.0), temperature=1.0, compute=LARGE, step=0, seed=0,
    )  # fmt: skip
    assert stats["policy_updates"] == 6  # 4 + 3 + 3, twice


@pytest.mark.parametrize("where", ["values", "advantages", "old"])
def test_non_finite_losses_name_the_culprit_and_change_nothing(where: str) -> None:
    responses = [response(i, [1, 2, 3]) for i in (7, 8, 9)]
    batch = Batch.of(responses)
    bad = torch.zeros(9)
    bad[4] = float("nan")  # second token of response 8
    if where == "values":
        critic = TransformerCritic(tiny_lm().base_model)
        before = copy.deepcopy(critic)
        with pytest.raises(NonFiniteError, match=r"value loss has 1 .* in responses \[8\]") as caught:
            update_critic(
                critic, ModelOptimizer(critic, Optimizer(lr=1.0)), batch, returns_N=bad, old_values_N=torch.zeros(9),
                loss=ValueTarget(), compute=LARGE, step=3, seed=0,
            )  # fmt: skip
        assert states_equal(critic, before)
    else:
        policy = TransformerPolicy(tiny_lm())
        before = copy.deepcopy(policy)
        with pytest.raises(NonFiniteError, match=r"policy loss has 1 .* in responses \[8\]") as caught:
            update_policy(
                policy, ModelOptimizer(policy, Optimizer(lr=1.0)), batch,
                Estimate(bad if where == "advantages" else torch.ones(9), torch.ones(9), batch.window_N, torch.ones(3)),
                old_logprobs_N=bad if where == "old" else torch.zeros(9), reference_N=None, loss=PolicyLoss(),
                temperature=1.0, compute=LARGE, step=3, seed=0,
            )  # fmt: skip
        assert states_equal(policy, before)
    assert caught.value.responses == (8,)


def test_non_finite_gradients_name_the_weight() -> None:
    critic = TransformerCritic(tiny_lm().base_model)
    optimizer = ModelOptimizer(critic, Optimizer(lr=1.0))
    for p in critic.parameters():
        p.grad = torch.zeros_like(p)
    assert critic.head.weight.grad is not None
    critic.head.weight.grad[0, 0] = float("inf")
    before = copy.deepcopy(critic)
    with pytest.raises(NonFiniteError, match=r"gradient of critic weight head\.weight has 1"):
        optimizer.step(name="critic", step=0)
    assert states_equal(critic, before)


@pytest.mark.parametrize("estimator", ["egae", "gae"])
@pytest.mark.parametrize("boundary", ["repeat", "critic", "terminal"])
def test_estimate_follows_the_reference_per_response(estimator: str, boundary: str) -> None:
    """From responses to whitened advantages, against a plain loop in float64."""
    responses = [r for seed in range(4) for r in mixed_responses(seed)]
    if estimator == "gae":
        responses = [r for r in responses if r.status.finished]
    batch = Batch.of(responses)
    g = torch.Generator().manual_seed(3)
    values = torch.rand(len(batch.tokens_N), generator=g, dtype=torch.float64)
    cut = torch.rand(batch.num_responses, generator=g, dtype=torch.float64)
    a = replace(Algorithm().advantage, estimator=estimator, boundary=boundary, gamma=0.97, lam_min=0.3, clamp=1.5)
    algorithm = replace(Algorithm(), advantage=a, filter=replace(Algorithm().filter, ignore_last=2))
    got = estimate_advantages(algorithm, batch, values, cut, window=6, max_length=14)
    flat, keep = [], []
    for i, r in enumerate(responses):
        first = int(batch.offsets[i])
        window = slice(first + r.start, first + len(r.tokens))
        length = len(r.tokens) if r.status.finished else min(len(r.tokens) + 3, 14)
        lam = max(0.3, 1 - 1 / (0.05 * length)) if length else 0.3
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
        assert bool(torch.equal(got.keep_N[first : first + r.start], torch.zeros(r.start, dtype=torch.bool)))
    kept = torch.tensor(keep)
    white = torch.tensor(flat, dtype=torch.float64)
    mean, var = white[kept].mean(), white[kept].var()
    white = torch.where(kept, ((white - mean) / (var + 1e-8).sqrt()).clamp(-1.5, 1.5), 0.0)
    assert torch.equal(got.keep_N[batch.window_N], kept)
    assert torch.allclose(got.advantages_N[batch.window_N], white, rtol=0, atol=1e-12)
    assert not got.advantages_N[~batch.window_N].any()
