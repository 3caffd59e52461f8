"""What the algorithms' own terms do to a token away from the centre: the weight of its gradient, by autograd.

Every token loss has -d loss / d log pi = omega(rho, sign A) A, and omega is the surrogate.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sim import exact
from sim.mdp.table import Floats
from tests.support.token_trees import CHAIN3_STOP, Listed, chain3, cosine, logits_of
from tppo.algorithms.base import Algorithm, Rollout, Term
from tppo.algorithms.cispo import CISPO
from tppo.algorithms.dapo import DAPO
from tppo.algorithms.dppo import DPPO
from tppo.algorithms.em import EM, EMFilter
from tppo.algorithms.fisft import FISFT
from tppo.algorithms.gspo import GSPO
from tppo.algorithms.kimi import Kimi
from tppo.algorithms.opo import OPO
from tppo.algorithms.parts.terms import clipped
from tppo.algorithms.parts.weighted import corrected, masked_off_policy, weighted
from tppo.algorithms.rloo import RLOOSequence
from tppo.algorithms.sapo import SAPO
from tppo.algorithms.topr import TOPR
from tppo.errors import ConfigError
from tppo.fit.terms import Columns, Loss, Now, pick
from tppo.maths.aggregate import aggregate_sum
from tppo.maths.weights import Weight

ROLLOUT = Rollout(slots=4, group_size=4, max_response_tokens=8)
RATIOS = [0.3, 0.6, 0.75, 0.9, 1, 1.1, 1.5, 3, 6.5]
OPEN = Weight(0, math.inf)


def term_of(algorithm: Algorithm) -> Term:
    return algorithm.parts(ROLLOUT).terms[0]


def run(term: Term, now: Tensor, centre: Tensor, advantages: Tensor, offsets: Tensor, **other: Tensor) -> Loss:
    """One term, on tokens that all train."""
    columns: Columns = {"old": centre, "behaviour": centre, "train": torch.ones(len(now), dtype=torch.bool)}
    columns |= {"advantages": advantages, **other}
    return term.loss(Now(now, torch.zeros_like(now), offsets), pick(columns, term.reads))


def omega(term: Term, ratios: list[float], advantage: float, *, mu: float = 0.1) -> list[float]:
    """Of tokens that are responses of one token each, sampled with probability mu."""
    centre = torch.full((len(ratios),), math.log(mu), dtype=torch.float64)
    now = (centre + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    loss = run(term, now, centre, torch.full_like(centre, advantage), torch.arange(len(ratios) + 1))
    [slope] = torch.autograd.grad(loss.loss_X.sum(), now)
    return (-slope / advantage).tolist()


PLAIN = [1.0] * 9
TABLE = [
    ("PPO .2/.28, A > 0", term_of(DAPO()), 1, [0.3, 0.6, 0.75, 0.9, 1, 1.1, 0, 0, 0]),
    ("PPO c = 10, A < 0", term_of(DAPO()), -1, [0, 0, 0, 0.9, 1, 1.1, 1.5, 3, 6.5]),
    ("two-sided, delta 4", clipped(clip_low=0.2, clip_high=0.2, dual_clip=4), -1, [0, 0, 0, 0.9, 1, 1.1, 1.5, 3, 0]),
    ("CISPO, cap 1.2", term_of(CISPO()), None, [0.3, 0.6, 0.75, 0.9, 1, 1.1, 1.2, 1.2, 1.2]),
    ("CISPO, cap 5", term_of(CISPO(cap=5)), None, [0.3, 0.6, 0.75, 0.9, 1, 1.1, 1.5, 3, 5]),
    ("SAPO, A > 0", term_of(SAPO()), 1, [0.2661, 0.5766, 0.7384, 0.8978, 1, 1.0973, 1.41, 1.2599, 0.1054]),
    ("SAPO, A < 0", term_of(SAPO()), -1, [0.2629, 0.5743, 0.7372, 0.8975, 1, 1.097, 1.4012, 1.1663, 0.0802]),
    ("IcePop's range", weighted(Weight(0.5, 5, outside="zero")), None, [0, 0.6, 0.75, 0.9, 1, 1.1, 1.5, 3, 0]),
    ("SAO's range", weighted(Weight(0.7, 6, outside="zero")), None, [0, 0, 0.75, 0.9, 1, 1.1, 1.5, 3, 0]),
    ("TOPR, A < 0", term_of(TOPR()), -1, [0.3, 0.6, 0.75, 0.9, 1, 1, 1, 1, 1]),
    ("TOPR, A > 0", term_of(TOPR()), 1, PLAIN),
    ("RAFT", term_of(EMFilter()), None, PLAIN),
    ("EM", term_of(EM()), None, PLAIN),
    ("OPO", term_of(OPO()), None, PLAIN),
    ("F-ISFT", term_of(FISFT()), None, PLAIN),
]


@pytest.mark.parametrize(("name", "term", "sign", "expected"), TABLE, ids=[row[0] for row in TABLE])
def test_weight_of_the_gradient(name: str, term: Term, sign: int | None, expected: list[float]) -> None:
    for advantage in (0.7, -2.5):  # the size of the advantage does not matter
        if sign is None or sign * advantage > 0:
            assert omega(term, RATIOS, advantage) == pytest.approx(expected, abs=5e-5), advantage


def test_trust_in_probabilities() -> None:
    """DPPO: a likely token is held within .15, a rare one by the cap alone, whatever its sign."""
    term = term_of(DPPO())
    assert omega(term, RATIOS[:6], -1, mu=0.9) == pytest.approx([0, 0, 0, 0.9, 1, 1.1], abs=1e-12)
    for advantage in (1, -1):
        assert omega(term, RATIOS, advantage, mu=0.01) == pytest.approx(RATIOS, abs=1e-12)
    assert omega(term, [30.0], 1, mu=0.001) == pytest.approx([20.0])


def test_the_dual_clip_ends_at_its_bound() -> None:
    assert omega(term_of(DAPO()), [9.9, 10.1], -1, mu=0.01) == pytest.approx([9.9, 0.0])


def test_kimis_square_adds_where_the_others_weigh() -> None:
    """-d loss / d log pi = A - tau log rho."""
    ratios = torch.tensor(RATIOS, dtype=torch.float64)
    for advantage in (1.0, -0.5):
        expected = 1 - 0.1 * ratios.log() / advantage
        assert omega(term_of(Kimi(tau=0.1)), RATIOS, advantage) == pytest.approx(expected.tolist(), abs=1e-12)
    # Worked: A .5, tau .1, log-ratio .24 over two tokens: .476^2, over 2 tau.
    centre, now = torch.zeros(2, dtype=torch.float64), torch.tensor([0.2, 0.04], dtype=torch.float64)
    loss = run(term_of(Kimi(tau=0.1)), now, centre, torch.full_like(now, 0.5), torch.tensor([0, 2])).loss_X
    assert (0.2 * loss).tolist() == pytest.approx([0.476**2] * 2, abs=1e-15)


@pytest.mark.parametrize(("algorithm", "ratio"), [(GSPO(), 1.0618365), (RLOOSequence(), 1.2712492)])
def test_one_ratio_for_the_whole_response(algorithm: Algorithm, ratio: float) -> None:
    """Worked log-ratios; in float32 all tokens have the same one to the last bit, whatever their log-probabilities."""
    moved = torch.tensor([0.1, -0.2, 0.3, 0.04, 3e-4, 3e-4], dtype=torch.float32)
    centre = torch.tensor([-0.001, -17.3, -2.9, -250.0, -0.7, -91.1], dtype=torch.float32)
    loss = run(term_of(algorithm), centre + moved, centre, torch.ones(6), torch.tensor([0, 4, 6]))
    assert loss.means["ratio_mean"][0].item() == pytest.approx(ratio, rel=1e-5)
    for row in (slice(0, 4), slice(4, 6)):
        for column in (loss.loss_X, *loss.means.values()):
            if column is not loss.means["policy_kl"]:
                assert len(set(column[row].tolist())) == 1


def test_gspo_clips_by_the_sum_over_the_response() -> None:
    """A response of n tokens leaves 3e-4 / 4e-4 once its whole log-ratio passes about +4e-4 n or -3e-4 n."""
    n = 1000
    for whole, advantage, clips in ((0.39, 1.0, False), (0.41, 1.0, True), (-0.29, -1.0, False), (-0.31, -1.0, True)):
        centre = torch.full((n,), -1.0, dtype=torch.float64)
        now = (centre + whole / n).requires_grad_()
        loss = run(term_of(GSPO()), now, centre, torch.full_like(centre, advantage), torch.tensor([0, n])).loss_X
        [slope] = torch.autograd.grad(loss.sum(), now)
        assert bool((slope == 0).all()) is clips


def random_tokens(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    now, old, behaviour, advantages = (torch.randn(7, generator=g, dtype=torch.float64) for _ in range(4))
    return now - 2, old - 2, behaviour - 2, advantages


def test_a_correction_multiplies_by_the_ratio_of_the_two_old_policies() -> None:
    now, old, behaviour, advantages = random_tokens()
    offsets, term = torch.tensor([0, 3, 7]), term_of(DAPO())
    plain = run(term, now, old, advantages, offsets).loss_X
    ratio = (old - behaviour).exp()
    for weight, expected in (
        (Weight(0, 2), ratio.clamp(max=2)),
        (Weight(0.5, 5, outside="zero"), torch.where((ratio >= 0.5) & (ratio <= 5), ratio, 0.0)),
        (OPEN, ratio),
    ):
        found = run(corrected(term, weight), now, old, advantages, offsets, behaviour=behaviour)
        torch.testing.assert_close(found.loss_X, plain * expected, rtol=1e-14, atol=0)
        torch.testing.assert_close(found.means["correction_mean"], expected, rtol=1e-14, atol=0)
    whole = torch.stack([(old - behaviour)[:3].mean(), (old - behaviour)[3:].mean()]).exp()
    narrow = Weight(0.999, float(whole.max()) + 1e-9, outside="zero", level="mean")
    found = run(corrected(term, narrow), now, old, advantages, offsets, behaviour=behaviour).loss_X
    kept = torch.repeat_interleave(torch.where(whole >= 0.999, whole, 0.0), torch.tensor([3, 4]))
    torch.testing.assert_close(found, plain * kept, rtol=1e-14, atol=0)


def test_a_correction_of_what_is_corrected_already_is_refused() -> None:
    for algorithm in (DPPO(), TOPR()):
        with pytest.raises(ConfigError, match=r"correction.*it would count twice"):
            corrected(term_of(algorithm), Weight(0, 2))


def test_the_off_policy_mask_takes_the_loss_and_keeps_the_count() -> None:
    centre = torch.full((4,), -1.0, dtype=torch.float64)
    now = (centre + torch.tensor([-0.7, -0.7, 0.1, -0.7])).requires_grad_()
    advantages = torch.tensor([-1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    offsets, term = torch.tensor([0, 2, 3, 4]), term_of(CISPO())
    loss = run(masked_off_policy(term, 0.5), now, centre, advantages, offsets)
    plain = run(term, now, centre, advantages, offsets).loss_X
    assert torch.equal(loss.loss_X, torch.where(torch.tensor([False, False, True, True]), plain, 0.0))
    assert loss.means["masked_fraction"].tolist() == [1, 1, 0, 0]
    [slope] = torch.autograd.grad(loss.loss_X.sum(), now)
    assert slope[:2].tolist() == [0, 0]


WRAPPED = {
    "clipped": clipped(clip_low=0.2, clip_high=0.2),
    "mean level": term_of(GSPO()),
    "weight": term_of(CISPO()),
    "product": term_of(TOPR()),
    "trust": term_of(DPPO()),
    "gate": term_of(SAPO()),
    "square": term_of(Kimi()),
    "corrected": corrected(term_of(CISPO()), Weight(0, 2, level="mean")),
    "masked": masked_off_policy(term_of(SAPO()), 0.5),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_a_dropped_token_never_reaches_a_gradient(name: str, junk: float) -> None:
    """Whatever any column holds there: neither through its own loss nor through the ratio of its response."""
    term, offsets = WRAPPED[name], torch.tensor([0, 3, 7])
    now, old, behaviour, advantages = random_tokens(1)
    keep = torch.tensor([True, False, True, True, True, False, True])

    def slope(spoil: str | None) -> Tensor:
        columns: Columns = {"old": old, "behaviour": behaviour, "advantages": advantages, "train": keep}
        if spoil is not None:
            columns[spoil] = torch.where(keep, columns[spoil], junk)
        x = now.clone().requires_grad_()
        loss = term.loss(Now(x, torch.zeros_like(x), offsets), pick(columns, term.reads)).loss_X
        [found] = torch.autograd.grad(aggregate_sum(loss, keep, offsets, mode="seq-mean-token-mean"), x)
        return found

    clean = slope(None)
    assert clean.isfinite().all()
    assert clean[~keep].tolist() == [0.0, 0.0]
    for spoil in ("old", "behaviour", "advantages"):
        assert torch.equal(slope(spoil), clean), spoil


def off_centre(term: Term, stop: tuple[float, ...], *, before: bool = False) -> Floats:
    """-grad of the expected loss with n = 1 and A = R - .29 at another policy than the one that sampled, on the chain.

    before: the policy before the update is this one; else it is the one that sampled.
    """
    table = Listed(chain3(), logits_of(CHAIN3_STOP))
    logits = torch.tensor(logits_of(stop), requires_grad=True)
    now, then = torch.log_softmax(logits, -1), torch.log_softmax(torch.tensor(table.logits), -1)
    losses = []
    for p, steps, outcome in table.answers:
        s, a = torch.tensor(steps).T
        advantages = torch.full((len(s),), outcome - 0.29, dtype=torch.float64)
        old = now[s, a].detach() if before else then[s, a]
        found = run(term, now[s, a], old, advantages, torch.tensor([0, len(s)]), behaviour=then[s, a])
        losses.append(p * found.loss_X.sum())
    [slope] = torch.autograd.grad(torch.stack(losses).sum(), logits)
    return -slope.numpy()


FAR = (0.25, 0.7, 0.8)  # p = .705, sampled at (.5, .4, .3) with p = .29
OFF_CENTRE = [
    ("importance sampling of responses", weighted(Weight(0, math.inf, level="product")), 1.0),
    ("TOPR, token", weighted(Weight(1, 1), wrong=Weight(0, 1)), 0.996),
    ("TOPR", term_of(TOPR()), 0.994),
    ("no weight", term_of(EMFilter()), 0.978),
    ("CISPO 1.2", term_of(CISPO()), 0.957),
    ("SAPO", term_of(SAPO()), 0.930),
    ("IcePop's range", weighted(Weight(0.5, 5, outside="zero")), 0.917),
    ("importance sampling of tokens", weighted(OPEN), 0.909),
    ("CISPO 5", term_of(CISPO(cap=5)), 0.909),
    ("SAO's range", weighted(Weight(0.7, 6, outside="zero")), 0.733),
    ("GSPO .2/.28", term_of(GSPO(clip_low=0.2, clip_high=0.28)), 0.208),
    ("PPO", term_of(DAPO(dual_clip=None)), -0.810),
    ("DPPO", term_of(DPPO()), -0.810),
]


@pytest.mark.parametrize(("name", "term", "expected"), OFF_CENTRE, ids=[row[0] for row in OFF_CENTRE])
def test_direction_away_from_the_centre(name: str, term: Term, expected: float) -> None:
    """Beyond the trust region PPO stops what moved the right way and keeps what moved the wrong way."""
    true = exact.softmax_policy_gradient(chain3(), logits_of(FAR))
    assert cosine(off_centre(term, FAR), true) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(
    ("weight", "direction", "size"),
    [(Weight(1, 1), 1.0, 0.836), (OPEN, 0.9925, 0.874), (Weight(0, math.inf, level="product"), 1.0, 1.0)],
    ids=["none", "token", "whole response"],
)
def test_a_token_correction_can_turn_the_direction_away(weight: Weight, direction: float, size: float) -> None:
    """AReaL's factor repairs the choice of a token, not how its state was reached nor what follows."""
    stop = (0.4, 0.5, 0.45)
    true = exact.softmax_policy_gradient(chain3(), logits_of(stop))
    # At u = 1 the clipped loss has the gradient of no ratio at all.
    update = off_centre(corrected(clipped(clip_low=0.2, clip_high=0.2), weight), stop, before=True)
    assert cosine(update, true) == pytest.approx(direction, abs=5e-5)
    assert np.linalg.norm(update) / np.linalg.norm(true) == pytest.approx(size, abs=5e-4)


def test_decoupled_ppo_worked() -> None:
    """AReaL (arXiv 2505.24298): (pi, prox, behaviour, A) to objectives 1.5, 1.5 where the clip binds, and -1."""
    term = corrected(clipped(clip_low=0.2, clip_high=0.2), OPEN)
    now, old, behaviour = torch.tensor([[0.3, 0.35, 0.15], [0.25] * 3, [0.2] * 3], dtype=torch.float64).log()
    advantages = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    loss = run(term, now, old, advantages, torch.tensor([0, 1, 2, 3]), behaviour=behaviour).loss_X
    assert (-loss).tolist() == pytest.approx([1.5, 1.5, -1.0], abs=1e-12)
