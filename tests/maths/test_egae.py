"""EGAE and GAE: worked numbers, the NumPy sums as oracle, and identities."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from tests.support.ragged_cases import UNIT, Ragged, flat, make, ragged
from tppo.maths.advantages import egae, gae
from tppo.maths.values import discounted_returns

V = [0.2, 0.4, 0.5, 0.7]
ONE = torch.tensor([0, 4])
few = settings(derandomize=True, deadline=None, max_examples=40)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


# (id, rewards, finished, gamma, lam, boundary, cut, A). Each line of arithmetic is A_t = delta_t + gamma lam A_{t+1}.
GOLDEN = [
    # delta = .2, .1, .2, 1 - .7 = .3;  .2 + .95*.3 = .485;  .1 + .95*.485 = .56075;  .2 + .95*.56075 = .7327125
    ("finished", [0, 0, 0, 1], True, 1.0, 0.95, "repeat", None, [0.7327125, 0.56075, 0.485, 0.3]),
    # lambda = 1: A_t = 1 - V_t
    ("finished-lam1", [0, 0, 0, 1], True, 1.0, 1.0, "repeat", None, [0.8, 0.6, 0.5, 0.3]),
    # last delta = .7 - .7 = 0;  .2;  .1 + .95*.2 = .29;  .2 + .95*.29 = .4755
    ("cut", [0, 0, 0, 0], False, 1.0, 0.95, "repeat", None, [0.4755, 0.29, 0.2, 0.0]),
    # delta = .16, .05, .13, -.1*.7 = -.07;  .13 - .855*.07 = .07015;  .05 + .855*.07015 = .1099783;
    # .16 + .855*.1099783 = .2540314
    ("cut-gamma", [0, 0, 0, 0], False, 0.9, 0.95, "repeat", None, [0.2540314, 0.1099783, 0.07015, -0.07]),
    # last delta = .3;  .13 + .855*.3 = .3865;  .05 + .855*.3865 = .3804575;  .16 + .855*.3804575 = .4852912
    ("finished-gamma", [0, 0, 0, 1], True, 0.9, 0.95, "repeat", None, [0.4852912, 0.3804575, 0.3865, 0.3]),
    # last delta = -.7;  .2 - .665 = -.465;  .1 - .44175 = -.34175;  .2 - .3246625 = -.1246625
    ("cut-terminal", [0, 0, 0, 0], False, 1.0, 0.95, "terminal", None, [-0.1246625, -0.34175, -0.465, -0.7]),
    # last delta = .8 - .7 = .1;  .2 + .095 = .295;  .1 + .28025 = .38025;  .2 + .3612375 = .5612375
    ("cut-critic", [0, 0, 0, 0], False, 1.0, 0.95, "critic", 0.8, [0.5612375, 0.38025, 0.295, 0.1]),
]


@pytest.mark.parametrize(
    ("rewards", "finished", "gamma", "lam", "boundary", "cut", "expected"),
    [g[1:] for g in GOLDEN],
    ids=[g[0] for g in GOLDEN],
)
def test_worked_numbers(rewards, finished, gamma, lam, boundary, cut, expected, device) -> None:
    by_hand = reference.egae(rewards, V, finished, gamma=gamma, lam=lam, boundary=boundary, cut=cut)
    np.testing.assert_allclose(by_hand, expected, atol=6e-8, rtol=0)
    cut_S = None if cut is None else flat([cut], device=device)
    found = egae(
        flat(rewards, device=device), flat(V, device=device), ONE.to(device), torch.tensor([finished], device=device),
        gamma=gamma, lam=lam, boundary=boundary, cut_values_S=cut_S,
    )  # fmt: skip
    np.testing.assert_allclose(found.cpu().numpy(), expected, atol=6e-8, rtol=0)


def test_two_windows_of_one_response() -> None:
    # Window 1 was cut: 'cut' above. Window 2: V = [.6, .8], r = [0, 1], done: A_1 = 1 - .8; A_0 = .2 + .95 * .2 = .39.
    found = egae(flat([0, 1]), flat([0.6, 0.8]), torch.tensor([0, 2]), torch.tensor([True]), gamma=1.0, lam=0.95)
    np.testing.assert_allclose(found, [0.39, 0.2], atol=1e-12)
    # The critic's targets run over both windows.
    targets = discounted_returns(flat([0, 0, 0, 0, 0, 1]), torch.tensor([0, 6]), gamma=1.0)
    assert targets.tolist() == [1.0] * 6


def faulty_egae(rewards: list[float], finished: int, gamma: float, lam: float) -> list[float]:
    """The authors' port: an int64 flag whose bitwise NOT is taken for a condition; the last reward of a cut dropped."""
    last = rewards[3] * finished - V[3] * finished + ~finished * (gamma - 1) * V[3]
    delta = [rewards[t] + gamma * V[t + 1] - V[t] for t in range(3)] + [last]
    return reference.discounted_sums(delta, gamma * lam).tolist()


@pytest.mark.parametrize(
    ("rewards", "finished", "wrong"),
    [
        # ~0 = -1: last delta = -(gamma-1) V = +.07
        ([0, 0, 0, 0], 0, [0.3415351, 0.2123217, 0.18985, 0.07]),
        # ~1 = -2: last delta = .3 + 2 * .1 * .7 = .44
        ([0, 0, 0, 1], 1, [0.5727949, 0.482801, 0.5062, 0.44]),
    ],
)
def test_numbers_of_the_bitwise_not_bug_are_not_ours(rewards, finished, wrong) -> None:
    np.testing.assert_allclose(faulty_egae(rewards, finished, 0.9, 0.95), wrong, atol=6e-8)
    ours = egae(flat(rewards), flat(V), ONE, torch.tensor([bool(finished)]), gamma=0.9, lam=0.95)
    assert (ours - flat(wrong)).abs().min() > 0.08
    # gamma = 1 hides the bug: there the port agrees.
    ours = egae(flat(rewards), flat(V), ONE, torch.tensor([bool(finished)]), gamma=1.0, lam=0.95)
    np.testing.assert_allclose(ours, faulty_egae(rewards, finished, 1.0, 0.95), atol=1e-12)


@few
@given(ragged(), UNIT, UNIT, st.sampled_from(["repeat", "critic", "terminal"]), st.booleans())
def test_agrees_with_the_sums_on_ragged_batches(device, case: Ragged, gamma, lam, boundary, per_response) -> None:
    lams = case.lam if per_response else np.full(len(case.lengths), lam)
    expected = [
        reference.egae(r, v, f, gamma=gamma, lam=x, boundary=boundary, cut=c)
        for r, v, f, c, x in zip(
            case.rows(case.rewards), case.rows(case.values), case.finished, case.cut, lams, strict=True
        )
    ]
    # What a finished response has behind its end must not be read.
    cut = np.where(case.finished, np.nan, case.cut)
    found = egae(
        flat(case.rewards, device=device), flat(case.values, device=device), case.offsets.to(device),
        torch.tensor(case.finished, device=device), gamma=gamma,
        lam=flat(lams, device=device) if per_response else lam, boundary=boundary,
        cut_values_S=flat(cut, device=device),
    )  # fmt: skip
    np.testing.assert_allclose(found.cpu().numpy(), np.concatenate(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("per_response", [False, True])
def test_float32_error_stays_within_24_roundings(device, per_response: bool) -> None:
    # 4 roundings for delta, at most 10 additions and 10 rounded weights on the way, each relative to the terms' size.
    case = make([0, 600, 1, 511, 0, 512, 513, 37], seed=1, dtype=np.float32)
    lams = [0.999, 0.95, 1.0, 0.998, 0.0, 0.5, 1.0, 0.99] if per_response else [0.998] * 8
    found = egae(
        flat(case.rewards, torch.float32, device), flat(case.values, torch.float32, device), case.offsets.to(device),
        torch.tensor(case.finished, device=device), gamma=1.0,
        lam=torch.tensor(lams, dtype=torch.float64, device=device) if per_response else 0.998,
    )  # fmt: skip
    assert found.dtype == torch.float32
    rows = case.rows(found.cpu().double().numpy())
    for a, r, v, f, x in zip(rows, case.rows(case.rewards), case.rows(case.values), case.finished, lams, strict=True):
        if len(r) == 0:
            continue
        size = np.abs(r) + np.abs(v) + np.abs(np.append(v[1:], v[-1]))
        bound = 24 * 2.0**-24 * reference.discounted_sums(size, x)
        assert (np.abs(a - reference.egae(r, v, f, gamma=1.0, lam=x)) <= bound).all()


@pytest.mark.parametrize("lam", [0.9999, torch.tensor([0.9999], dtype=torch.float64)])
def test_float32_weights_do_not_lose_digits_over_long_responses(device, lam) -> None:
    # Reward 1 everywhere and V = 0: A_0 = (1 - c^n) / (1 - c). Powers of a lambda rounded to float32 would miss it by
    # about n/2 roundings; 24 are allowed.
    n, c = 5000, 0.9999
    finished = torch.tensor([True], device=device)
    r, v = torch.ones(n, device=device), torch.zeros(n, device=device)
    lam = lam.to(device) if isinstance(lam, torch.Tensor) else lam
    found = egae(r, v, torch.tensor([0, n], device=device), finished, gamma=1.0, lam=lam)
    expected = (1 - c ** torch.arange(n, 0, -1).double()) / (1 - c)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=24 * 2.0**-24, atol=0)


@few
@given(ragged(), UNIT, UNIT)
def test_finished_responses_give_gae(case: Ragged, gamma, lam) -> None:
    finished = torch.ones(len(case.lengths), dtype=torch.bool)
    expected = [
        reference.gae(r, v, gamma=gamma, lam=lam)
        for r, v in zip(case.rows(case.rewards), case.rows(case.values), strict=True)
    ]
    r, v = flat(case.rewards), flat(case.values)
    plain = gae(r, v, case.offsets, gamma=gamma, lam=lam)
    np.testing.assert_allclose(plain, np.concatenate(expected), rtol=1e-12, atol=1e-12)
    assert torch.equal(egae(r, v, case.offsets, finished, gamma=gamma, lam=lam), plain)


@few
@given(ragged())
def test_lambda_1_gamma_1_finished_is_return_minus_value(case: Ragged) -> None:
    r, v = flat(case.rewards), flat(case.values)
    found = gae(r, v, case.offsets, gamma=1.0, lam=1.0)
    torch.testing.assert_close(found, discounted_returns(r, case.offsets, gamma=1.0) - v, rtol=1e-12, atol=1e-12)


@few
@given(ragged(), UNIT)
def test_cut_without_reward_follows_the_closed_form(case: Ragged, lam) -> None:
    r, v = torch.zeros(len(case.values), dtype=torch.float64), flat(case.values)
    finished = torch.zeros(len(case.lengths), dtype=torch.bool)
    found = egae(r, v, case.offsets, finished, gamma=1.0, lam=lam)
    rows = [reference.cut_window_closed_form(x, lam=lam) for x in case.rows(case.values)]
    np.testing.assert_allclose(found, np.concatenate(rows), rtol=1e-12, atol=1e-12)
    assert [float(x[-1]) for x in case.rows(found.numpy()) if len(x)] == [0.0 for n in case.lengths if n]


@few
@given(ragged(), UNIT, st.floats(-5, 5))
def test_constant_critic_gives_cut_windows_no_advantage(case: Ragged, lam, level) -> None:
    r, v = torch.zeros(len(case.values), dtype=torch.float64), torch.full((len(case.values),), level).double()
    finished = torch.zeros(len(case.lengths), dtype=torch.bool)
    assert not egae(r, v, case.offsets, finished, gamma=1.0, lam=lam).any()


@few
@given(ragged(), UNIT, UNIT)
def test_repeat_and_critic_differ_by_a_term_that_decays_from_the_cut(case: Ragged, gamma, lam) -> None:
    arguments = (flat(case.rewards), flat(case.values), case.offsets, torch.tensor(case.finished))
    repeat = egae(*arguments, gamma=gamma, lam=lam)
    critic = egae(*arguments, gamma=gamma, lam=lam, boundary="critic", cut_values_S=flat(case.cut))
    expected = np.zeros(len(case.values))
    for i, (v, f) in enumerate(zip(case.rows(case.values), case.finished, strict=True)):
        for t in range(len(v)):
            if not f:  # delta_{l-1} differs by gamma (V(s_{l-1}) - V(s_l)) and reaches t over n = l-1-t steps.
                n = len(v) - 1 - t
                expected[int(case.offsets[i]) + t] = (gamma * lam) ** n * gamma * (v[-1] - case.cut[i])
    np.testing.assert_allclose(repeat - critic, expected, rtol=1e-12, atol=1e-12)


@few
@given(ragged(), UNIT, UNIT)
def test_windows_chain_when_the_cut_bootstraps_with_the_next_windows_advantage(case: Ragged, gamma, lam) -> None:
    # Cutting anywhere and adding (gamma lam)^(n+1) A of the next window restores the uncut advantage.
    for r, v in zip(case.rows(case.rewards), case.rows(case.values), strict=True):
        if len(r) < 2:
            continue
        k = len(r) // 2
        whole = gae(flat(r), flat(v), torch.tensor([0, len(r)]), gamma=gamma, lam=lam)
        parts = egae(
            flat(r), flat(v), torch.tensor([0, k, len(r)]), torch.tensor([False, True]),
            gamma=gamma, lam=lam, boundary="critic", cut_values_S=flat([v[k], 0.0]),
        )  # fmt: skip
        carry = (gamma * lam) ** torch.arange(k, 0, -1).double() * parts[k]
        torch.testing.assert_close(parts[:k] + carry, whole[:k], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(parts[k:], whole[k:], rtol=1e-12, atol=1e-12)


def test_a_response_does_not_depend_on_its_neighbours(device) -> None:
    case = make([9, 0, 64, 1, 33], seed=3)
    r, v, offsets = flat(case.rewards, device=device), flat(case.values, device=device), case.offsets
    finished, lam = torch.tensor(case.finished, device=device), flat(case.lam, device=device)
    together = egae(r, v, offsets.to(device), finished, gamma=0.99, lam=lam)
    for i, n in enumerate(case.lengths):
        at = slice(int(offsets[i]), int(offsets[i + 1]))
        alone = egae(
            r[at], v[at], torch.tensor([0, n], device=device), finished[i : i + 1], gamma=0.99, lam=lam[i : i + 1]
        )
        torch.testing.assert_close(together[at], alone, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("lam", [0.9, torch.full((4,), 0.9)])
def test_nan_stays_in_its_response(lam) -> None:
    case = make([5, 6, 0, 7], seed=4)
    values = flat(case.values)
    values[5:11] = torch.nan
    arguments = (case.offsets, torch.tensor([False, True, False, False]))
    found = egae(flat(case.rewards), values, *arguments, gamma=0.9, lam=lam)
    clean = egae(flat(case.rewards), flat(case.values), *arguments, gamma=0.9, lam=lam)
    assert found[5:11].isnan().all()
    assert torch.equal(found[:5], clean[:5])
    assert torch.equal(found[11:], clean[11:])


def test_edge_lengths() -> None:
    none = torch.zeros(0)
    for offsets in ([0], [0, 0], [0, 0, 0]):
        flags = torch.zeros(len(offsets) - 1, dtype=torch.bool)
        assert egae(none, none, torch.tensor(offsets), flags, gamma=1.0, lam=torch.ones(len(flags))).shape == (0,)
        assert gae(none, none, torch.tensor(offsets), gamma=1.0, lam=0.5).shape == (0,)
    # One token, finished: A = r - V = 1 - .25. Cut: A = r + (gamma - 1) V = 1 - .1 * .25; the reward is not dropped.
    one = (torch.ones(2), torch.full((2,), 0.25), torch.tensor([0, 1, 1, 2]), torch.tensor([True, False, False]))
    assert egae(*one, gamma=0.9, lam=0.95).tolist() == pytest.approx([0.75, 0.975])


def test_advantages_are_data() -> None:
    r, v = torch.ones(4), torch.ones(4, requires_grad=True)
    found = egae(r, v, ONE, torch.tensor([False]), gamma=1.0, lam=0.95)
    assert not found.requires_grad
    assert r.tolist() == [1.0] * 4
    assert v.tolist() == [1.0] * 4
