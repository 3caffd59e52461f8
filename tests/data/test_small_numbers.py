"""Numbers of a data file as text: written out, so that the reader of answers takes them for what they are."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tppo.data.problems import _text
from tppo.grading.answers import vote_key


@pytest.mark.parametrize(
    ("cell", "text"),
    [(1e-7, "0.0000001"), (-2.5e-9, "-0.0000000025"), (27.0, "27"), (0.5, "0.5"), (Decimal("1E+3"), "1000"), (7, "7")],
)
def test_numbers_are_written_out(cell: object, text: str) -> None:
    assert _text({"answer": cell}, "answer") == text
    assert vote_key(text) == vote_key(str(cell))
