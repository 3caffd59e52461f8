"""From hidden states to log-probabilities and entropies, without ever holding the logits of all tokens.

At 24k tokens and 152k words one float32 table of logits is 15 GB, and plain autograd keeps about four. Here the logits
of ``chunk`` tokens exist at a time, in the forward and in the backward pass, where they are computed again from the
hidden states and two saved numbers a token. Shapes: _X selected tokens, _V vocabulary, _D hidden width; in a
chunk, _C tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from tppo.models.base import LinearHead, PolicyModel


def token_scores(
    policy: PolicyModel,
    hidden_XD: torch.Tensor,
    tokens_X: torch.Tensor,
    *,
    temperature: float,
    chunk: int,
    with_entropy: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each token and entropy of its distribution [X] [nats], at the sampling temperature.

    Logits exist for ``chunk`` tokens at a time, also in the backward pass, where they are computed again. Without
    ``with_entropy`` the entropy is zero and costs no second table of that size. In float32 at least.
    """
    layer = policy.output_layer() if isinstance(policy, LinearHead) else None
    if layer is None:
        return _any_scores(policy, hidden_XD, tokens_X, temperature, chunk, with_entropy)
    return linear_scores(
        hidden_XD, layer.weight, layer.bias, tokens_X, temperature=temperature, chunk=chunk, with_entropy=with_entropy
    )


def linear_scores(
    hidden_XD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    tokens_X: torch.Tensor,
    *,
    temperature: float,
    chunk: int,
    with_entropy: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``token_scores``, for logits ``hidden @ weight.T + bias``. Gradients reach hidden, weight and bias, once.

    The weight is read when this is called: under sharded training, call it where the layer's weight is whole.

    >>> hidden, weight = torch.tensor([[1.0, 0.0]]), torch.zeros(4, 2)
    >>> logprobs, entropy = linear_scores(hidden, weight, None, torch.tensor([3]), temperature=1.0, chunk=8)
    >>> f"{logprobs.item():.4f} {entropy.item():.4f}"
    '-1.3863 1.3863'
    """
    return _LinearScores.apply(hidden_XD, weight_VD, bias_V, tokens_X, temperature, chunk, with_entropy)


def single_linear(module: nn.Module | None) -> nn.Linear | None:
    """The module if calling it does ``x @ weight.T + bias`` and nothing else, else None.

    Subclasses (adapters, quantised or separately sharded layers) and layers with forward hooks may do more.
    """
    if type(module) is not nn.Linear or module._forward_hooks or module._forward_pre_hooks:
        return None
    return module


def _scaled_logits(
    hidden_CD: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    """Logits over temperature [C, V], a new table, in float32 at least."""
    logits = linear(hidden_CD, weight_VD, bias_V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1 else logits.div_(temperature)


class _LinearScores(torch.autograd.Function):
    """With z the logits over the temperature, L = logsumexp(z), p = exp(z - L) and H = -sum(p (z - L)):

    d(z_token - L)/dz_j = [j = token] - p_j   and   dH/dz_j = -p_j (z_j - L + H).

    So one pass over z, L and H give the gradient of both outputs, and L and H are one number a token each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_XD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        tokens_X: torch.Tensor,
        temperature: float,
        chunk: int,
        with_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = torch.promote_types(hidden_XD.dtype, torch.float32)
        chosen_X = torch.empty(tokens_X.shape, dtype=dtype, device=hidden_XD.device)
        logsum_X, entropy_X = torch.empty_like(chosen_X), torch.zeros_like(chosen_X)
        only_XV = None  # The table of the only chunk is kept: nothing is gained by computing it twice.
        for first in range(0, len(tokens_X), chunk):
            part = slice(first, first + chunk)
            tokens = tokens_X[part, None]
            z = _scaled_logits(hidden_XD[part], weight_VD, bias_V, temperature)
            chosen_z = z.gather(-1, tokens)
            logprobs = z.log_softmax(-1)
            chosen = logprobs.gather(-1, tokens)
            chosen_X[part], logsum_X[part] = chosen.squeeze(-1), (chosen_z - chosen).squeeze(-1)
            if with_entropy:
                torch.exp(logprobs, out=z)
                entropy_X[part] = -z.mul_(logprobs).sum(-1)
            if len(tokens_X) <= chunk:
                only_XV = logprobs
            del z, logprobs  # Else the next chunk's tables are made while these still stand.
        ctx.save_for_backward(hidden_XD, weight_VD, bias_V, tokens_X, logsum_X, entropy_X, only_XV)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)  # An output that no loss uses costs nothing.
        if not with_entropy:
            ctx.mark_non_differentiable(entropy_X)
        return chosen_X, entropy_X

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_chosen_X: torch.Tensor | None, grad_entropy_X: torch.Tensor | None) -> tuple[Any, ...]:
        hidden_XD, weight_VD, bias_V, tokens_X, logsum_X, entropy_X, only_XV = ctx.saved_tensors
        if grad_chosen_X is None and grad_entropy_X is None:
            return (None,) * 7
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        # Dozens of chunks are added up: bfloat16 would round every partial sum.
        sum_dtype = torch.promote_types(weight_VD.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden_XD) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=sum_dtype) if wants_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=sum_dtype) if wants_bias else None
        for first in range(0, len(tokens_X), ctx.chunk):
            part = slice(first, first + ctx.chunk)
            hidden = hidden_XD[part]
            logprobs = only_XV
            if logprobs is None:
                logprobs = _scaled_logits(hidden, weight_VD, bias_V, ctx.temperature).sub_(logsum_X[part, None])
            grad = _gradient_of_scaled_logits(
                logprobs,
                entropy_X[part, None],
                tokens_X[part, None],
                None if grad_chosen_X is None else grad_chosen_X[part, None],
                None if grad_entropy_X is None else grad_entropy_X[part, None],
                overwrite=only_XV is None,
            )
            grad.div_(ctx.temperature)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad_low = grad.to(weight_VD.dtype)
            if grad_hidden is not None:
                torch.mm(grad_low, weight_VD, out=grad_hidden[part])
            if grad_weight is not None:
                _add_outer(grad_weight, grad_low, hidden)
            del logprobs, grad, grad_low
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight_VD.dtype),
            None if grad_bias is None else grad_bias.to(bias_V.dtype),
            *(None,) * 4,
        )


def _gradient_of_scaled_logits(
    logprobs_CV: torch.Tensor,
    entropy_C1: torch.Tensor,
    tokens_C1: torch.Tensor,
    grad_chosen_C1: torch.Tensor | None,
    grad_entropy_C1: torch.Tensor | None,
    *,
    overwrite: bool,
) -> torch.Tensor:
    """The two formulas above [C, V]; at least one output has a gradient. ``overwrite``: in the memory of logprobs."""
    if grad_entropy_C1 is None:
        assert grad_chosen_C1 is not None
        grad = torch.exp(logprobs_CV, out=logprobs_CV if overwrite else None).mul_(-grad_chosen_C1)
    else:
        p = logprobs_CV.exp()
        grad = torch.add(logprobs_CV, entropy_C1, out=logprobs_CV if overwrite else None).mul_(grad_entropy_C1)
        if grad_chosen_C1 is not None:
            grad.add_(grad_chosen_C1)
        grad.mul_(p).neg_()
    return grad if grad_chosen_C1 is None else grad.scatter_add_(-1, tokens_C1, grad_chosen_C1)


def _add_outer(sum_VD: torch.Tensor, grad_CV: torch.Tensor, hidden_CD: torch.Tensor) -> None:
    """``sum += grad.T @ hidden``, added up in the sum's precision whatever the factors have."""
    if grad_CV.dtype == sum_VD.dtype:
        sum_VD.addmm_(grad_CV.T, hidden_CD)
    elif sum_VD.is_cuda:  # Tensor cores multiply 16-bit numbers into float32; a cast would cost them and a table.
        sum_VD += torch.mm(grad_CV.T, hidden_CD, out_dtype=sum_VD.dtype)
    else:
        sum_VD.addmm_(grad_CV.T.to(sum_VD.dtype), hidden_CD.to(sum_VD.dtype))


def _any_scores(
    policy: PolicyModel,
    hidden_XD: torch.Tensor,
    tokens_X: torch.Tensor,
    temperature: float,
    chunk: int,
    with_entropy: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """By plain autograd, whatever the policy's ``logits`` does; with more than one chunk, by checkpoints."""

    def scores(hidden: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = policy.logits(hidden)
        logits = (logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits) / temperature
        logprobs = logits.log_softmax(-1)
        chosen = logprobs.gather(-1, tokens[:, None]).squeeze(-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1) if with_entropy else torch.zeros_like(chosen).detach()
        return chosen, entropy

    if len(tokens_X) <= chunk:
        return scores(hidden_XD, tokens_X)
    run: Callable[..., tuple[torch.Tensor, torch.Tensor]] = scores
    if torch.is_grad_enabled():
        run = lambda h, t: checkpoint(scores, h, t, use_reentrant=False)  # noqa: E731
    parts = [run(h, t) for h, t in zip(hidden_XD.split(chunk), tokens_X.split(chunk), strict=True)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
