"""Monte-Carlo and lambda returns, and the length-adaptive lambda."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from tests.support.ragged_cases import UNIT, Ragged, flat, ragged
from tppo.maths.advantages import gae, length_adaptive_lambda
from tppo.maths.values import discounted_returns, explained_variance, lambda_returns

few = settings(derandomize=True, deadline=None, max_examples=40)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def test_returns_with_a_kl_penalty_in_the_reward(device) -> None:
    # r = -.01 * [.1, .2, .3] + [0, 0, 1] = [-.001, -.002, .997]; suffix sums .997, .995, .994.
    rewards = [-0.001, -0.002, 0.997]
    assert reference.discounted_returns(rewards, gamma=1.0) == pytest.approx([0.994, 0.995, 0.997], abs=1e-12)
    found = discounted_returns(flat(rewards, device=device), torch.tensor([0, 3], device=device), gamma=1.0)
    assert found.tolist() == pytest.approx([0.994, 0.995, 0.997], abs=1e-12)


def test_discount_is_applied() -> None:
    # The outcome 1 two tokens ahead is worth .9^2 = .81; a second response keeps its own reward.
    found = discounted_returns(flat([0, 0, 1, 2]), torch.tensor([0, 3, 3, 4]), gamma=0.9)
    assert found.tolist() == pytest.approx([0.81, 0.9, 1.0, 2.0], abs=1e-12)


@few
@given(ragged(), UNIT)
def test_returns_agree_with_the_sums(device, case: Ragged, gamma) -> None:
    expected = np.concatenate([reference.discounted_returns(r, gamma=gamma) for r in case.rows(case.rewards)])
    found = discounted_returns(flat(case.rewards, device=device), case.offsets.to(device), gamma=gamma)
    np.testing.assert_allclose(found.cpu(), expected, rtol=1e-12, atol=1e-12)


@few
@given(ragged(), UNIT, UNIT)
def test_lambda_returns_average_the_n_step_returns(device, case: Ragged, gamma, lam) -> None:
    rows = zip(case.rows(case.rewards), case.rows(case.values), strict=True)
    expected = np.concatenate([reference.lambda_returns(r, v, gamma=gamma, lam=lam) for r, v in rows])
    r, v = flat(case.rewards, device=device), flat(case.values, device=device)
    found = lambda_returns(r, v, case.offsets.to(device), gamma=gamma, lam=lam)
    np.testing.assert_allclose(found.cpu(), expected, rtol=1e-11, atol=1e-11)


@few
@given(ragged(), UNIT)
def test_ends_of_the_lambda_scale(case: Ragged, gamma) -> None:
    r, v = flat(case.rewards), flat(case.values)
    monte_carlo = discounted_returns(r, case.offsets, gamma=gamma)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(lambda_returns(r, v, case.offsets, gamma=gamma, lam=1.0), monte_carlo, **close)
    one_step = v + gae(r, v, case.offsets, gamma=gamma, lam=0.0)
    torch.testing.assert_close(lambda_returns(r, v, case.offsets, gamma=gamma, lam=0.0), one_step, **close)


def test_targets_are_data_and_leave_their_inputs_alone() -> None:
    r, v, offsets = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True), torch.tensor([0, 3])
    for targets in (discounted_returns(r, offsets, gamma=1.0), lambda_returns(r, v, offsets, gamma=1.0, lam=0.5)):
        assert not targets.requires_grad
    assert r.tolist() == [1.0] * 3
    assert v.tolist() == [1.0] * 3
    assert discounted_returns(torch.zeros(0), torch.tensor([0, 0]), gamma=1.0).shape == (0,)
    with pytest.raises(ValueError, match="gamma: found 2"):
        discounted_returns(torch.ones(3), offsets, gamma=2.0)
    with pytest.raises(ValueError, match="rewards_N: found rank 2"):
        discounted_returns(torch.ones(1, 3), offsets, gamma=1.0)


# 1 - 1/(.05 L): 401 -> 1 - 1/20.05 = .9501247; 8192 -> 1 - 1/409.6; 12288 -> 1 - 1/614.4; 24576 -> 1 - 1/1228.8.
FLOORED = {5: 0.95, 20: 0.95, 100: 0.95, 400: 0.95, 401: 0.9501247, 8192: 0.9975586, 12288: 0.9983724, 24576: 0.9991862}
TO_ZERO = {5: 0.0, 20: 0.0, 100: 0.8, 400: 0.95}


@pytest.mark.parametrize(("lam_min", "table"), [(0.95, FLOORED), (0.0, TO_ZERO)])
def test_length_adaptive_lambda_of_finished_responses(device, lam_min, table) -> None:
    common = {"alpha": 0.05, "lam_min": lam_min, "window": 8192, "max_length": 24576}
    lengths = torch.tensor(list(table), device=device)
    found = length_adaptive_lambda(lengths, torch.ones_like(lengths, dtype=torch.bool), **common)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(list(table.values()), abs=6e-8)
    assert [reference.length_adaptive_lambda(n, True, **common) for n in table] == pytest.approx(found.tolist(), abs=0)


def test_unfinished_responses_expect_half_a_window_more_up_to_the_cap() -> None:
    # W = 8192: first window L = 12288, .9983724; second 20480, 1 - 1/1024; with 22528 so far the cap 24576, not 26624.
    common = {"alpha": 0.05, "lam_min": 0.95, "window": 8192, "max_length": 24576}
    found = length_adaptive_lambda(torch.tensor([8192, 16384, 22528]), torch.zeros(3, dtype=torch.bool), **common)
    assert found.tolist() == pytest.approx([1 - 1 / 614.4, 1 - 1 / 1024, 1 - 1 / 1228.8], abs=1e-15)


@few
@given(st.lists(st.tuples(st.integers(0, 300), st.booleans()), max_size=8), st.floats(0.01, 2), UNIT)
def test_length_adaptive_lambda_agrees_with_the_formula(cases, alpha, lam_min) -> None:
    common = {"alpha": alpha, "lam_min": lam_min, "window": 64, "max_length": 256}
    lengths, finished = torch.tensor([c[0] for c in cases]), torch.tensor([c[1] for c in cases], dtype=torch.bool)
    found = length_adaptive_lambda(lengths, finished, **common)
    assert found.tolist() == pytest.approx([reference.length_adaptive_lambda(n, f, **common) for n, f in cases])
    assert ((found >= lam_min) & (found <= 1)).all()
    assert length_adaptive_lambda(lengths, finished, **common, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "alpha: found 0.0"),
        ({"lam_min": 1.5}, "lam_min: found 1.5"),
        ({"window": 0}, "window, max_length: found 0"),
        ({"finished_S": torch.tensor([True, True])}, "finished_S: found shape"),
        ({"lengths_S": torch.tensor(3)}, "lengths_S: found shape"),
    ],
)
def test_length_adaptive_lambda_refuses(change, message) -> None:
    arguments = {
        "lengths_S": torch.tensor([3]), "finished_S": torch.tensor([True]),
        "alpha": 0.05, "lam_min": 0.95, "window": 8, "max_length": 16,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        length_adaptive_lambda(**{**arguments, **change})


@pytest.mark.parametrize("seed", range(5))
def test_explained_variance_agrees_with_the_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets, values = rng.normal(size=50), rng.normal(size=50)
    found = explained_variance(torch.from_numpy(values), torch.from_numpy(targets))
    assert found == pytest.approx(reference.explained_variance(values, targets), rel=1e-12)
    exact = explained_variance(torch.from_numpy(targets + 3.0), torch.from_numpy(targets))
    assert exact == pytest.approx(1.0)  # a constant error is no variance
    assert explained_variance(torch.zeros(3), torch.ones(3)) is None
    assert explained_variance(torch.zeros(1), torch.ones(1)) is None
