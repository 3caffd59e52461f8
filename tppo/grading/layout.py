r"""An answer without its dress: Unicode spellings, Markdown, math delimiters and commands that change no value.

Words from ``\text{...}`` and the like keep a mark (`WORD`) before them, so that ``\text{m}`` may be a metre where ``m``
is a variable. Delimiters become two spaces: what stands inside and outside a formula is one text, ``-$5$`` is -5.
"""

from __future__ import annotations

import re
import unicodedata

WORD = "\x01"
"""Stands before a word that was set as text."""
ROW = "\x02"
r"""Stands for ``\\``, the end of a row."""

_DROPPED = dict.fromkeys([*range(32), 127, 0xAD, *range(0x200B, 0x2010), 0x2060, 0xFEFF, *map(ord, "∎■□◻◼")])
_SPELLED = {
    "\n": "  ", "\t": "  ", "\r": "  ", "−": "-", "–": "-", "‒": "-", "‑": "-", "‐": "-", "﹣": "-", "×": r"\times ",
    "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ", "⁄": "/", "∕": "/", "π": r"\pi ", "√": " sqrt ",
    "∞": r"\infty ", "°": r"^\circ ", "º": r"^\circ ", "∪": r"\cup ", "∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ",
    "∓": r"\mp ", "≈": r"\approx ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "…": "...", "²": "^2 ", "³": "^3 ",
    "½": r"\frac12 ", "⅓": r"\frac13 ", "⅔": r"\frac23 ", "¼": r"\frac14 ", "¾": r"\frac34 ", "。": ".", "、": ", ",
    "，": ",", "∴": "",
    "⇒": "", "→": "", "“": '"', "”": '"', "’": "'", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ",
}  # fmt: skip
_TABLE = {**_DROPPED, **{ord(k): v for k, v in _SPELLED.items()}, **dict.fromkeys(map(ord, "\xa0\u2009\u202f"), " ")}

_MARKS = re.compile(r"(?<![\w)}\]*])(\*{2,3}|_{2,3}|\*|`+)(?=\S)((?:(?!\1).)*?\S)\1(?![\w({*])", re.DOTALL)
_TAG = re.compile(r"</?(?:b|i|u|p|br|strong|em|answer)\s*/?>", re.IGNORECASE)
_POWER = re.compile(r"(?<=[\w)}])\*\*(?=[\w({-])")
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|texttt|textsf|textnormal|mathrm|mbox|hbox|emph|mathbf|mathit)\s*\{([^{}]*)\}"
)
_OPERATOR = re.compile(r"\\operatorname\*?\s*\{\s*([A-Za-z]+)\s*\}")
_COLOUR = re.compile(r"\\(?:textcolor|color|colorbox)\s*(?:\[[^\]]{0,20}\])?\s*\{[^{}]{0,40}\}")
_GONE = re.compile(
    r"\\(?:left|right)\s*\.|\\(?:tag|label|hspace|vspace|phantom)\*?\s*\{[^{}]{0,40}\}"
    r"|\\(?:begin|end)\s*\{(?:equation|align|aligned|gather|gathered|displaymath|math|split|center|multline)\*?\}"
    r"|\\(?:displaystyle|textstyle|scriptstyle|left|right|[bB]igg?[lrm]?|mathbf|boldsymbol|bm|pmb|mathit|mathsf|mathtt"
    r"|mathrm|mathnormal|text|textbf|textit|textrm|mbox|emph|underline|ensuremath|boxed|fbox|framebox|bfseries|bf|rm|it"
    r"|tiny|small|normalsize|large|Large|LARGE|huge|Huge|limits|therefore|implies|Rightarrow|Longrightarrow|to|colon"
    r"|qed|blacksquare|square|Box|nonumber|notag)(?![A-Za-z])|\\!\s*"
)
_SAME = {
    "\\lbrace": "\\{", "\\rbrace": "\\}", "\\varnothing": "\\emptyset ", "\\degree": "^\\circ ", "\\lparen": "(",
    "\\rparen": ")", "\\lbrack": "[", "\\rbrack": "]", "\\textdegree": "^\\circ ", "\\leq": "\\le ", "\\geq": "\\ge ",
    "\\neq": "\\ne ", "\\infin": "\\infty ", "\\simeq": "\\approx ", "\\textpi": "\\pi ", "\\textpercent": "\\% ",
    "\\qquad": "  ", "\\quad": "  ", "\\thinspace": " ",
}  # fmt: skip
_COMMAND = re.compile(r"\\[A-Za-z]+")
_SPACE = re.compile(r"\\[,;: ]|~|\\(?=\s)")
_DELIMITER = re.compile(r"\$\$?|\\[()\[\]]")
_COMMA = re.compile(r",\\!\s*|\{,\}\s*|\\text\{,\}")
_BRACE = re.compile(r"\\.|[{}]")
_EDGE = " \t*_`#>\"'"


def undress(answer: str) -> str:
    r"""The answer in plain ASCII-like LaTeX, without delimiters, marks and what only looks.

    >>> [undress(a) for a in ("**$-5$**.", r"\(\boldsymbol{42}\)", "−5", r"\textcolor{red}{42}", r"32\,000", "`7`")]
    ['-5', '42', '-5', '42', '32 000', '7']
    >>> undress(r"864 \mbox{ inches}^2").replace(WORD, "@"), undress(r"10,\!080"), undress("2**3")
    ('864   @inches ^2', '10{,}080', '2^3')
    """
    text = answer.translate(_TABLE)
    if not text.isascii():
        text = "".join(unicodedata.normalize("NFKC", c) if "\uff01" <= c <= "\uff5e" else c for c in text)
    text = _unmarked(_TAG.sub("", text))
    if "\\" in text:
        text = _COMMA.sub("{,}", text.replace("\\\\", ROW))
        text = _OPERATOR.sub(r"\\\1 ", text)
        for _ in range(3):
            text = _TEXT.sub(_marked, text)
        text = _GONE.sub("", _COLOUR.sub("", text))
        text = _COMMAND.sub(lambda m: _SAME.get(m[0], m[0]), text)
        # Money: a dollar sign of its own, before or after a number.
        text = _SPACE.sub(" ", text.replace("\\$", ""))
    text = text.replace("{,} ", "{,}")
    if "&" in text:
        text = re.sub(r"&\s*(?==)|(?<==)\s*&", "", text)
    if "matrix}" not in text:
        text = re.sub(rf"{ROW}(?:\[[^\]]{{0,10}}\])?|&", "  ", text) if ROW in text or "&" in text else text
    text = _unmarked(_DELIMITER.sub("  ", text)).replace("€", "").replace("£", "")
    return _unbraced(_trimmed(text))


def _unbraced(text: str) -> str:
    """Without a pair of braces around the whole."""
    while text.startswith("{") and text.endswith("}"):
        depth = 0
        for match in _BRACE.finditer(text, 0, len(text) - 1):
            depth += {"{": 1, "}": -1}.get(match[0], 0)
            if depth == 0:
                return text
        text = _trimmed(text[1:-1])
    return text


def _marked(match: re.Match[str]) -> str:
    """The content of a text command, each word behind a mark."""
    inner = re.sub(rf"(?<![A-Za-z{WORD}\\])(?=[A-Za-z])", WORD, match[1])
    return f" {inner} " if WORD in inner else inner


def _unmarked(text: str) -> str:
    """Without Markdown's marks in pairs; two stars between numbers are a power, as in most programs."""
    for _ in range(3):
        before, text = text, _MARKS.sub(r"\2", text)
        if text == before:
            break
    return _POWER.sub("^", text)


def _trimmed(text: str) -> str:
    """Without white space, quotes and punctuation at the ends; a factorial's mark stays."""
    before = ""
    while text != before:
        before = text
        text = text.strip(_EDGE).lstrip(":=")
        if text.endswith((",", ";", ":", "?")) or (text.endswith(".") and not text.endswith("..")):
            text = text[:-1]
    return text
