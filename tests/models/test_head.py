"""The chunked output head: the numbers and gradients of the naive formula, and never a table larger than a chunk."""

from __future__ import annotations

import pytest
import torch

from tests.support.helpers import Largest, tiny_lm
from tppo.models.head import linear_scores, single_linear, token_scores
from tppo.models.tabular import TabularPolicy
from tppo.models.transformer import TransformerPolicy

COUNT, WORDS, WIDTH = 13, 29, 7
Tensors = tuple[torch.Tensor, ...]


def inputs(dtype: torch.dtype = torch.float64, count: int = COUNT, *, sharp: float = 1.0) -> Tensors:
    """Hidden states, weight, bias (all of which train) and tokens."""
    g = torch.Generator().manual_seed(3)
    shapes = [(count, WIDTH), (WORDS, WIDTH), (WORDS,)]
    floats = [(sharp * torch.randn(s, generator=g, dtype=torch.float64)).to(dtype).requires_grad_() for s in shapes]
    return (*floats, torch.randint(0, WORDS, (count,), generator=g))


def naive(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tokens: torch.Tensor, t: float):  # type: ignore[no-untyped-def]
    """All logits at once, by plain autograd, in float64."""
    logits = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    logprobs = (logits / t).log_softmax(-1)
    return logprobs.gather(-1, tokens[:, None]).squeeze(-1), -(logprobs.exp() * logprobs).sum(-1)


def loss_of(logprobs: torch.Tensor, entropy: torch.Tensor, use: str) -> torch.Tensor:
    """Every token has another weight, so no mistake cancels."""
    w = torch.linspace(-1, 2, len(logprobs), dtype=logprobs.dtype)
    terms = {"logprobs": (w * logprobs).sum(), "entropy": (w.flip(0) * entropy).sum()}
    return sum(terms[name] for name in use.split("+"))  # type: ignore[return-value]


@pytest.mark.parametrize("use", ["logprobs", "entropy", "logprobs+entropy"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("chunk", "temperature"), [(1, 1.0), (4, 0.7), (COUNT, 1.3), (100, 0.7)])
def test_equals_the_naive_formula(use: str, with_bias: bool, chunk: int, temperature: float) -> None:
    hidden, weight, bias, tokens = inputs(sharp=1.5)
    trained = [hidden, weight] + [bias] * with_bias
    args = (hidden, weight, bias if with_bias else None, tokens)
    scores = linear_scores(*args, temperature=temperature, chunk=chunk, with_entropy="entropy" in use)
    wanted = naive(*args, temperature)
    assert torch.allclose(scores[0], wanted[0], rtol=0, atol=1e-12)
    if "entropy" in use:
        assert torch.allclose(scores[1], wanted[1], rtol=0, atol=1e-12)
    else:
        assert not scores[1].any()
        assert not scores[1].requires_grad
    got = torch.autograd.grad(loss_of(*scores, use), trained)
    for one, two in zip(got, torch.autograd.grad(loss_of(*wanted, use), trained), strict=True):
        assert two.abs().max() > 0.1  # there is something to compare
        assert torch.allclose(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("with_entropy", [True, False])
@pytest.mark.parametrize("chunk", [2, 50])
def test_finite_differences(with_entropy: bool, chunk: int) -> None:
    hidden, weight, bias, tokens = inputs(count=5)

    def scores(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> Tensors:
        out = linear_scores(h, w, b, tokens, temperature=0.8, chunk=chunk, with_entropy=with_entropy)
        return out if with_entropy else out[:1]

    assert torch.autograd.gradcheck(scores, (hidden, weight, bias))


@pytest.mark.parametrize("use", ["logprobs", "logprobs+entropy"])
@pytest.mark.parametrize("chunk", [4, COUNT])
def test_backward_can_run_twice(use: str, chunk: int) -> None:
    """What was kept is not overwritten."""
    hidden, weight, bias, tokens = inputs()
    loss = loss_of(*linear_scores(hidden, weight, bias, tokens, temperature=0.8, chunk=chunk), use)
    first = torch.autograd.grad(loss, [hidden, weight, bias], retain_graph=True)
    for one, two in zip(first, torch.autograd.grad(loss, [hidden, weight, bias]), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("frozen", [0, 1])
def test_only_what_trains_gets_a_gradient(frozen: int) -> None:
    hidden, weight, _, tokens = inputs()
    leaves = [hidden, weight]
    leaves[frozen].requires_grad_(False)
    scores = linear_scores(hidden, weight, None, tokens, temperature=1.0, chunk=4)
    loss_of(*scores, "logprobs+entropy").backward()
    other = leaves[1 - frozen]
    [wanted] = torch.autograd.grad(loss_of(*naive(hidden, weight, None, tokens, 1.0), "logprobs+entropy"), other)
    assert leaves[frozen].grad is None
    assert torch.allclose(other.grad, wanted, rtol=0, atol=1e-12)  # type: ignore[arg-type]


def test_no_tokens() -> None:
    hidden, weight, bias, tokens = inputs(count=0)
    logprobs, entropy = linear_scores(hidden, weight, bias, tokens, temperature=0.7, chunk=4)
    assert logprobs.shape == entropy.shape == (0,)
    (logprobs.sum() + entropy.sum()).backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, WIDTH)
    assert not weight.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_lower_precision(dtype: torch.dtype, tolerance: float) -> None:
    hidden, weight, _, tokens = inputs(dtype)
    scores = linear_scores(hidden, weight, None, tokens, temperature=0.9, chunk=5)
    assert scores[0].dtype == scores[1].dtype == torch.float32
    wanted = naive(hidden, weight, None, tokens, 0.9)
    use = "logprobs+entropy"
    got = torch.autograd.grad(loss_of(*scores, use), [hidden, weight])
    expected = torch.autograd.grad(loss_of(*wanted, use), [hidden, weight])
    for one, two in [*zip(scores, wanted, strict=True), *zip(got, expected, strict=True)]:
        assert (one.double() - two).norm() <= tolerance * two.norm()
    assert {g.dtype for g in got} == {dtype}


def test_the_gradient_of_low_precision_weights_is_added_up_in_float32() -> None:
    """Equal tokens one chunk each: in bfloat16 the sum of n equal terms stops at 256 of them."""
    many = 2000
    hidden = torch.ones(many, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    logprobs, _ = linear_scores(
        hidden, weight, None, torch.zeros(many, dtype=torch.int64), temperature=1.0, chunk=1, with_entropy=False
    )
    logprobs.sum().backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == pytest.approx([many / 2, -many / 2], rel=1 / 256)


@pytest.mark.parametrize("with_entropy", [True, False])
def test_extreme_logits_stay_finite(with_entropy: bool) -> None:
    hidden = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    weight = torch.tensor([[1e4], [0.0], [-1e4]], requires_grad=True)
    scores = linear_scores(
        hidden, weight, None, torch.tensor([0, 0]), temperature=1.0, chunk=1, with_entropy=with_entropy
    )
    sum(scores).sum().backward()  # type: ignore[union-attr]
    assert scores[0].tolist() == [0.0, -2e4]
    assert hidden.grad is not None
    # d logp_0 / dh = w_0 - w_argmax: 0 where token 0 has all the mass, 2e4 where token 2 has.
    assert hidden.grad.flatten().tolist() == [0.0, 2e4]


@pytest.mark.parametrize("chunk", [5, 100])
@pytest.mark.parametrize("tied", [True, False])
def test_whole_model_with_tied_and_untied_weights(tied: bool, chunk: int) -> None:
    gradients = []
    ids = torch.randint(0, 23, (3, 8), generator=torch.Generator().manual_seed(0))
    for ours in (True, False):
        policy = TransformerPolicy(tiny_lm(tied=tied, dtype=torch.float64))
        assert policy.output_layer() is policy.model.get_output_embeddings()
        hidden, tokens = policy.hidden(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        scores = (
            token_scores(policy, hidden, tokens, temperature=0.9, chunk=chunk)
            if ours
            else naive(hidden, policy.model.get_output_embeddings().weight, None, tokens, 0.9)
        )
        loss_of(*scores, "logprobs+entropy").backward()
        gradients.append([p.grad for p in policy.parameters()])
    for one, two in zip(*gradients, strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-12)


def test_policies_without_a_linear_layer() -> None:
    table = TabularPolicy(torch.tensor([[1, 2, 0]] * 3), torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    ids, tokens = torch.tensor([[3, 0, 1, 1, 2]]), torch.tensor([1, 0, 2, 2, 0])
    results = []
    for chunk in (2, 100):
        scores = token_scores(table, table.hidden(ids)[0], tokens, temperature=0.6, chunk=chunk)
        loss_of(*scores, "logprobs+entropy").backward()
        assert table.logits_SA.grad is not None
        results.append([*scores, table.logits_SA.grad])
        table.logits_SA.grad = None
    wanted = (table.logits_SA[table.states(ids)[0]] / 0.6).log_softmax(-1)
    assert torch.allclose(results[0][0], wanted.gather(-1, tokens[:, None]).squeeze(-1), atol=1e-6)
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_layers_that_do_more_than_multiply_are_called_as_they_are() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    plain, hooked = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    hooked.register_forward_hook(lambda m, a, out: 2 * out)
    assert single_linear(plain) is plain
    assert [single_linear(m) for m in (hooked, Doubled(2, 3), torch.nn.Identity(), None)] == [None] * 4
    policy = TransformerPolicy(tiny_lm(tied=False))
    policy.model.lm_head.register_forward_hook(lambda m, a, out: 2 * out)
    hidden, tokens = torch.randn(4, 32), torch.tensor([3, 1, 4, 1])
    doubled, _ = token_scores(policy, hidden, tokens, temperature=1.0, chunk=2)
    assert torch.allclose(doubled, naive(hidden, 2 * policy.model.lm_head.weight, None, tokens, 1.0)[0].float())


@pytest.mark.parametrize("with_entropy", [True, False])
def test_no_table_is_larger_than_a_chunk(with_entropy: bool) -> None:
    """The promise that lets 24k tokens meet 152k words, with the naive formula as proof that the measure measures."""
    words, count, chunk = 500, 200, 16
    hidden, weight = torch.randn(count, 4, requires_grad=True), torch.randn(words, 4, requires_grad=True)
    tokens = torch.randint(0, words, (count,))
    with Largest() as ours:
        scores = linear_scores(hidden, weight, None, tokens, temperature=0.9, chunk=chunk, with_entropy=with_entropy)
        loss_of(*scores, "logprobs+entropy" if with_entropy else "logprobs").backward()
    with Largest() as theirs:
        loss_of(*naive(hidden, weight, None, tokens, 0.9), "logprobs+entropy").backward()
    assert ours.numel == chunk * words
    assert theirs.numel == count * words


def test_what_is_kept_for_the_backward_pass() -> None:
    """The inputs and two numbers a token; a table only when there is but one."""
    kept: list[int] = []
    hidden, weight, _, tokens = inputs()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        linear_scores(hidden, weight, None, tokens, temperature=1.0, chunk=4)
    assert sorted(kept) == sorted([COUNT * WIDTH, WORDS * WIDTH, COUNT, COUNT, COUNT])
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        linear_scores(hidden, weight, None, tokens, temperature=1.0, chunk=COUNT)
    assert max(kept) == COUNT * WORDS
    kept.clear()
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        logprobs, entropy = linear_scores(hidden, weight, None, tokens, temperature=1.0, chunk=4)
    assert not logprobs.requires_grad
    assert torch.allclose(entropy, naive(hidden, weight, None, tokens, 1.0)[1], atol=1e-12)
    assert kept == []
