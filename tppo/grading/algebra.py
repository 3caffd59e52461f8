r"""Exact values: sums of rational multiples of products of powers, in one canonical form.

A value is a mapping from monomial to rational coefficient. A monomial is a sorted tuple of (atom, exponent). Atoms are
variables (``x``, ``x_1``), ``pi``, ``e``, ``i`` (whose square is -1), ``oo`` (infinity) and prime numbers under a root,
whose exponents lie strictly between 0 and 1. Products of such roots are linearly independent over the rationals, so
two values are equal exactly when their mappings are: 1/30! is not 1/31!, and sqrt(8) is 2 sqrt(2).

What has no such form within the limits below, such as a quotient of polynomials, raises `Unread`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from fractions import Fraction

Monomial = tuple[tuple[str, Fraction], ...]
Value = dict[Monomial, Fraction]

MAX_BITS = 14_000
"""Largest numerator or denominator [bits]; also what ``str`` of an integer may have at most."""
MAX_TERMS = 200
"""Largest number of terms of a value, and a fifth of the products that one multiplication may form."""
MAX_RADICAND = 10**8
"""Largest number that is split into primes under a root."""


MAX_WORK = 10_000
"""Most products of two terms that reading one answer may form, so that a hostile one costs a fraction of a second."""

_left: ContextVar[list[int] | None] = ContextVar("left", default=None)


class Unread(Exception):
    """No exact form is known for the text."""


@contextmanager
def limited_work() -> Iterator[None]:
    """Within this block all multiplications together form at most MAX_WORK products; the next raises Unread."""
    token = _left.set([MAX_WORK])
    try:
        yield
    finally:
        _left.reset(token)


def number(value: Fraction | int) -> Value:
    """A rational number as a value.

    >>> number(0), number(3) == {(): Fraction(3)}
    ({}, True)
    """
    value = Fraction(value)
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise Unread("a number that is too long")
    return {(): value} if value else {}


def atom(name: str) -> Value:
    """A variable or a constant by its name."""
    return {((name, Fraction(1)),): Fraction(1)}


def rational(value: Value) -> Fraction | None:
    """The value as a rational number, None when it is not one.

    >>> rational(number(5)), rational(atom("x"))
    (Fraction(5, 1), None)
    """
    if not value:
        return Fraction(0)
    return value[()] if len(value) == 1 and () in value else None


def add(a: Value, b: Value, sign: int = 1) -> Value:
    """a + sign b."""
    total = dict(a)
    for monomial, coefficient in b.items():
        total[monomial] = total.get(monomial, Fraction(0)) + sign * coefficient
    return _checked({m: c for m, c in total.items() if c})


def multiply(a: Value, b: Value) -> Value:
    """The product, expanded.

    >>> root_two = power(number(2), Fraction(1, 2))
    >>> rational(multiply(root_two, root_two)), rational(multiply(atom("i"), atom("i")))
    (Fraction(2, 1), Fraction(-1, 1))
    """
    if len(a) * len(b) > 5 * MAX_TERMS:
        raise Unread("a product of too many terms")
    if (left := _left.get()) is not None:
        left[0] -= len(a) * len(b)
        if left[0] < 0:
            raise Unread("too much work")
    total: Value = {}
    for m, c in a.items():
        for n, d in b.items():
            factor, monomial = _reduced([*m, *n])
            total[monomial] = total.get(monomial, Fraction(0)) + c * d * factor
    return _checked({m: c for m, c in total.items() if c})


def divide(a: Value, b: Value) -> Value:
    r"""The quotient. A sum below the line is multiplied out with its conjugates, where square roots and i allow it.

    >>> shown(divide(number(1), add(number(1), atom("i"))))
    '1/2-1/2*i'
    """
    for _ in range(4):
        if len(b) <= 1:
            break
        roots = {name for m in b for name, exponent in m if name == "i" or (name.isdigit() and exponent * 2 == 1)}
        if not roots or any(not (name == "i" or name.isdigit()) for m in b for name, _ in m):
            raise Unread("a quotient of sums")
        flipped = min(roots)
        conjugate = {m: -c if any(name == flipped for name, _ in m) else c for m, c in b.items()}
        a, b = multiply(a, conjugate), multiply(b, conjugate)
    if len(b) != 1:
        raise Unread("a quotient by zero or by a sum")
    ((monomial, coefficient),) = b.items()
    factor, inverse = _reduced([(name, -exponent) for name, exponent in monomial])
    return multiply(a, {inverse: factor / coefficient})


def power(base: Value, exponent: Fraction) -> Value:
    """A rational power: any integer one; a fractional one of a positive number, perhaps times pi and e.

    >>> shown(power(number(8), Fraction(1, 2))), shown(power(number(2), Fraction(-60))) == str(Fraction(1, 2**60))
    ('2*2^(1/2)', True)
    """
    if abs(exponent) > 10_000:
        raise Unread("a power that is too high")
    if exponent.denominator == 1:
        times = abs(int(exponent))
        if len(base) > 1 and times > 12:
            raise Unread("a high power of a sum")
        if sum(c.numerator.bit_length() + c.denominator.bit_length() for c in base.values()) * times > 2 * MAX_BITS:
            raise Unread("a power that is too large")
        if len(base) == 1:
            ((monomial, coefficient),) = base.items()
            factor, raised = _reduced([(name, e * times) for name, e in monomial])
            result: Value = _checked({raised: coefficient**times * factor})
        else:
            result = number(1)
            for _ in range(times):
                result = multiply(result, base)
        return divide(number(1), result) if exponent < 0 else result
    if len(base) != 1:
        raise Unread("a root of a sum")
    ((monomial, coefficient),) = base.items()
    if coefficient < 0 or any(name not in ("pi", "e") and not name.isdigit() for name, _ in monomial):
        raise Unread("a root of something negative or unknown")
    primes = [(str(p), exponent * n) for p, n in _primes(coefficient.numerator)]
    primes += [(str(p), -exponent * n) for p, n in _primes(coefficient.denominator)]
    factor, raised = _reduced([*primes, *[(name, e * exponent) for name, e in monomial]])
    return _checked({raised: factor})


def factorial(value: Value) -> Value:
    """n! of a whole number up to 1400."""
    n = rational(value)
    if n is None or n.denominator != 1 or not 0 <= n <= 1400:
        raise Unread("a factorial of no small whole number")
    return number(math.factorial(int(n)))


def choose(above: Value, below: Value) -> Value:
    """The binomial coefficient of two whole numbers.

    >>> rational(choose(number(5), number(2)))
    Fraction(10, 1)
    """
    n, k = rational(above), rational(below)
    if n is None or k is None or n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n <= 5000:
        raise Unread("a binomial coefficient of no small whole numbers")
    return number(math.comb(int(n), int(k)))


_SINES = {0: 0, 30: 1, 45: 2, 60: 3, 90: 4}
"""Four times the square of the sine at some angles [degrees]."""


def sine(turns: Value, shift: int = 0) -> Value:
    r"""The sine of an angle [radians] that is a multiple of pi/6 or pi/4, ``shift`` degrees further.

    >>> shown(sine(divide(atom("pi"), number(6)))), shown(sine(divide(atom("pi"), number(4)), 90))
    ('1/2', '1/2*2^(1/2)')
    """
    share = rational(divide(turns, atom("pi")))
    degrees = None if share is None else share * 180 + shift
    if degrees is None or degrees.denominator != 1:
        raise Unread("a sine of no simple angle")
    whole = int(degrees) % 360
    sign, whole = (1, whole) if whole < 180 else (-1, whole - 180)
    whole = min(whole, 180 - whole)
    if whole not in _SINES:
        raise Unread("a sine of no simple angle")
    return multiply(number(Fraction(sign, 2)), power(number(_SINES[whole]), Fraction(1, 2)) if whole else {})


def approximate(value: Value) -> float:
    """The value as a float; raises Unread for variables, i and infinity."""
    total = 0.0
    known = {"pi": math.pi, "e": math.e}
    try:
        for monomial, coefficient in value.items():
            term = float(coefficient)
            for name, exponent in monomial:
                term *= (float(name) if name.isdigit() else known[name]) ** float(exponent)
            total += term
    except (KeyError, OverflowError, ZeroDivisionError) as error:
        raise Unread("no real number of ordinary size") from error
    return total


def names(value: Value) -> set[str]:
    """The variables of a value."""
    return {n for m in value for n, _ in m if not n.isdigit()} - {"pi", "e", "i", "oo"}


def shown(value: Value) -> str:
    """One text for each value, the same for equal ones.

    >>> shown(add(multiply(number(3), atom("x")), number(Fraction(-1, 2)))), shown({})
    ('-1/2+3*x', '0')
    """
    terms = []
    for monomial, coefficient in sorted(value.items()):
        powers = [name if e == 1 else f"{name}^({e})" for name, e in monomial]
        sign = "" if coefficient == 1 else "-" if coefficient == -1 else f"{coefficient}*"
        terms.append(sign + "*".join(powers) if powers else str(coefficient))
    return "+".join(terms).replace("+-", "-") or "0"


def _checked(value: Value) -> Value:
    if len(value) > MAX_TERMS:
        raise Unread("too many terms")
    for c in value.values():
        if max(c.numerator.bit_length(), c.denominator.bit_length()) > MAX_BITS:
            raise Unread("a number that is too long")
    return value


def _reduced(powers: list[tuple[str, Fraction]]) -> tuple[Fraction, Monomial]:
    """Powers gathered by atom: the rational factor that falls out, and the canonical monomial."""
    exponents: dict[str, Fraction] = {}
    for name, exponent in powers:
        exponents[name] = exponents.get(name, Fraction(0)) + exponent
    factor = Fraction(1)
    for name, exponent in exponents.items():
        if name.isdigit():
            whole = math.floor(exponent)
            if abs(whole) * int(name).bit_length() > MAX_BITS:
                raise Unread("a number that is too long")
            factor *= Fraction(int(name)) ** whole
            exponents[name] = exponent - whole
        elif name == "i":
            if exponent.denominator != 1:
                raise Unread("a root of i")
            turn = int(exponent) % 4
            factor *= -1 if turn >= 2 else 1
            exponents[name] = Fraction(turn % 2)
    return factor, tuple(sorted((name, e) for name, e in exponents.items() if e))


def _primes(n: int) -> list[tuple[int, int]]:
    """Prime factors and their powers; huge powers of small primes are no problem."""
    found = []
    p = 2
    while p * p <= n:
        if n > MAX_RADICAND and p > 100:
            raise Unread("a radicand that is too large")
        count = 0
        while n % p == 0:
            n, count = n // p, count + 1
        if count:
            found.append((p, count))
        p += 1 if p == 2 else 2
    return [*found, (n, 1)] if n > 1 else found
