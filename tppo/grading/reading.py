r"""The one reader of an answer: what it says, in a form that is the same for equal answers.

An answer is undressed (`tppo.grading.layout`), freed of harmless words (`tppo.grading.words`), taken apart into lists,
brackets and equations (here and in `tppo.grading.structure`) and evaluated exactly (`tppo.grading.expression`). What
has no exact form is kept as text for math-verify; what is no single answer has a reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from tppo.grading import structure
from tppo.grading.algebra import limited_work
from tppo.grading.expression import Ambiguous
from tppo.grading.layout import WORD, undress
from tppo.grading.structure import Form, Unread
from tppo.grading.vocabulary import FUNCTIONS
from tppo.grading.words import changes_meaning, strip_words

MAX_ANSWER = 2000
"""A longer answer is wrong [characters]. The response itself may have any length: finding the answer is linear."""

_INTEGER = re.compile(r"-?[0-9]{1,40}")
_RUN = re.compile(rf"(?<![\\A-Za-z])({WORD}?)([A-Za-z][A-Za-z']*)")
_PLAIN_FUNCTION = re.compile(r"(?<![\\A-Za-z])(ln|log|exp|sec|csc|cot|arcsin|arccos|arctan)(?![A-Za-z])")
_TEXT = re.compile(rf"[^\W\d_{WORD}][^0-9\\=^_+*/<>{{}}\[\]|!%$&~:;@#]*")


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer says.

    key: the same for equal answers; what they vote for.
    text: undressed, for the comparison letter by letter.
    form: the parts, None when there is a reason.
    unit: its name, "" is none.
    reason: why this is no single answer, one of `tppo.grading.verdict.REASONS`, "" is none.
    """

    key: str
    text: str
    form: Form | None
    unit: str = ""
    reason: str = ""

    @property
    def exact(self) -> bool:
        """Whether equal answers have equal keys and no other library is asked."""
        return self.form is not None and self.form.kind != "unread"


@lru_cache(maxsize=2048)
def read(answer: str) -> Reading:
    r"""What an answer says. Never raises; time is linear in the answer's length for all practical purposes.

    >>> [read(a).key for a in ("-$5$", "1/$2$", r"3$\sqrt{5}$", "x = 1,200", r"0.\overline{3}", r"\text{(C)}", "East")]
    ['-5', '1/2', '3*5^(1/2)', '1200', '1/3', 'C', 'east']
    >>> [read(a).key for a in (r"\{2, 1\}", "1, 2", "(1,2)", r"1 \pm \sqrt2", "540_8", r"(3,4]", "2+3 = 5")]
    ['{1,2}', '{1,2}', '(1,2)', '{1+2^(1/2),1-2^(1/2)}', '540_8', '(3,4]', '5']
    >>> [read(a).reason for a in ("541=540", "1=2=3", "$3$, maybe $5$", "5 dozen", "7 3", "x" * 3000)]
    ['false_equation', 'false_equation', 'stray_words', 'stray_words', 'unclear_notation', 'too_long']
    """
    if _INTEGER.fullmatch(answer):
        form = structure.integer(int(answer))
        return Reading(form.key, answer, form)
    if len(answer) > MAX_ANSWER:
        return Reading(answer, answer, None, reason="too_long")
    text = undress(answer)
    plain = re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", text.replace(WORD, ""))
    try:
        formula, unit = strip_words(text)
        name, _, said = formula.partition("=")
        if words := _as_text(said if said and structure.is_name(name.replace(WORD, "")) else formula):
            return Reading(words, plain, Form("text", words))
        if _has_stray_words(formula):
            return Reading(plain, plain, None, reason="stray_words")
        formula = _PLAIN_FUNCTION.sub(r"\\\1 ", formula)
        with limited_work():
            form = structure.take_apart(formula.replace(WORD, ""))
    except Ambiguous as problem:
        return Reading(plain, plain, None, reason=problem.reason)
    except (Unread, RecursionError):
        return Reading(plain, plain, Form("unread", plain, text=text.replace(WORD, "")))
    return Reading(form.key, plain, form, unit)


def equal(truth: Reading, answer: Reading) -> bool | None:
    """Whether an answer says what the truth says; None where only math-verify can tell. The order matters only for
    names: a truth with a name accepts the value alone.

    >>> [equal(read(t), read(a)) for t, a in [("5 cm", "5 m"), ("x=5", "y=5"), ("x=5", "5"), ("52_8", "52")]]
    [False, False, True, False]
    """
    if truth.text == answer.text and truth.text:
        return True
    if truth.form is None or answer.form is None:
        return False
    if truth.unit and answer.unit and truth.unit != answer.unit and "unit" not in (truth.unit, answer.unit):
        return False
    if truth.form.name and answer.form.name and truth.form.name != answer.form.name:
        return False
    if truth.exact and answer.exact:
        return truth.key == answer.key
    if truth.key == answer.key:
        return True
    kinds = {truth.form.kind, answer.form.kind} - {"unread", "value", "equation"}
    if kinds & {"text", "based", "colon"} or structure.outer(truth.form) != structure.outer(answer.form):
        return False
    return None


def vote_key(answer: str) -> str:
    r"""What an answer votes for: equal answers vote together. Of answers without an exact form, the text is the vote.

    >>> [vote_key(a) for a in ("073", "73.0", "$n = 73$", r"\frac{1}{2}", "0.5", "3/6", r"50\%", "(1, 2)")]
    ['73', '73', '73', '1/2', '1/2', '1/2', '1/2', '(1,2)']
    >>> vote_key(r"\frac{-1}{2}") == vote_key("-0.5"), vote_key(r"\text{Evelyn}") == vote_key("Evelyn")
    (True, True)
    """
    return read(answer).key


def without_name(reading: Reading) -> Reading:
    """The same reading, without the name on the left of its equation."""
    return reading if reading.form is None else replace(reading, form=replace(reading.form, name=""))


def _as_text(formula: str) -> str:
    """The words of an answer that is nothing but words, in lower case; "" for anything else."""
    bare = formula.strip("{} ").replace(WORD, "")
    if bare.startswith("(") and bare.endswith(")"):
        bare = bare[1:-1].strip()
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", bare)
    if not words or max(map(len, words)) < 2 or not _TEXT.fullmatch(bare) or all(w in FUNCTIONS for w in words):
        return ""
    if "(" in bare or ("," in bare and any(len(w) == 1 for w in words)):
        return ""
    return " ".join(words).casefold()


def _has_stray_words(formula: str) -> bool:
    """Words that are neither functions nor products of variables: what they say about the value is not known."""
    for match in _RUN.finditer(formula):
        marked, word = match[1], match[2]
        if word.casefold() in FUNCTIONS or structure.names_left(formula, match.end()):
            continue
        around = formula[max(match.start() - 1, 0) : match.start()] + formula[match.end() : match.end() + 1]
        apart = around.strip() == ""
        if (marked and len(word) > 1) or (len(word) > 3 and apart) or (len(word) > 1 and changes_meaning(word)):
            return True
    return False
