"""Ways in which one answer is written, and ways to make another answer of it. Nothing here knows the reader."""

from __future__ import annotations

import re
from collections.abc import Callable

ALWAYS: dict[str, str] = {
    "line": "Answer: @",
    "line, formula": "So we are done.\nAnswer: $@$",
    "line, formula, full stop": "Answer: $@$.",
    "line, round delimiters": r"Answer: \(@\)",
    "line, square delimiters": r"Answer: \[@\]",
    "line, spaced formula": "Answer:   $ @ $  ",
    "line, capitals": "ANSWER: $@$",
    "line, wide colon": "Answer：$@$",
    "line, Windows ends": "Done.\r\nAnswer: $@$\r\n",
    "line, zero-width space": "Answer: $@$\u200b",
    "line, end of proof": "Answer: $@$ ∎",
    "line, wide full stop": "Answer: $@$。",
    "line, semicolon": "Answer: $@$;",
    "line, quotes": 'Answer: "$@$"',
    "label in bold": "**Answer:** $@$",
    "label in bold, colon outside": "**Answer**: @",
    "label underlined": "__Answer__: $@$",
    "label in italics": "_Answer_: $@$",
    "all in bold": "**Answer: $@$**",
    "answer in bold": "Answer: **$@$**",
    "heading": "### Final Answer: $@$",
    "label with is": "The final answer is: $@$",
    "block, square": "Answer:\n\\[\n@\n\\]",
    "block, dollars": "**Answer:**\n\n$$\n@\n$$\n",
    "block, dollars on the line": "Answer: $$@\n$$",
    "block, environment": "Answer:\n\\begin{equation}\n@\n\\end{equation}",
    "block, code": "Answer:\n```latex\n@\n```",
    "block with box": "Answer:\n\\[\n\\boxed{@}\n\\]",
    "next line": "Answer:\n\n\n$@$",
    "box": r"It follows that \boxed{@}",
    "box in formula": r"Thus the answer is $\boxed{@}$.",
    "box in display": "Thus\n$$\\boxed{@}.$$",
    "box after equals": r"so $N = \boxed{@}$",
    "frame": r"so \fbox{@}",
    "frame around formula": r"so \fbox{$@$}",
    "box in bold": r"**\boxed{@}**",
    "box on the line": r"Answer: $\boxed{@}$",
    "bold symbol": r"so \boxed{\boldsymbol{@}}",
    "coloured": r"so \boxed{\textcolor{red}{@}}",
    "colour switched": r"so \boxed{\color{blue}{@}}",
    "bold switched": r"so \boxed{{\bf @}}",
    "display style": r"so \boxed{\displaystyle @}",
    "lead-in": "Answer: the value is $@$",
    "lead-in, sentence": "Answer: The final answer is $@$.",
    "lead-in, thus": "Answer: Thus, we get $@$",
    "tail, as required": "Answer: $@$, as required.",
    "prose after a box": "So $\\boxed{@}$.\n\nI checked the answer: it is right.",
    "prose after a line": "Answer: $@$\n\nThis completes the solution of 3 problems.",
    "instruction after a line": 'Answer: $@$\n\nRemember to put your answer on its own line after "Answer:".',
    "check after a line": "Answer: $@$\n\nVerification of the answer: 6*7 = 42, so it holds.",
    "earlier answers": "Answer: 17\nNo, that is wrong: \\boxed{18}.\nAnswer: $@$",
    "sentence after": "Answer: $@$. This is what was asked.",
}
"""Layouts for any answer; ``@`` is where it stands."""

_FRACTION = re.compile(r"(-?)\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}")
_NO_RELATION = r"(?!.*\\in\b)[^=&]*"


def _where(pattern: str, layout: Callable[[str], str]) -> Callable[[str], str | None]:
    return lambda truth: layout(truth) if re.fullmatch(pattern, truth) else None


def _grouped(separator: str) -> Callable[[str], str]:
    return lambda truth: f"so \\boxed{{{int(truth):,}}}".replace(",", separator)


SOMETIMES: dict[str, Callable[[str], str | None]] = {
    "equation": _where(_NO_RELATION, lambda t: f"Answer: $N = {t}$"),
    "equation of words": _where(_NO_RELATION, lambda t: rf"so \boxed{{\text{{Total}} = {t}}}"),
    "aligned": _where(_NO_RELATION, lambda t: f"Answer:\n\\begin{{align*}}\nN &= {t}\n\\end{{align*}}"),
    "text": _where(r"-?[0-9.]+", lambda t: rf"so \boxed{{\text{{{t}}}}}"),
    "unit": _where(r"-?[0-9.]+", lambda t: f"Answer: {t} cm"),
    "unit outside": _where(r"-?[0-9.]+", lambda t: f"Answer: ${t}$ square units"),
    "unit in text": _where(r"-?[0-9.]+", lambda t: rf"so \boxed{{{t} \text{{ m}}^2}}"),
    "counted things": _where(r"[0-9]+", lambda t: f"Answer: {t} apples"),
    "degrees": _where(r"-?[0-9]+", lambda t: rf"so \boxed{{{t}^{{\circ}}}}"),
    "dollars": _where(r"[0-9.]+", lambda t: rf"Answer: \${t}"),
    "plain dollars": _where(r"[0-9.]+", lambda t: f"Answer: ${t}"),
    "zeros before": _where(r"[0-9]+", lambda t: f"Answer: 00{t}"),
    "plus": _where(r"[0-9.]+", lambda t: f"Answer: + {t}"),
    "decimal point": _where(r"-?[0-9]+", lambda t: f"Answer: {t}.0"),
    "quotient": _where(r"-?[0-9]{1,9}", lambda t: rf"so \boxed{{\frac{{{2 * int(t)}}}{{2}}}}"),
    "power of ten": _where(r"-?[0-9]{1,9}", lambda t: rf"so \boxed{{{t}000 \times 10^{{-3}}}}"),
    "e-notation": _where(r"-?[0-9]{1,9}", lambda t: f"Answer: {t}00e-2"),
    "computation": _where(r"-?[0-9]{1,9}", lambda t: rf"so \boxed{{{int(t) - 4} + 4 = {t}}}"),
    "commas": _where(r"-?[1-9][0-9]{3,8}", _grouped(",")),
    "commas in braces": _where(r"-?[1-9][0-9]{3,8}", _grouped("{,}")),
    "thin spaces": _where(r"-?[1-9][0-9]{3,8}", _grouped("\\,")),
    "spaces": _where(r"-?[1-9][0-9]{3,8}", _grouped(" ")),
    "minus apart": _where(r"-[^,&]*", lambda t: rf"so \boxed{{- {t[1:]}}}"),
    "minus outside": _where(r"-[^-,&+=]*", lambda t: f"Answer: -${t[1:]}$"),
    "minus before the box": _where(r"-[0-9.]+", lambda t: rf"so $-\boxed{{{t[1:]}}}$"),
    "typographic minus": _where(r"-[^,&]*", lambda t: rf"so \boxed{{−{t[1:]}}}"),
    "large fraction": _where(r".*\\frac.*", lambda t: rf"so \boxed{{{t}}}".replace("\\frac", "\\dfrac")),
    "slash": _where(_FRACTION.pattern, lambda t: "Answer: " + _FRACTION.sub(r"\1\2/\3", t)),
    "no sized brackets": _where(
        r".*\\left.*", lambda t: rf"so \boxed{{{t}}}".replace("\\left", "").replace("\\right", "")
    ),
}
"""Layouts for some answers: None where one does not apply."""


def layouts(truth: str) -> dict[str, str]:
    """All responses that say ``truth``, by the name of the layout."""
    found = {name: layout.replace("@", truth) for name, layout in ALWAYS.items()}
    found |= {name: text for name, make in SOMETIMES.items() if (text := make(truth)) is not None}
    return found


def other_answers(truth: str) -> dict[str, str]:
    """Answers that are not ``truth``: its first number one more, its sign turned, another word."""
    number = re.search(r"[0-9]+", truth)
    if number is None:
        return {"another word": r"\text{none of these}"}
    more = str(int(number[0]) + 1).zfill(len(number[0]))
    found = {"one more": truth[: number.start()] + more + truth[number.end() :]}
    if re.fullmatch(r"-?[0-9.]*[1-9][0-9.]*|-?\\frac\{[0-9]+\}\{[0-9]+\}", truth):
        found["other sign"] = truth[1:] if truth[0] == "-" else "-" + truth
        found["a tenth"] = rf"{truth}\cdot 10^{{-1}}"
    return found
