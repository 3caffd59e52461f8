"""One character, one token: the alphabet of the toy language.

Two ids are not characters: ``PAD_ID`` fills rectangles and ``EOS_ID`` ends a response. Text never contains them, so
``decode`` shows neither.

>>> decode(encode("Skdbm?k=5"))
'Skdbm?k=5'
>>> VOCAB_SIZE
47
"""

from collections.abc import Iterable

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
ANSWER_MARK = "#"

PAD_ID = 0
EOS_ID = 1
# The order fixes the ids, hence the meaning of every saved model: append only.
ALPHABET = LETTERS + DIGITS + "<>=:?" + ANSWER_MARK + "SWR"
VOCAB_SIZE = len(ALPHABET) + 2

_ID_OF = {character: position + 2 for position, character in enumerate(ALPHABET)}
_TEXT_OF = ("", "", *ALPHABET)


def encode(text: str) -> list[int]:
    """Token ids of ``text``, one for each character.

    >>> encode("ab0")
    [2, 3, 28]
    """
    try:
        return [_ID_OF[character] for character in text]
    except KeyError:
        position, character = next((i, c) for i, c in enumerate(text) if c not in _ID_OF)
        raise ValueError(
            f"text[{position}] is {character!r}, which is not in the toy language's alphabet; "
            f"expected characters of {ALPHABET!r}: leave it out or write it with these"
        ) from None


def decode(ids: Iterable[int]) -> str:
    """Text of ``ids``; padding and end-of-response show as nothing.

    >>> decode([2, 3, 28, EOS_ID, PAD_ID])
    'ab0'
    """
    characters = []
    for position, token in enumerate(ids):
        if not 0 <= token < VOCAB_SIZE:
            raise ValueError(
                f"ids[{position}] is {token}, expected a token id in [0, {VOCAB_SIZE}): "
                "check that the model and this tokenizer have the same vocabulary size"
            )
        characters.append(_TEXT_OF[token])
    return "".join(characters)
