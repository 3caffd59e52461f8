"""Finding the answer in a response: the last ``Answer:`` line or block, or the last box; in linear time."""

from __future__ import annotations

import re

from tppo.grading.reading import vote_key

__all__ = ["find_answer", "vote_key"]

_LABEL = re.compile(r"(?<![A-Za-z0-9])answer[*_`~ \t]{0,8}(?:is[*_` \t]{0,4})?[:：]", re.IGNORECASE)
_LEADS = (
    r"(?:(?:so|thus|therefore|hence|then|and|the|my|our|your|final|correct|short|full|numerical|exact)\W{1,4}){0,5}"
)
_AT_START = re.compile(rf"[\s>*_#`\-•.(\[0-9]*{_LEADS}[*_` ]*", re.IGNORECASE)
_IN_LINE = re.compile(rf".*[.!?:;,*_#>)}}$|\]]\s*[*_` ]*{_LEADS}[*_` ]*", re.IGNORECASE)
_BRACE = re.compile(r"(\\+)((?:boxed|fbox)[ \t]{0,8}\{|[{}])?|[{}]")
_BLOCK = re.compile(r"\$\$|\\\[|```[A-Za-z]*|\\begin\{([A-Za-z]{1,20}\*?)\}")
_EMPTY = re.compile(
    r"[\s\"'“”‘’.,:;!?*_`~()<>|$]*(?:\$?(?:\\?boxed\{\}|Answer|your answer|\[answer\])[\s\"'“”.,*_)>]*)?", re.I
)
_BETWEEN = re.compile(
    r"[\s$,;&]*(?:\\text\{\s*(?:and|or)\s*\}|and|or)?[\s$,;&]*(?:\w{1,10}\s*=\s*)?\$?\s*", re.IGNORECASE
)
_NOT_PROSE = re.compile(r"[0-9\\$=+^]|\b[A-Z]\b")
_GLUE = r"cdot|times|div|pm|mp|pi|sqrt|[dt]?frac|d?binom|log|ln|sin|cos|tan|circ|infty"
_BEFORE = re.compile(rf"(?:[0-9}})]\s+or\s+|[-−–+*/^_0-9]|\\(?:{_GLUE})\s*\{{?)\s*$")
_AFTER = re.compile(rf"\s*(?:or\s+[0-9\\-]|[-−–+*/^_0-9!%]|\\(?:%|{_GLUE})(?![A-Za-z]))")
_BEFORE_BARE = re.compile(rf"(?:[0-9}}$)]\s+or\s+\$?|[-−–/0-9]|\\(?:{_GLUE}))$")
_AFTER_BARE = re.compile(
    r"\$?\s+or\s+[$0-9\\-]"
    rf"|(?:[/^0-9%]|\\(?:%|{_GLUE})(?![A-Za-z]))|\s*\$?\s*(?:hundred|thousand|(?:m|b|tr)illion|dozen|percent)"
)
_OTHER = (-1, -1)
"""Stands for an opened brace that is no box."""
_LABELS = 50
"""How many labels are looked at, from the last one back."""
_NEAR = 2000
"""How far around a label or a box its line is read [characters]; a longer answer is no answer."""


def find_answer(text: str) -> str | None:
    r"""The last answer of a response: an ``Answer:`` line or a ``\boxed{...}``, whichever begins last; None if none.

    Empty answers, boxes that never close and echoes of the instruction (``after "Answer:".``) do not count; a box
    inside an ``Answer:`` line is that line's answer. After a bare ``Answer:`` comes the next line that is not empty, or
    a display block up to where it closes. "the answer:" inside a sentence counts only where nothing else does.
    Signs and factors beside a box belong to it, and boxes in a row are one list.

    >>> find_answer(r"First \boxed{1}, no: **Answer:** 42.")
    '42.'
    >>> find_answer(r"Answer: $x = \boxed{\frac{1}{2}}$")
    '\\frac{1}{2}'
    >>> [find_answer(t) for t in ("Answer:\n\\[\n7\n\\]", r"so -\boxed{5}", r"\boxed{1} or \boxed{2}", "the answer: 3")]
    ['\\[\n7\n\\]', '-(5)', '1, 2', '3']
    """
    boxes = _boxes(text)
    last = boxes[-1] if boxes else None
    weak = prose = None
    labels = [match.span() for match in _LABEL.finditer(text)]
    for start, end in reversed(labels[-_LABELS:]):
        if last is not None and last[2] > start:
            return _with_numbers_beside(text, end, last) or _content(text, boxes)
        line = _line(text, end)
        if _EMPTY.fullmatch(line[:200]):
            continue
        if not _is_strong(text, start):
            weak = weak or line
        elif len(line.split()) > 3 and not _NOT_PROSE.search(line):
            prose = prose or line
        else:
            return line
    return _content(text, boxes) if boxes else prose or weak


def _is_strong(text: str, start: int) -> bool:
    """Whether a label stands at the beginning of a line or a sentence rather than inside one."""
    before = text[max(text.rfind("\n", 0, start) + 1, start - 80) : start]
    return bool(_AT_START.fullmatch(before) or (text[start].isupper() and _IN_LINE.fullmatch(before)))


def _line(text: str, start: int) -> str:
    """What a label is followed by: the rest of its line, the next line that is not empty, or a block as a whole."""
    near = text[start : start + _NEAR + 20]
    begin = (
        len(near) - len(near.lstrip(" \t*_`\r\n")) if not near.lstrip(" \t").startswith("```") else near.index("```")
    )
    if "```" in near[:begin]:
        begin = near.index("```")
    if block := _BLOCK.match(near, begin):
        close = {"$$": "$$", "\\[": "\\]", "```": "```"}.get(block[0][:3] if block[0][0] == "`" else block[0])
        end = near.find(close or f"\\end{{{block[1]}}}", block.end())
        if end >= 0:
            inside = near[block.end() : end] if block[0][0] == "`" else near[begin:end] + near[end:].partition("\n")[0]
            return inside.strip()
    return near[begin:].partition("\n")[0].strip().strip("*_").strip()


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """Begin of the command, begin and end of the content of the closed, non-empty boxes, by where they open."""
    opened: list[tuple[int, int]] = []  # Begin of the command and of the content.
    found: list[tuple[int, int, int]] = []
    first = min((at for at in (text.find("\\boxed"), text.find("\\fbox")) if at >= 0), default=len(text))
    while first and text[first - 1] == "\\":
        first -= 1  # The backslashes before a command are read with it.
    for match in _BRACE.finditer(text, first):
        slashes, what = match.group(1), match.group(2) or ""
        if what[1:2] in ("o", "b"):
            opened.append((match.end(1) - 1, match.end()))
        elif slashes and (not what or len(slashes) % 2):
            continue  # An escaped brace, or a command.
        elif text[match.end() - 1] == "{":
            opened.append(_OTHER)
        elif opened:
            begin, start = opened.pop()
            if begin >= 0 and text[start : match.end() - 1].strip():
                found.append((begin, start, match.end() - 1))
    return sorted(found)


def _content(text: str, boxes: list[tuple[int, int, int]]) -> str:
    """The content of the last box with what is glued to it; of boxes in a row, a list."""
    begin, start, end = boxes[-1]
    content = text[start:end].strip()
    contents = [content]
    first = begin
    for other_begin, other_start, other_end in reversed(boxes[-20:-1]):
        if other_end >= first or first - other_end > 60 or not _BETWEEN.fullmatch(text, other_end + 1, first):
            break
        contents.insert(0, text[other_start:other_end].strip())
        first = other_begin
    if len(set(contents)) > 1:
        return ", ".join(contents)
    before = text[max(0, begin - _NEAR) : begin].rpartition("\n")[2]
    after = text[end + 1 : end + 1 + _NEAR].partition("\n")[0]
    inside = _in_formula(before)
    glued = _BEFORE if inside else _BEFORE_BARE, _AFTER if inside else _AFTER_BARE
    if not glued[0].search(before) and not glued[1].match(after):
        return content
    if inside:
        before = re.split(r"\$|\\[(\[]", before)[-1]
        after = re.split(r"\$|\\[)\]]", after)[0]
    else:
        before = re.split(r"[\s:]", before)[-1]
        after = after.split(". ")[0]
    return f"{before}({content}){after}".strip()


def _with_numbers_beside(text: str, end: int, box: tuple[int, int, int]) -> str:
    """The whole line or block of a label whose box has other numbers beside it and no words: they are guesses too."""
    before = text[end : box[0]] if end <= box[0] <= end + _NEAR else ""
    after = text[box[2] + 1 : box[2] + 1 + _NEAR].partition("\n")[0]
    beside = before + after
    if re.search(r"[A-Za-z=]", beside) or not re.search(r"[0-9]", beside):
        return ""
    return f"{before}({text[box[1] : box[2]]}){after}".strip()


def _in_formula(before: str) -> bool:
    """Whether a line up to here leaves a formula open."""
    dollars = before.replace("\\$", "").replace("$$", "").count("$") % 2 == 1
    display = before.count("$$") % 2 == 1
    return dollars or display or any(before.rfind(a) > before.rfind(b) for a, b in (("\\(", "\\)"), ("\\[", "\\]")))
