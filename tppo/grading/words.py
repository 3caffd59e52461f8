r"""The words around a number: which say nothing, which are units, and which change what is said.

Harmless words come before the value ("the answer is") or behind it (a unit, "as required", a closing sentence without
numbers). Everything else stays where it is, and what the reader cannot place makes the answer unclear.
"""

from __future__ import annotations

import re

from tppo.grading.layout import WORD
from tppo.grading.vocabulary import ALONE, CHANGING, HARMLESS, SHORT, UNITS

_LEADING = re.compile(rf"{WORD}?([A-Za-z][A-Za-z.']*)(?:[\s,:]+|(?={WORD}|\\|[-+$(]))")
_COPULA = re.compile(
    rf"([^0-9=^+*/{{}};]{{1,200}}?[\s:{WORD}])(?:is|are|was|were|equals|becomes|be)(?![A-Za-z])[\s:]*"
    rf"(?:{WORD}?equal\s+{WORD}?to|{WORD}?exactly|{WORD}?simply|{WORD}?just|:|=)?\s*(?=\S)"
)
_LABEL = re.compile(rf"([A-Za-z{WORD}' ]{{1,60}}):\s*(?=\S)")
_CLOSING = re.compile(r"(?<=[\w)}\]%!])\s*[.;!]\s+([^0-9\\=^+*/{}]*)$")
_BEHIND = re.compile(
    rf"[\s,;(]+{WORD}?(?:as\s+(?:required|desired|needed|expected|claimed|requested|stated|shown)|in\s+total|in\s+all"
    rf"|altogether|exactly|only|q\.?e\.?d|total|done)\)?$",
    re.IGNORECASE,
)
_PERCENT = re.compile(rf"\s*{WORD}?(?:percent|per\s+{WORD}?cent|pct)(?![A-Za-z])", re.IGNORECASE)
_MINUS = re.compile(rf"^{WORD}?(?:minus|negative)(?![A-Za-z])\s*(?=[0-9.(\\]|[A-Za-z]\b)", re.IGNORECASE)

_ALONE_PATTERN = "|".join(sorted(ALONE))


def _forms() -> str:
    """All spellings of units, the longest first."""
    words = {*SHORT, *UNITS, *(unit + "s" for unit in UNITS - ALONE)} - ALONE
    return "|".join(sorted(words, key=lambda word: (-len(word), word)))


_FORMS = _forms()
_UNIT = re.compile(
    rf"(?<![A-Za-z\\_{WORD}])(?:{WORD}?(?P<power>square|cubic|sq|cu)\.?\s*)?"
    rf"(?:{WORD}?(?P<unit>{_FORMS})|{WORD}(?P<alone>{_ALONE_PATTERN}|times|lines))"
    rf"(?![A-Za-z])(?:\s*(?:/|{WORD}?per(?![A-Za-z]))\s*{WORD}?(?:{_FORMS}|{_ALONE_PATTERN})(?![A-Za-z]))?"
    rf"(?:\s*\^\s*(?:[23]|\{{\s*-?[123]\s*\}}))?\s*$",
    re.IGNORECASE,
)
_TEMPERATURE = re.compile(rf"(?<=\\circ)(?:\s*\}})?\s*{WORD}?[CF]$")


def strip_words(text: str) -> tuple[str, str]:
    r"""The text without harmless words, and its unit ("" is none). Takes what `tppo.grading.layout.undress` returns.

    >>> [strip_words(t) for t in ("the value is 5 cm", "Area = 5", "5 square units", "5. We are done", "it is not 5")]
    [('5', 'centimetre'), ('5', ''), ('5', 'unit'), ('5', ''), ('not 5', '')]
    >>> [strip_words(t)[0] for t in ("5 dozen", "40 percent", "minus 5", "The direction is east", "5. Or maybe three")]
    ['5 dozen', '40\\%', '-5', 'east', '5. Or maybe three']
    """
    if not any(c.isalpha() for c in text):
        return text, ""
    if (closing := _CLOSING.search(text)) and _is_prose(closing[1]):
        text = text[: closing.start()]
    text = _BEHIND.sub("", text)
    text = _without_lead(text)
    text = _MINUS.sub("-", _PERCENT.sub(r"\\%", text))
    text = _TEMPERATURE.sub("", text)
    unit = ""
    if (match := _UNIT.search(text)) and text[: match.start()].strip(" {"):
        text, unit = text[: match.start()], _unit_name(match["unit"] or match["alone"])
        text = text[:-1] if text.endswith("{") else text
    return text.strip(), unit


def _unit_name(word: str) -> str:
    """One name for the spellings of a unit.

    >>> [_unit_name(w) for w in ("cm", "Centimeters", "feet", "people", "dollars")]
    ['centimetre', 'centimetre', 'foot', 'person', 'dollar']
    """
    word = word.casefold()
    if word in SHORT:
        return SHORT[word]
    singular = word[:-1] if word.endswith("s") and word not in ("glass", "bus") else word
    return re.sub(r"met(?:er)$", "metre", re.sub(r"liter$", "litre", singular))


def changes_meaning(word: str) -> bool:
    """Whether a word takes back, scales or adds to what is said, or makes a guess of it."""
    return word.casefold() in CHANGING or word.casefold().endswith("n't")


def _is_prose(text: str) -> bool:
    """At least two words, none of which takes back or adds to what was said."""
    words = re.findall(r"[A-Za-z']+", text)
    return len(words) > 1 and not _changes(words) and "$" not in text


def _changes(words: list[str]) -> bool:
    return any(map(changes_meaning, words))


def _without_lead(text: str) -> str:
    """What follows the words before the value; the text as it was when they may change its meaning."""
    whole = text
    while True:
        before = text
        if (match := _LABEL.match(text)) and not _changes(re.findall(r"[A-Za-z']+", match[1])):
            text = text[match.end() :]
        if (match := _COPULA.match(text)) and not _changes(re.findall(r"[A-Za-z']+", match[1])):
            text = text[match.end() :]
        match = _LEADING.match(text)
        if match and match[1].rstrip(".").casefold() in HARMLESS and text[match.end() :].strip():
            single = match[1] in ("a", "i")
            if not single or re.match(rf"{WORD}?[A-Za-z]{{2}}", text[match.end() :]):
                text = text[match.end() :]
        if text == before:
            return text.lstrip(" =:") if text.strip(" =:") else whole
