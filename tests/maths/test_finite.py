"""The refusal of NaN and infinities."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo.errors import NonFiniteError
from tppo.maths.finite import check_finite

few = settings(derandomize=True, deadline=None, max_examples=100)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@few
@given(st.lists(st.floats(width=32), max_size=9), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_raises_exactly_where_an_entry_is_not_finite(device, entries, dtype) -> None:
    x = torch.tensor(entries, dtype=dtype, device=device)
    bad = int((~x.isfinite()).sum())
    if not bad:
        check_finite("x", x)
        return
    with pytest.raises(NonFiniteError, match=rf"x has {bad} non-finite value\(s\) in no single response") as caught:
        check_finite("x", x)
    assert (caught.value.count, caught.value.responses, caught.value.step) == (bad, (), None)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", range(4))
def test_names_the_responses(device, poison, where) -> None:
    # Of the four tokens, two are of response 7, none of 8, two of 9.
    x, rows = torch.zeros(4, device=device), torch.tensor([0, 0, 2, 2])
    x[where] = poison
    x.requires_grad_()
    with pytest.raises(NonFiniteError, match="values has 1") as caught:
        check_finite("values", x, uids=(7, 8, 9), row_N=rows)
    assert caught.value.responses == ((7,) if where < 2 else (9,))


@pytest.mark.parametrize("entries", [[3.4e38, -3.4e38], []])
def test_huge_entries_and_no_entries_are_finite(entries) -> None:
    check_finite("x", torch.tensor(entries))


def test_the_step_is_named_once_it_is_known() -> None:
    error = NonFiniteError("values", range(10), 12)
    assert str(error).startswith(
        "values has 12 non-finite value(s) in responses [0, 1, 2, 3, 4, 5, 6, 7, ...]; nothing"
    )
    assert error.at_step(5) is error
    assert error.step == 5
    assert str(error).startswith("values has 12 non-finite value(s) at step 5, in responses [0, ")
    assert str(NonFiniteError("loss", [], 1, step=0)).startswith(
        "loss has 1 non-finite value(s) at step 0, in no single"
    )
