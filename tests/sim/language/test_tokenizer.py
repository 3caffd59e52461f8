"""The tokenizer: one character, one token, and nothing lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.language import EOS_ID, PAD_ID, VOCAB_SIZE, Language, decode, demonstrate, encode
from sim.language.tokenizer import ALPHABET


@given(st.text(alphabet=ALPHABET))
def test_text_round_trip(text: str) -> None:
    ids = encode(text)
    assert decode(ids) == text
    assert len(ids) == len(text)


@given(st.lists(st.integers(2, VOCAB_SIZE - 1)))
def test_ids_round_trip(ids: list[int]) -> None:
    assert encode(decode(ids)) == ids


def test_every_id_is_used_once() -> None:
    assert sorted(encode(ALPHABET)) == list(range(2, VOCAB_SIZE))
    assert {PAD_ID, EOS_ID} == {0, 1}


def test_special_ids_show_as_nothing() -> None:
    assert decode([*encode("b=1"), EOS_ID, PAD_ID, PAD_ID]) == "b=1"


@pytest.mark.parametrize(
    ("text", "position"), [("b=1 ", 3), ("B", 0), ("ab\u00e9", 2), ("a\x00", 1), ("\U0001f600", 0)]
)
def test_unknown_character_is_named(text: str, position: int) -> None:
    with pytest.raises(ValueError, match=rf"text\[{position}\].*alphabet"):
        encode(text)


@pytest.mark.parametrize("bad", [-1, VOCAB_SIZE])
def test_unknown_id_is_named(bad: int) -> None:
    with pytest.raises(ValueError, match=rf"ids\[1\] is {bad}"):
        decode([2, bad])


def test_the_language_is_within_the_alphabet() -> None:
    for index in range(300):
        problem = Language().problem("heldout", index)
        text = problem.prompt + demonstrate(problem, np.random.default_rng(index), 0.3)
        assert decode(encode(text)) == text
