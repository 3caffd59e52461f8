"""Baselines and scales of outcomes beyond `tppo.maths.groups`: by length, batch, success rate, or a reference.

Shapes as there: `R_S` outcomes, `L_S` lengths in tokens, `group_S` int64 from 0 without gaps. No gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tppo.maths.groups import group_mean, group_sums
from tppo.maths.ragged import check_like


@torch.no_grad()
def length_baseline_advantage(R_S: Tensor, L_S: Tensor, group_S: Tensor, *, own: bool) -> Tensor:
    """Outcome against the group's length-weighted mean (OPO, arXiv 2505.23585).

        A_i = R_i - sum_j L_j R_j / sum_j L_j        over the group;  without ``own`` over the others only

    The constant baseline of least variance is E[|s|^2 R] / E[|s|^2], s the score of the response. With scores of tokens
    that are orthogonal and equally long |s|^2 is proportional to the length. The paper's form has the own response in
    the sum, which turns the expected direction; without it the estimator is unbiased. A = 0 exactly for equal outcomes
    and for a response that is alone (verl: A = R). Where all lengths in the sum are 0 they weigh the same.

    Raises:
        ValueError: on a wrong rank, shape or dtype, or a group number outside 0..S-1.

    >>> R, L = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([10, 20, 30, 40])
    >>> length_baseline_advantage(R, L, torch.zeros(4, dtype=torch.int64), own=True)
    tensor([ 0.9000, -0.1000, -0.1000, -0.1000])
    >>> length_baseline_advantage(R, L, torch.zeros(4, dtype=torch.int64), own=False)
    tensor([ 1.0000, -0.1250, -0.1429, -0.1667])
    """
    deviation_S = R_S - group_mean(R_S, group_S)  # Equal outcomes give exactly 0, and so does what follows.
    check_like("L_S", L_S, R_S, what="response")

    def summed(weight_S: Tensor) -> tuple[Tensor, Tensor]:
        weighted_S, total_S = group_sums(weight_S * deviation_S, group_S), group_sums(weight_S, group_S)
        return (weighted_S, total_S) if own else (weighted_S - weight_S * deviation_S, total_S - weight_S)

    by_length, alike = summed(L_S.to(R_S.dtype)), summed(torch.ones_like(R_S))
    weighted_S, total_S = (torch.where(by_length[1] > 0, x, y) for x, y in zip(by_length, alike, strict=True))
    return deviation_S - weighted_S / total_S.clamp(min=1)


@torch.no_grad()
def batch_scaled(A_S: Tensor, *, of_S: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """Divided by one standard deviation for the whole batch, A / (std + eps): one unit for every prompt.

    std from the unbiased variance about the batch's mean, which is not subtracted; where it is 0 nothing is divided.

    Args:
        A_S: advantages, any baseline subtracted.
        of_S: what the standard deviation is taken of: the outcomes (TRL, "batch"); by default the advantages themselves
            (ScaleRL, arXiv 2510.13786).
        eps: above 0; added to the standard deviation.

    Raises:
        ValueError: on a shape mismatch or an eps that is not above 0.

    >>> R, A = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0]), torch.tensor([0.75, -0.25, -0.25, -0.25, 0, 0, 0, 0])
    >>> batch_scaled(A, of_S=R)[:2], batch_scaled(A)[:2]
    (tensor([ 2.1213, -0.7071]), tensor([ 2.2913, -0.7638]))
    """
    x_S = A_S if of_S is None else of_S
    check_like("of_S", x_S, A_S, what="response")
    if not eps > 0:
        raise ValueError(f"eps: found {eps}, expected a number above 0")
    if not len(A_S):
        return A_S
    std = ((x_S - x_S.mean()).square().sum() / max(len(x_S) - 1, 1)).sqrt()
    return A_S / torch.where(std == 0, 1.0, std + eps)


@torch.no_grad()
def success_scaled_advantage(R_S: Tensor, group_S: Tensor, *, all_wrong: float = 0.0) -> Tensor:
    """Deviation in units of the group's success rate (MaxRL, arXiv 2602.02710).

        A_i = (R_i - mean_i) / mean_i,   ``all_wrong`` where the mean is 0

    For outcomes 0 and 1 the expected update ascends log p truncated at order G - 1; with all_wrong = -1 at order G.

    Raises:
        ValueError: as `tppo.maths.groups.group_mean`, and for a negative outcome.

    >>> R = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    >>> success_scaled_advantage(R, torch.tensor([0, 0, 0, 0, 1, 1]))
    tensor([ 3., -1., -1., -1.,  0.,  0.])
    """
    mean_S = group_mean(R_S, group_S)
    _check_positive(R_S)
    return torch.where(mean_S == 0, all_wrong, (R_S - mean_S) / mean_S)


@torch.no_grad()
def posterior_weights(R_S: Tensor, group_S: Tensor) -> Tensor:
    """Weight of each response in the E-step of an EM policy gradient (arXiv 2504.18587), times the group's size.

        w_i = G R_i / sum_j R_j,   0 in a group without reward

    Raises:
        ValueError: as `success_scaled_advantage`.

    >>> posterior_weights(torch.tensor([1.0, 0.0, 3.0, 0.0]), torch.zeros(4, dtype=torch.int64))
    tensor([1., 0., 3., 0.])
    """
    mean_S = group_mean(R_S, group_S)
    _check_positive(R_S)
    return torch.where(mean_S == 0, 0.0, R_S / mean_S)


@torch.no_grad()
def reference_margin(R_S: Tensor, reference_S: Tensor, *, low: float, high: float) -> Tensor:
    """clip(R_i - R_ref_i, -low, high): how much better than the reference's answer (AAPO, arXiv 2505.14264).

    It is added to a group advantage, and is not 0 where all members of a group agree.

    Raises:
        ValueError: on a shape mismatch or a bound below 0.

    >>> reference_margin(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), low=0.2, high=0.28)
    tensor([ 0.2800, -0.2000,  0.0000])
    """
    check_like("reference_S", reference_S, R_S, what="response")
    for name, bound in (("low", low), ("high", high)):
        if not bound >= 0:
            raise ValueError(f"{name}: found {bound}, expected 0 or more")
    return (R_S - reference_S).clamp(-low, high)


@torch.no_grad()
def energy_advantage(G_N: Tensor, energy_N: Tensor, position_N: Tensor, group_N: Tensor) -> Tensor:
    """Return against the group's best baseline of each position (OTB, arXiv 2602.07078), one advantage a token.

        W_t = sum_{j <= t} e_j,    B_t = sum_i G_i,t W_i,t / sum_i W_i,t    over members that still have a token t
        A_i,t = G_i,t - B_t;       B_t = 0 where only one is left

    e_j = 1 - 2 pi_j + sum_a pi_a^2 is the squared length of the score of token j in its logits: on a prefix tree W at
    the last token is the squared length of the response's score.

    Args:
        G_N: return from each token on.
        energy_N: W, accumulated from the first token of the response.
        position_N: int64, t.
        group_N: int64, the group of the token's response.

    Raises:
        ValueError: on a shape mismatch.
    """
    for name, x in (("energy_N", energy_N), ("position_N", position_N), ("group_N", group_N)):
        check_like(name, x, G_N, what="token")
    if not len(G_N):
        return G_N
    cell_N = group_N * (int(position_N.max()) + 1) + position_N
    _, cell_N = torch.unique(cell_N, return_inverse=True)
    weight_N, count_N = group_sums(energy_N, cell_N), group_sums(torch.ones_like(G_N), cell_N)
    base_N = group_sums(energy_N * G_N, cell_N) / weight_N
    return G_N - torch.where((count_N == 1) | (weight_N == 0), 0.0, base_N)


@torch.no_grad()
def prompt_mean_scale(L_S: Tensor, group_S: Tensor) -> Tensor:
    """What turns a mean over responses of sums over tokens into a mean over prompts (ScaleRL, arXiv 2510.13786).

        (1/P) sum_g (1/n_g) sum over the tokens of group g  =  (1/S) sum_i f_i (sum over its tokens)
        f_i = S / (P n_g)

    with P groups, n_g tokens in group g and S responses that have a token.

    >>> prompt_mean_scale(torch.tensor([1, 3, 2, 2]), torch.tensor([0, 0, 1, 1]))
    tensor([0.5000, 0.5000, 0.5000, 0.5000], dtype=torch.float64)
    """
    tokens_S = group_sums(L_S.double(), group_S)
    responses = (L_S > 0).sum()
    groups = int(group_S[tokens_S > 0].unique().numel())
    return torch.where(tokens_S > 0, responses / (max(groups, 1) * tokens_S.clamp(min=1)), 0.0)


def _check_positive(R_S: Tensor) -> None:
    if bool((R_S < 0).any()):
        raise ValueError(f"R_S: found {float(R_S.min()):g}, expected outcomes of 0 or more: they become probabilities")
