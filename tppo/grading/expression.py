r"""One expression, in LaTeX or plain text, read exactly into a value of `tppo.grading.algebra`.

Two refusals are kept apart. `Unread` is mathematics that has no exact form here: math-verify may know it. `Ambiguous`
is a spelling that two readers would take for different numbers; it is nobody's answer.
"""

from __future__ import annotations

import re
from fractions import Fraction

from tppo.grading import algebra
from tppo.grading.algebra import Unread, Value
from tppo.grading.vocabulary import GREEK

_NUMBER = re.compile(r"(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})")
_SCALE = re.compile(r"(?:E(?=\+?[0-9])\+?|e(?=-|[0-9]|\+[0-9]{2})\+?|E(?=-))(-?[0-9]{1,4})(?![0-9A-Za-z.^])")
_REPEATED = re.compile(r"\\overline\s*\{([0-9]{1,40})\}|\\overline([0-9])|\(([0-9]{1,40})\)|\\dot\s*\{?([0-9])\}?")
_TOKEN = re.compile(
    rf"\s*(?:(?P<number>{_NUMBER.pattern})|(?P<word>(?<![A-Za-z])(?:sqrt|infinity|infty|pi|sin|cos|tan)(?![A-Za-z]))"
    r"|(?P<other>\\[A-Za-z]+|\\.|\S))"
)
_SUBSCRIPT = re.compile(r"_(?:([0-9A-Za-z])|\{\s*([0-9A-Za-z]{1,8})\s*\})")
_TIMES = {"*", "\\cdot", "\\times", "\\ast"}
_OVER = {"/", "\\div"}
_FRACTIONS = {"\\frac", "\\dfrac", "\\tfrac", "\\cfrac"}
_CHOICES = {"\\binom", "\\dbinom", "\\tbinom"}
_SINES = {"sin": 0, "\\sin": 0, "cos": 90, "\\cos": 90, "tan": -1, "\\tan": -1}
_MAX_DEPTH = 40


class Ambiguous(Exception):
    """A text that is no single answer. reason: one of `tppo.grading.verdict.REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def evaluate(text: str) -> Value:
    r"""The exact value of an expression without math delimiters, thousands separators or words.

    Mixed numbers add, repeating decimals are exact, ``1e-7`` is a number while ``e-7`` is e - 7, a per cent is a
    hundredth, a degree is a unit except in a sine. Raises Unread or Ambiguous.

    >>> [algebra.shown(evaluate(t)) for t in (r"\frac12", "1 3/4", r"0.1\overline{6}", "1e-3", r"50\%", "2^10", "5!")]
    ['1/2', '7/4', '1/6', '1/1000', '1/2', '1024', '120']
    >>> [algebra.shown(evaluate(t)) for t in (r"11\sqrt2", r"\cos 60^\circ", "(x+1)^2", r"\binom52", r"e^{-50}")]
    ['11*2^(1/2)', '1/2', '1+2*x+x^(2)', '10', 'e^(-50)']
    >>> for text in ("7 3", "1/2x", r"5\frac73", "0.333...", "2 5/3"):
    ...     try:
    ...         evaluate(text)
    ...     except Ambiguous as problem:
    ...         print(problem.reason)
    unclear_notation
    unclear_notation
    unclear_notation
    unclear_notation
    unclear_notation
    """
    reader = _Reader(text)
    value = reader.sum(0)
    if reader.kind:
        raise Unread(f"{reader.token!r} after the expression")
    return value


class _Reader:
    """Recursive descent. ``token`` is the one to read next and ``kind`` its group in _TOKEN, "" at the end."""

    def __init__(self, text: str) -> None:
        self.text, self.end, self.start, self.degrees = text.rstrip(), 0, 0, 0
        self.next()

    def next(self) -> str:
        """Step past the present token, which is returned."""
        past = getattr(self, "token", "")
        match = _TOKEN.match(self.text, self.end)
        self.spaced = match is not None and self.text[self.end : self.end + 1].isspace()
        self.kind = (match.lastgroup or "") if match else ""
        self.token = match[self.kind] if match else ""
        self.start, self.end = (match.start(self.kind), match.end()) if match else (self.end, self.end)
        return str(past)

    def expect(self, token: str) -> None:
        if self.token != token:
            raise Unread(f"expected {token!r}")
        self.next()

    def sum(self, depth: int) -> Value:
        if depth > _MAX_DEPTH:
            raise Unread("nested too deeply")
        total: Value = {}
        sign = 1
        while True:
            while self.token in ("+", "-"):
                sign = -sign if self.next() == "-" else sign
            total, sign = algebra.add(total, self.product(depth), sign), 1
            if self.token not in ("+", "-"):
                return total

    def product(self, depth: int) -> Value:
        value, divided = self.power(depth), False
        while True:
            if self.token in _TIMES or self.token in _OVER:
                over = self.next() in _OVER
                sign = 1
                while self.token in ("+", "-"):
                    sign = -sign if self.next() == "-" else sign
                factor = algebra.multiply(algebra.number(sign), self.power(depth))
                value = algebra.divide(value, factor) if over else algebra.multiply(value, factor)
                divided = over
            elif self.starts_factor():
                # "1/2x" is one half of x to some and one over 2x to others; "7 3" is no product.
                if divided or self.kind == "number":
                    raise Ambiguous("unclear_notation")
                value = algebra.multiply(value, self.power(depth))
            else:
                return value

    def starts_factor(self) -> bool:
        known = _FRACTIONS | _CHOICES | {"\\sqrt", "\\pi", "\\infty", "(", "{"} | set(_SINES)
        return self.kind in ("number", "word") or self.token in known or self.is_letter()

    def is_letter(self) -> bool:
        return (self.token.isascii() and self.token.isalpha()) or self.token[1:] in GREEK

    def power(self, depth: int) -> Value:
        value = self.primary(depth)
        while True:
            if self.token == "!":
                self.next()
                value = algebra.factorial(value)
            elif self.token in ("\\%", "%"):
                self.next()
                value = algebra.divide(value, algebra.number(100))
            elif self.token == "^":
                self.next()
                if degree := re.compile(r"\s*\{?\s*\\circ(?![A-Za-z])\s*\}?").match(self.text, self.start):
                    self.end = degree.end()
                    self.next()
                    turn = algebra.divide(algebra.atom("pi"), algebra.number(180))
                    value = algebra.multiply(value, turn) if self.degrees else value
                    continue
                exponent = algebra.rational(self.exponent(depth))
                if exponent is None:
                    raise Unread("an exponent that is no number")
                value = algebra.power(value, exponent)
            else:
                return value

    def exponent(self, depth: int) -> Value:
        if self.token == "-":
            self.next()
            return algebra.multiply(algebra.number(-1), self.primary(depth + 1))
        return self.primary(depth + 1)

    def primary(self, depth: int) -> Value:
        if self.kind == "number":
            return self.numeral()
        token = self.next()
        if token in ("(", "{"):
            value = self.sum(depth + 1)
            self.expect(")" if token == "(" else "}")
            return value
        if token in _FRACTIONS or token in _CHOICES:
            above = self.argument(depth, first=True)
            below = self.argument(depth)
            return algebra.divide(above, below) if token in _FRACTIONS else algebra.choose(above, below)
        if token in ("sqrt", "\\sqrt"):
            return self.root(depth, plain=token == "sqrt")
        if token in ("\\pi", "pi"):
            return algebra.atom("pi")
        if token in ("\\infty", "infinity", "infty"):
            return algebra.atom("oo")
        if token in _SINES:
            return self.sine(_SINES[token], depth)
        name = token.removeprefix("\\")
        if not (name in GREEK and token[0] == "\\") and not (len(token) == 1 and token.isascii() and token.isalpha()):
            raise Unread(f"{token[:20]!r}")
        if self.token == "_" and (match := _SUBSCRIPT.match(self.text, self.start)):
            name += "_" + (match[1] or match[2])
            self.end = match.end()
            self.next()
        return algebra.atom(name)

    def sine(self, shift: int, depth: int) -> Value:
        self.degrees += 1
        angle = self.primary(depth + 1) if self.token == "(" else self.product(depth + 1)
        self.degrees -= 1
        if shift >= 0:
            return algebra.sine(angle, shift)
        return algebra.divide(algebra.sine(angle), algebra.sine(angle, 90))

    def root(self, depth: int, plain: bool) -> Value:
        order = Fraction(2)
        if self.token == "[":
            self.next()
            found = algebra.rational(self.sum(depth + 1))
            if found is None or not 2 <= found <= 50:
                raise Unread("a root of unknown order")
            order = found
            self.expect("]")
        value = self.primary(depth + 1) if plain or self.token == "(" else self.argument(depth)
        return algebra.power(value, 1 / order)

    def argument(self, depth: int, first: bool = False) -> Value:
        r"""What LaTeX takes for an argument: a group or one character, so ``\frac12`` is a half."""
        if self.kind != "number":
            return self.primary(depth + 1)
        if len(self.token) > 2 - (not first) or "." in self.token:
            raise Ambiguous("unclear_notation")
        digit = self.token[0]
        self.end = self.start + 1
        self.next()
        return algebra.number(int(digit))

    def numeral(self) -> Value:
        """A number and what belongs to it: repeating digits, a power of ten in e-notation, a proper fraction."""
        start, digits = self.start, self.token
        end = start + len(digits)
        value = Fraction(digits if digits[-1] != "." else digits[:-1])
        if "." in digits:
            if self.text.startswith(("...", "\\ldots", "\\dots", "\\cdots", ".."), end):
                raise Ambiguous("unclear_notation")
            if repeated := _REPEATED.match(self.text, end):
                if repeated[3] and digits[-1] != ".":
                    raise Ambiguous("unclear_notation")  # 0.1(6) is 1/6 to some and 0.6 to others.
                period = next(group for group in repeated.groups() if group)
                places = len(digits) - digits.index(".") - 1
                value += Fraction(int(period), (10 ** len(period) - 1) * 10**places)
                end = repeated.end()
        if scale := _SCALE.match(self.text, end):
            value *= Fraction(10) ** int(scale[1])
            end = scale.end()
        self.end = end
        self.next()
        if self.token == "_":
            raise Ambiguous("unclear_notation")  # A base, and no more is known of it.
        return algebra.number(value + self.mixed() if digits.isdigit() and end == start + len(digits) else value)

    def mixed(self) -> Fraction:
        """The fraction of a mixed number, which is stepped over; 0 where there is none."""
        literal = r"\\[dtc]?frac\s*(?:\{\s*(\d{1,40})\s*\}\s*\{\s*(\d{1,40})\s*\}|(\d)\s*(\d)(?!\d))"
        pattern = literal if self.token in _FRACTIONS else r"(\d{1,40})/(\d{1,40})(?![\d.])"
        if self.token not in _FRACTIONS and not (self.kind == "number" and self.spaced):
            return Fraction(0)
        if not (match := re.compile(pattern).match(self.text, self.start)):
            return Fraction(0)
        above, below = (int(group) for group in match.groups() if group is not None)
        if not 0 < above < below:
            raise Ambiguous("unclear_notation")
        self.end = match.end()
        self.next()
        return Fraction(above, below)
