"""Answers one by one: what is right in which dress, what only looks right, and what is no single answer."""

from __future__ import annotations

import json

import pytest

from tests.support.shared import shared
from tppo.grading.answers import find_answer, vote_key
from tppo.grading.mathematics import _ask, grade_math
from tppo.grading.reading import read
from tppo.grading.verdict import judge

RIGHT = [
    # Signs and factors outside a formula belong to the number.
    ("-12", "Answer: -$12$"),
    ("-12", r"so $-\boxed{12}$"),
    (r"4\sqrt{7}", r"Answer: 4$\sqrt{7}$"),
    ("1/6", "Answer: 1/$6$"),
    ("9/4", "Answer: $9$/$4$"),
    (r"-\frac{2}{9}", r"Answer: -\(\frac{2}{9}\)"),
    ("-8", "Answer: minus 8"),
    # Display blocks, and lines after blank ones.
    ("318", "Answer:\n\\[\nN = 318\n\\]\nDone."),
    ("318", "Answer:\n\n\n\n318"),
    ("318", "Answer: $$318\n$$"),
    ("318", "**Answer:**\n\\begin{align*}\nN &= 300 + 18 \\\\\n&= 318\n\\end{align*}"),
    ("318", "Answer:\n```\n318\n```"),
    # Signs apart, and thousands.
    ("-7", r"\boxed{- 7}"),
    ("-7", "Answer: – 7"),
    ("4500", "Answer: $N = 4,500$"),
    ("4500", r"\boxed{4\,500}"),
    ("1234567", "Answer: 1 234 567"),
    (r"2500\pi", r"\boxed{2{,}500\pi}"),
    (r"\frac{1}{2500}", r"\boxed{\frac{1}{2,500}}"),
    # Tiny and huge numbers, exactly.
    (r"\frac{1}{28!}", r"\boxed{\frac{29}{29!}}"),
    ("2^{-70}", r"\boxed{\frac{1}{2^{70}}}"),
    ("1e-09", "Answer: $10^{-9}$"),
    ("3e12", "Answer: 3,000,000,000,000"),
    ("0.00000025", r"\boxed{2.5 \times 10^{-7}}"),
    # Bases.
    ("731_8", r"\boxed{731_{8}}"),
    ("731", r"\boxed{731_{10}}"),
    ("2A_{16}", r"\boxed{2a_{16}}"),
    # Prose after the answer.
    ("64", "So $\\boxed{64}$.\n\nI compared it with the answer: both agree."),
    ("64", "Answer: 64. That is all."),
    ("64", 'Answer: 64\n\nThe format was: after "Answer:" comes the number.'),
    ("64", "Answer: 64, as required."),
    # Marks.
    ("64", "__Answer__: 64"),
    ("64", "_Answer_: 64"),
    ("64", r"\fbox{64}"),
    ("64", r"\boxed{**64**}"),
    ("64", "Answer: 64。"),
    ("64", "Answer: 64 ∎"),
    ("64", "Answer: 64\u200b"),
    ("64", r"\boxed{\mathbf{64}}"),
    ("64", r"\boxed{\text{64}}"),
    (r"\frac{5}{64}", r"\boxed{\boldsymbol{\frac{5}{64}}}"),
    ("64", r"\boxed{\textcolor{blue}{64}}"),
    ("64", "Answer: ６４"),
    # Equations.
    ("64", r"\boxed{60+4 = 64}"),
    ("64", "Answer: f(3) = 64"),
    ("64", r"Answer: $\text{Sum} = 64$"),
    ("x=5", "Answer: 5"),
    ("y = 3x - 1", r"\boxed{3x - y = 1}"),
    ("x+2y=7", r"\boxed{2x+4y=14}"),
    (r"\frac57", r"Answer: $\frac57 \approx 0.714$"),
    # Mixed numbers, repeating decimals, per cent, degrees.
    (r"\frac{11}{4}", "Answer: 2 3/4"),
    (r"\frac{11}{4}", r"\boxed{2\frac34}"),
    (r"\frac{2}{11}", r"\boxed{0.\overline{18}}"),
    (r"\frac{3}{20}", r"\boxed{15\%}"),
    ("110", r"\boxed{110^\circ}"),
    (r"\frac{\sqrt3}{2}", r"\boxed{\sin 60^\circ}"),
    # Lists, sets, words.
    ("-3, 8", r"Answer: $8$ and $-3$"),
    (r"\{-3, 8\}", "Answer: x = 8 or x = -3"),
    (r"\emptyset", r"\boxed{\varnothing}"),
    (r"2 \pm \sqrt5", r"\boxed{2+\sqrt5, 2-\sqrt5}"),
    (r"\text{(D)}", "Answer: D"),
    (r"\text{west}", "Answer: The direction is west."),
    (r"\cot x", r"\boxed{\frac{\cos x}{\sin x}}"),
    (r"\ln 2", "Answer: ln 2"),
    ("35", "Answer: 35 square centimeters"),
    ("35", "Answer: The area of the field is 35"),
]
WRONG = [
    ("12", "Answer: -$12$"),
    ("6", "Answer: 1/$6$"),
    (r"\sqrt{7}", r"Answer: 4$\sqrt{7}$"),
    ("12", "Answer: 3 + $12$"),
    ("318", "Answer:\n\\[\n319\n\\]"),
    ("7", r"\boxed{- 7}"),
    ("4", "Answer: 4,500"),
    ("500", "Answer: 4,500"),
    (r"\frac{1}{28!}", r"\boxed{\frac{1}{29!}}"),
    ("2^{-70}", r"\boxed{2^{-71}}"),
    ("0.00000025", r"\boxed{2.6\times 10^{-7}}"),
    ("731", r"\boxed{731_8}"),
    ("731_8", r"\boxed{731_9}"),
    ("731_8", r"\boxed{731}"),
    ("10^{-9}", "Answer: $e-9$"),
    ("64", r"\boxed{65 = 64}"),
    ("64", r"\boxed{1=64}"),
    ("15", r"\boxed{15\%}"),
    ("(1,2)", r"\boxed{\{1,2\}}"),
    ("(1,2)", r"\boxed{(2,1)}"),
    ("(3,4]", r"\boxed{[3,4]}"),
    ("3", "Answer: 3 1/4"),
    ("64", "Answer: 64 dozen"),
    ("x=5", "Answer: y = 5"),
    ("2", r"\boxed{\{2, 3\}}"),
    ("0.714", r"Answer: $\frac57 \approx 0.714$"),
    ("23", "Answer: 2**3"),
    ("5 cm", "Answer: 5 miles"),
    (r"\text{west}", r"\boxed{\text{east}}"),
    ("64", r"\boxed{64} million"),
    ("7", r"\boxed{3}\boxed{7}"),
]
UNCLEAR = [
    ("Answer: $3$; $5$; $7$", "several_answers"),
    (r"\boxed{3} or \boxed{7}", "several_answers"),
    ("Answer: 3 or 7", "several_answers"),
    ("Answer: 1 = 3 = 7", "false_equation"),
    (r"Answer: $7 \approx 3.2$", "false_equation"),
    ("Answer: 7 = ", "false_equation"),
    ("Answer: maybe $7$", "stray_words"),
    ("Answer: it is not 7", "stray_words"),
    ("Answer: 7 dozen", "stray_words"),
    ("Answer: 3 7", "unclear_notation"),
    ("Answer: 1/7x", "unclear_notation"),
    ("Answer: (7", "unclear_notation"),
    ("Answer: 7.0...", "unclear_notation"),
    (r"Answer: $2\frac{7}{3}$", "unclear_notation"),
    ("Answer: 0,007", "several_answers"),
    ("7", "no_answer"),
    ("Answer:", "no_answer"),
    (r"\boxed{}", "no_answer"),
    ('put it after "Answer:".', "no_answer"),
    ("Answer: " + "7" * 3000, "too_long"),
]


def needs_math_verify() -> None:
    pytest.importorskip("math_verify", reason="needs math-verify: pip install 'tppo[math]'")


@pytest.mark.parametrize(("truth", "response"), RIGHT)
def test_right(truth: str, response: str) -> None:
    if not read(truth).exact:
        needs_math_verify()
    assert grade_math(truth, response) == 1.0


@pytest.mark.parametrize(("truth", "response"), WRONG)
def test_wrong(truth: str, response: str) -> None:
    assert grade_math(truth, response) == 0.0


@pytest.mark.parametrize(("response", "reason"), UNCLEAR)
def test_what_is_unclear_scores_nothing_and_has_a_reason(response: str, reason: str) -> None:
    assert judge("7", response, _ask) == (0.0, reason)


def test_right_answers_vote_with_their_truth() -> None:
    """In all cases but those that math-verify decides."""
    apart = [(t, r) for t, r in RIGHT if read(t).exact and vote_key(find_answer(r) or "") != vote_key(t)]
    assert apart == []


def test_reported_faults() -> None:
    needs_math_verify()
    cases = json.loads(shared("cases", "grader.json").read_text())
    bad = [c for c in cases if grade_math(c["truth"], c["response"]) != c["right"]]
    assert len(cases) > 80
    assert bad == []
