r"""Lists, brackets, unions, matrices, equations and based numerals around expressions, each with one key.

A bare list and a set are the same without order; ``(1,2)`` is neither. An equation counts by its right side when its
left side is a single name or a computation that is true; an equation between variables is itself an answer.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from fractions import Fraction

from tppo.grading import algebra
from tppo.grading.algebra import Unread, Value
from tppo.grading.expression import Ambiguous, evaluate
from tppo.grading.layout import ROW
from tppo.grading.vocabulary import GREEK
from tppo.grading.words import changes_meaning

_GROUPED = re.compile(
    r"(?<![\w.^\\])(?<![0-9],)(?<![0-9] )([1-9][0-9]{0,2})(\{,\}| |,)([0-9]{3}(?:\2[0-9]{3}){0,12})(?!\2?[0-9])"
)
_BASED = re.compile(r"([0-9][0-9A-Za-z]{0,63}(?:\.[0-9A-Za-z]{1,40})?)_(?:\{\s*([0-9]{1,2})\s*\}|([0-9]))")
_NAME = re.compile(
    rf"(?:\\(?:angle|triangle|overline|measuredangle|vec|hat|bar|tilde|mathcal|Delta)\s*)?"
    rf"(?:\{{?\s*(?:\\(?:{'|'.join(sorted(GREEK))})|[A-Za-z][A-Za-z' ]{{0,60}})\s*\}}?)"
    r"(?:_(?:[0-9A-Za-z]|\{[0-9A-Za-z, ]{1,8}\}))?'{0,2}(?:\^\{-1\})?"
)
_CALL = re.compile(r"[a-wA-Z](?:\^\{-1\})?'{0,2}\([0-9A-Za-z, ]{1,12}\)")
_MATRIX = re.compile(r"\\begin\{([pbB]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_OPEN, _CLOSE = ("\\{", "(", "[", "{"), ("\\}", ")", "]", "}")
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[A-Za-z]+|.", re.DOTALL)
_MAX_DEPTH = 6


@dataclass(frozen=True, slots=True)
class Form:
    """kind: "value", "text", "list", "bracket", "union", "matrix", "colon", "based", "equation" or "unread".

    key: equal for equal forms of a kind. name: a single letter that the value was said to be. text: of what is unread,
    the part that counts. checks: for the unread, pairs of texts that must be equal for the answer to count.
    """

    kind: str
    key: str
    value: Value | None = None
    name: str = ""
    text: str = ""
    parts: tuple[Form, ...] = ()
    checks: tuple[tuple[str, str], ...] = ()


def integer(number: int) -> Form:
    """The form of a whole number."""
    return Form("value", str(number), algebra.number(number))


def take_apart(text: str, depth: int = 0) -> Form:
    r"""The form of an undressed answer without words. Raises Unread or Ambiguous.

    >>> [take_apart(t).key for t in ("1, 2 and 3", "(-1,6]", r"(0,9) \cup (9,36)", "x = 1 or x = 2", "2:3", "x+y=5")]
    ['{1,2,3}', '(-1,6]', '(0,9)u(9,36)', '{1,2}', '2:3', '5-x']
    """
    text = text.strip()
    if depth > _MAX_DEPTH:
        raise Unread("nested too deeply")
    if not text:
        raise Ambiguous("no_answer")
    if depth == 0 and not _is_balanced(text):
        raise Ambiguous("unclear_notation")
    text = _joined_groups(text)
    parts = _split(text, {",", ";", "and", "or"})
    if len(parts) > 1:
        forms = [form for part in parts if part.strip() for form in _members(take_apart(part, depth + 1))]
        return _list(forms)
    for relation in ("\\approx", "="):
        sides = _split(text, {relation})
        if len(sides) > 1:
            return (_rounded if relation == "\\approx" else _equation)([side.strip() for side in sides], depth)
    if len(member := _split(text, {"\\in"})) == 2 and is_name(member[0]):
        return take_apart(member[1], depth + 1)
    if "\\pm" in text or "\\mp" in text:
        plus = take_apart(text.replace("\\pm", "+").replace("\\mp", "-"), depth + 1)
        minus = take_apart(text.replace("\\pm", "-").replace("\\mp", "+"), depth + 1)
        return _list([*_members(plus), *_members(minus)]) if plus.key != minus.key else plus
    if re.search(r"[<>|]|\\(?:le|ge|ne|lt|gt|mid|setminus|ldots|dots)(?![A-Za-z])", text):
        return _unread(text)
    if form := _bracketed(text, depth):
        return form
    if len(united := _split(text, {"\\cup"})) > 1:
        forms = [take_apart(part, depth + 1) for part in united]
        if any(form.kind == "unread" for form in forms):
            return _unread(text)
        return Form("union", "u".join(sorted(form.key for form in forms)), parts=tuple(forms))
    if len(ratio := _split(text, {":"})) > 1:
        return Form("colon", ":".join(take_apart(part, depth + 1).key for part in ratio))
    if match := _MATRIX.fullmatch(text):
        rows = [
            [take_apart(cell, depth + 1).key for cell in row.split("&")] for row in match[2].split(ROW) if row.strip()
        ]
        return Form("matrix", "[" + ";".join(",".join(row) for row in rows) + "]")
    if match := _BASED.fullmatch(text):
        base = match[2] or match[3]
        return take_apart(match[1]) if base == "10" else Form("based", f"{match[1].upper()}_{int(base)}")
    try:
        value = evaluate(text)
    except Unread:
        return _unread(text)
    return Form("value", _value_key(value), value)


def outer(form: Form) -> str:
    r"""The kind of bracket around a form: a set, a tuple and a bare value are never the same.

    >>> [outer(take_apart(t)) for t in (r"\{1,2\}", "(1,2)", "1,2", "5")]
    ['{', '(', '{', '']
    """
    if form.kind == "list":
        return "{"
    if form.kind in ("bracket", "matrix"):
        return form.key[0]
    text = form.text.strip()
    if form.kind == "unread" and "," in text and not text.startswith("\\begin"):
        return "(" if text.startswith("(") else "[" if text.startswith("[") else "{" if text.startswith("\\{") else ""
    return ""


def names_left(text: str, end: int) -> bool:
    """Whether a word ends the left side of an equation: it names what follows."""
    return text[end:].lstrip(" }'").startswith("=")


def _value_key(value: Value) -> str:
    """A product of two or more letters has the key of the word they spell, in alphabetical order."""
    if len(value) == 1:
        ((monomial, coefficient),) = value.items()
        if coefficient == 1 and len(monomial) > 1 and all(len(n) == 1 and n.isalpha() and e == 1 for n, e in monomial):
            return "".join(sorted(n.casefold() for n, _ in monomial))
    return algebra.shown(value)


def _unread(text: str) -> Form:
    key = re.sub(r"\s+", "", text.replace("dfrac", "frac").replace("tfrac", "frac"))
    return Form("unread", key, text=text)


def _members(form: Form) -> tuple[Form, ...]:
    """What a part of a list adds to it: a part with plus-minus adds two."""
    return form.parts if form.kind == "list" else (form,)


def _list(forms: list[Form], unique: bool = False) -> Form:
    if len(forms) == 1:
        return forms[0]
    if any(form.kind == "unread" for form in forms):
        if any(form.checks for form in forms):
            raise Ambiguous("unclear_notation")
        key = "{" + ",".join(sorted(form.key for form in forms)) + "}"
        return Form("unread", key, text="\\{" + ",".join(form.text or form.key for form in forms) + "\\}")
    found = {form.key: form for form in forms}
    members = list(found.values()) if unique else forms
    if len(members) == 1:
        return members[0]
    return Form("list", "{" + ",".join(sorted(form.key for form in members)) + "}", parts=tuple(members))


def _split(text: str, separators: set[str]) -> list[str]:
    """The text at separators outside all brackets; those of half-open intervals count as brackets too."""
    if not any(separator in text for separator in separators):
        return [text]
    parts, depth, start = [], 0, 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in _OPEN or token == "\\begin":
            depth += 1
        elif token in _CLOSE or token == "\\end":
            depth -= 1
        elif depth == 0 and token in separators:
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def _is_balanced(text: str) -> bool:
    """Whether every bracket that opens closes, of whatever kind: (3,4] does."""
    depth = 0
    for match in _TOKEN.finditer(text):
        depth += (match[0] in _OPEN) - (match[0] in _CLOSE)
        if depth < 0:
            return False
    return depth == 0


def _joined_groups(text: str) -> str:
    """Digits in groups of three as one number: 1,200 and 1 234 567, but not the two numbers of (1,200)."""
    if not re.search(r"[0-9](?:\{,\}| |,)[0-9]{3}", text):
        return text
    spaced_list = re.search(r"[(\[].*,\s.*[)\]]|\\\{.*,\s.*\\\}", text) is not None

    def joined(match: re.Match[str]) -> str:
        before = text[: match.start()]
        inside = sum(before.count(c) for c in ("(", "[", "\\{")) > sum(before.count(c) for c in (")", "]", "\\}"))
        if match[2] == "," and inside and not spaced_list:
            return match[0]
        return (match[1] + match[3]).replace(match[2], "")

    return _GROUPED.sub(joined, text)


def _bracketed(text: str, depth: int) -> Form | None:
    """A tuple, a set or an interval; the value inside plain brackets; None for anything else."""
    if text == "\\emptyset":
        return Form("bracket", "{}")
    tokens = list(_TOKEN.finditer(text))
    left, right = tokens[0][0], tokens[-1][0]
    if left not in _OPEN or right not in _CLOSE or len(tokens) < 2:
        return None
    level = 0
    for match in tokens[:-1]:
        level += (match[0] in _OPEN) - (match[0] in _CLOSE)
        if level == 0:
            return None
    inside = text[len(left) : -len(right)]
    if not inside.strip():
        return Form("bracket", "{}") if left == "\\{" else None
    if left == "{":
        return take_apart(inside, depth + 1)
    parts = _split(_joined_groups(text)[len(left) : -len(right)], {",", ";"})
    if len(parts) == 1:
        return take_apart(inside, depth + 1) if (left, right) in (("(", ")"), ("\\{", "\\}")) else None
    forms = [take_apart(part, depth + 1) for part in parts]
    if left == "\\{":
        return _list([member for form in forms for member in _members(form)], unique=True)
    if any(form.kind == "unread" for form in forms):
        return _unread(text)
    return Form("bracket", left + ",".join(form.key for form in forms) + right, parts=tuple(forms))


def is_name(text: str) -> bool:
    """Whether a text is a single name that a value may be given: x, a_{10}, f(3), AB, or a word."""
    text = text.strip()
    named = _NAME.fullmatch(text) or _CALL.fullmatch(text)
    return named is not None and not any(map(changes_meaning, re.findall(r"[A-Za-z']+", text)))


def _equation(sides: list[str], depth: int) -> Form:
    """The right side, where the left is a name or a true computation; else the equation itself, or a false one."""
    names = []
    while len(sides) > 1 and is_name(sides[0]):
        names.append(sides.pop(0))
    if not all(sides):
        raise Ambiguous("false_equation")
    forms = [take_apart(side, depth + 1) for side in sides]
    last = forms[-1]
    name = names[-1] if names and len(names[-1]) == 1 else ""
    if any(form.kind == "unread" for form in forms):
        checks = tuple(itertools.pairwise(sides))
        # Until the computation is found true, this is an answer of its own.
        key = _unread("=".join(sides)).key if checks else last.key
        return replace(_unread(last.text or sides[-1]), name=name, checks=checks, key=key)
    if all(form.key == last.key for form in forms):
        return replace(last, name=name)
    left, right = forms[0].value, last.value
    if names or len(forms) != 2 or left is None or right is None or not (algebra.names(left) | algebra.names(right)):
        raise Ambiguous("false_equation")
    return _implicit(algebra.add(left, right, -1))


def _implicit(zero: Value) -> Form:
    """An equation between variables, the same whatever its scale and side; solved for y where that is simple."""
    slope = zero.get((("y", Fraction(1)),))
    if slope and sum(any(n == "y" for n, _ in monomial) for monomial in zero) == 1 and algebra.names(zero) != {"y"}:
        rest = algebra.multiply(
            {m: c for m, c in zero.items() if m != (("y", Fraction(1)),)}, algebra.number(-1 / slope)
        )
        return Form("value", _value_key(rest), rest, name="y")
    scale = zero[max(zero)]
    return Form("equation", algebra.shown(algebra.multiply(zero, algebra.number(1 / scale))) + "=0")


def _rounded(sides: list[str], depth: int) -> Form:
    """A value and its decimal approximations, which must be its roundings: the value counts."""
    if is_name(sides[0]) and len(sides) == 2:
        return take_apart(sides[1], depth + 1)
    form = take_apart(sides[0], depth + 1)
    for side in sides[1:]:
        if form.value is None or not re.fullmatch(r"-?\s*[0-9]+(?:\.[0-9]+)?", side):
            raise Ambiguous("false_equation")
        near = Fraction(side.replace(" ", ""))
        places = len(side.partition(".")[2])
        try:
            off = abs(algebra.approximate(form.value) - float(near))
        except Unread:
            raise Ambiguous("false_equation") from None
        if off > 0.51 * 10.0**-places:
            raise Ambiguous("false_equation")
    return form
