"""The reward of the toy language: the final answer, right or wrong, and nothing else.

>>> grade("6", "b4=8d8=6#6")
1.0
>>> grade("6", "b4=8d8=6")
0.0
"""

from sim.language.tokenizer import ANSWER_MARK


def grade(answer: str, response: str) -> float:
    """1.0 if what follows the last answer mark of ``response`` is ``answer``, else 0.0.

    The working is not read, and there is no partial credit: a right answer after wrong working counts, right working
    without an answer does not. Any text is accepted, in time linear in its length.

    >>> grade("6", "#5#6"), grade("6", "#6#"), grade("6", "#66"), grade("6", "")
    (1.0, 0.0, 0.0, 0.0)
    """
    if not answer or ANSWER_MARK in answer:
        raise ValueError(
            f"answer is {answer!r}, expected a non-empty text without {ANSWER_MARK!r}: "
            "pass the problem's answer first and the response second"
        )
    mark = response.rfind(ANSWER_MARK)
    if mark < 0:
        return 0.0
    # The length is compared first, so a huge tail is never copied.
    same = len(response) - mark - 1 == len(answer) and response.endswith(answer)
    return 1.0 if same else 0.0
