"""Answers in text: found in a response, and written in one way where two spellings mean the same."""

from __future__ import annotations

import re
from fractions import Fraction

_ANSWER = re.compile(r"\banswer\b[*_` \t]{0,8}[:：]", re.IGNORECASE)
_BRACE = re.compile(r"(\\+)(boxed[ \t]{0,8}\{|[{}])?|[{}]")
_UNIT = r"(?:degrees?|units?|cm|mm|km|met(?:er|re)s?|inch(?:es)?|f(?:ee|oo)?t|miles?|dollars?|cents?|hours?|minutes?)"
_UNITS = re.compile(
    rf"(?:(?:square|cubic|sq|cu)\s+)?{_UNIT}(?:\s*\^\s*\{{?[23]\}}?)?$|\^\s*(?:\\circ|\{{\s*\\circ\s*\}})$|°$", re.I
)
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox|mathbf)\s*\{([^{}]*)\}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,40}|[0-9]{1,3}(?:,[0-9]{3}){1,12})?(?:\.[0-9]{1,40})?")
_FRACTION = re.compile(
    r"([+-]?)(?:\\[dt]?frac(?:\{([0-9]{1,40})\}\{([0-9]{1,40})\}|([0-9])([0-9]))|([0-9]{1,40})/([0-9]{1,40}))"
)
_SPACE = re.compile(r"\\[,;:! ]|\\left|\\right|\s|\$")


def find_answer(text: str) -> str | None:
    r"""The last answer of a response: an ``Answer:`` line or a ``\boxed{...}``, whichever begins last; None if none.

    The whole text is read once, in linear time. Empty answers and boxes that never close do not count; a box inside
    an ``Answer:`` line is that line's answer. After a bare ``Answer:`` the next line that is not empty is taken.

    >>> find_answer(r"First \boxed{1}, no: **Answer:** 42.")
    '42.'
    >>> find_answer(r"Answer: $x = \boxed{\frac{1}{2}}$")
    '\\frac{1}{2}'
    """
    box = _last_box(text)
    for start, end in reversed([match.span() for match in _ANSWER.finditer(text)]):
        if box is not None and box[1] > start:
            break
        if line := _line(text, end):
            return line
    return text[box[0] : box[1]].strip() if box is not None else None


def _line(text: str, start: int) -> str:
    """The rest of the line at ``start``, or the next line when that is empty, without Markdown's marks."""
    for _ in range(3):
        end = text.find("\n", start)
        line = text[start : end if end >= 0 else len(text)].strip().strip("*_`").strip()
        if line or end < 0:
            return line
        start = end + 1
    return ""


def _last_box(text: str) -> tuple[int, int] | None:
    """Start and end of the content of the closed, non-empty box that opens last."""
    opened: list[int] = []  # Content start of a box, -1 for any other brace.
    best: tuple[int, int] | None = None
    for match in _BRACE.finditer(text):
        slashes, what = match.group(1), match.group(2) or ""
        if what.startswith("boxed"):
            opened.append(match.end())
        elif slashes and (not what or len(slashes) % 2):
            continue  # An escaped brace, or a command.
        elif text[match.end() - 1] == "{":
            opened.append(-1)
        elif opened:
            start, end = opened.pop(), match.end() - 1
            if start > (best[0] if best else -1) and text[start:end].strip():
                best = start, end
    return best


def bare(answer: str) -> str:
    r"""An answer without math delimiters around it, trailing period, thin spaces and Unicode minus."""
    answer = re.sub(r",\\!\s{0,8}", ",", answer.strip()).replace("−", "-").replace("\\!", "").replace("\n", " ")
    for _ in range(4):
        before = answer
        answer = answer.removesuffix(".").strip()
        for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
            inner = answer[len(left) : -len(right)]
            wrapped = len(answer) > len(left + right) and answer.startswith(left) and answer.endswith(right)
            # "$1$ and $2$" is two formulas, not one.
            if wrapped and (left[0] != "$" or ("$" not in inner.replace("\\$", "") and not inner.endswith("\\"))):
                answer = inner.strip()
        if answer == before:
            break
    return answer


def plain_number(answer: str) -> Fraction | None:
    r"""The value of an answer that is nothing but a decimal number, perhaps with money sign or common unit, else None.

    >>> [plain_number(a) for a in ("007", "$1{,}024.$", r"\text{42} cm", r"\$18.90", "1,2", r"\frac12")]
    [Fraction(7, 1), Fraction(1024, 1), Fraction(42, 1), Fraction(189, 10), None, None]
    """
    if len(answer) > 200:
        return None
    answer = _TEXT.sub(r" \1 ", bare(answer)).replace("{,}", ",").replace("\\$", "").strip()
    answer = _UNITS.sub("", answer.removeprefix("$")).strip().strip("{}").strip().removesuffix(".")
    if not _NUMBER.fullmatch(answer) or not re.search(r"[0-9]", answer):
        return None
    return Fraction(answer.replace(",", ""))


def vote_key(answer: str) -> str:
    r"""What an answer votes for: equal numbers vote together, other text by its letters without white space.

    >>> [vote_key(a) for a in ("073", "73.0", "$n = 73$", r"\frac{1}{2}", "0.5", "3/6", "(1, 2)")]
    ['73', '73', '73', '1/2', '1/2', '1/2', '(1,2)']
    """
    if (number := plain_number(answer)) is not None:
        return str(number)
    text = _SPACE.sub("", answer).removesuffix(".")
    value = text.rpartition("=")[2] or text
    if (number := plain_number(value)) is not None:
        return str(number)
    if match := _FRACTION.fullmatch(value):
        above, below = (int(digits) for digits in match.groups()[1:] if digits is not None)
        return str(Fraction(int(match[1] + "1") * above, below)) if below else text
    return text
