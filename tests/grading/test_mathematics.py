"""Grading of mathematics: real references against themselves, other spellings, hostile texts."""

import json
import re
import sys
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.hostile import HOSTILE, HUGE
from tests.support.shared import shared
from tppo.errors import DataError
from tppo.grading.answers import find_answer
from tppo.grading.mathematics import MathReward, grade_math
from tppo.grading.reading import MAX_ANSWER, read
from tppo.grading.verdict import REASONS
from tppo.types import Prompt

PHRASINGS = ("So we are done.\nAnswer: {}", "It follows that \\boxed{{{}}}", "Thus the answer is $\\boxed{{{}}}$.")
LIMIT = 0.4  # Of a verdict on hostile text [s].
SLACK = 2.0  # What a busy machine may add to noticing and killing [s].


def prompt(truth: str) -> Prompt:
    return Prompt("p", (1,), truth)


def needs_math_verify() -> None:
    pytest.importorskip("math_verify", reason="needs math-verify: pip install 'tppo[math]'")


@pytest.fixture(scope="module")
def reward() -> Iterator[MathReward]:
    needs_math_verify()
    with MathReward(seconds=20.0) as reward:
        yield reward


def math500() -> list[str]:
    path = shared("data", "math500.json")
    return [row["final_answer"] for row in json.loads(path.read_text())]


def aime() -> list[str]:
    parquet = pytest.importorskip("pyarrow.parquet", reason="reading a parquet file needs pyarrow")
    path = shared("data", "dapo_aime_2024.parquet")
    rows = parquet.read_table(path, columns=["reward_model"]).to_pylist()
    return [row["reward_model"]["ground_truth"] for row in rows]


def changed(truth: str) -> str:
    """The first number plus one, as wide as it was; a truth without a number becomes a word it is not."""
    number = re.search(r"[0-9]+", truth)
    if number is None:
        return r"\text{none of these}"
    return truth[: number.start()] + str(int(number[0]) + 1).zfill(len(number[0])) + truth[number.end() :]


def grade_many(reward: MathReward, truths: list[str], texts: list[str]) -> list[float]:
    """The scores of many texts, in their order; all workers share them."""
    reward.check_truth(*truths)
    scores = [reward.submit(prompt(truth), text) for truth, text in zip(truths, texts, strict=True)]
    return [score.result() for score in scores]


def wrong(reward: MathReward, truths: list[str], answers: list[str], right: bool) -> list[tuple[str, str]]:
    """(truth, answer) of what was not graded as ``right`` says; right answers in all three phrasings."""
    bad = []
    for phrasing in PHRASINGS if right else PHRASINGS[2:]:
        scores = grade_many(reward, truths, [phrasing.format(a) for a in answers])
        bad += [(t, a) for t, a, score in zip(truths, answers, scores, strict=True) if score != float(right)]
    return bad


def test_all_math500_references_equal_themselves_and_nothing_changed(reward: MathReward) -> None:
    truths = math500()
    assert len(truths) == 500
    assert wrong(reward, truths, truths, right=True) == []
    assert wrong(reward, truths, [changed(t) for t in truths], right=False) == []
    assert reward.counts["ok"] == sum(reward.counts.values())


def test_all_aime_references_equal_themselves_and_nothing_changed(reward: MathReward) -> None:
    truths = aime()
    assert len(set(truths)) > 25
    assert wrong(reward, truths, truths, right=True) == []
    assert wrong(reward, truths, [t.zfill(3) for t in truths], right=True) == []
    assert wrong(reward, truths, [changed(t) for t in truths], right=False) == []


SAME = [
    (r"\frac{1}{2}", r"\dfrac12"), (r"\frac{1}{2}", "1/2"), (r"\frac{1}{2}", "0.5"), (r"1,-2", r"-2, 1"),
    (r"\text{(C)}", "C"), (r"90^\circ", "90"), (r"x=5", "5"), ("5", "x = 5"), (r"\sqrt{8}", r"2\sqrt2"),
    ("1 \\pm \\sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"), ("52_8", "52_{8}"), ("10", r"\frac{20}{2}"),
    (r"\frac{3}{4}", r"the value is $\frac{6}{8}$"),
]  # fmt: skip
OTHER = [
    ("52_8", "52_7"), ("5", r"5 \text{ million}"), ("5", "4,5"), ("5", "5 or 7"), (".0000672", "0.0000673"),
    ("(3,4]", "(3,4)"), ("p - q", "q - p"), (r"\frac{1}{2}", r"\oops{\frac{1}{2}"), (r"\frac13", "0.33"),
]  # fmt: skip


@pytest.mark.parametrize(("truth", "answer"), SAME)
def test_the_same_value_written_otherwise_is_right(reward: MathReward, truth: str, answer: str) -> None:
    assert reward(prompt(truth), f"Answer: {answer}") == 1.0


@pytest.mark.parametrize(("truth", "answer"), OTHER)
def test_another_value_is_wrong(reward: MathReward, truth: str, answer: str) -> None:
    assert reward(prompt(truth), f"Answer: {answer}") == 0.0


RIGHT_73 = ("73", "073", "$73$", "$73$.", "73.", r"\text{73}", r"73^\circ", "73 degrees", "73 square meters",
            r"73\text{ cm}^2", r"\$73", "73.0", r"\(73\)", r"\[ 73 \]", "+73", "**73**", r"$\boxed{73}$")  # fmt: skip
WRONG_73 = ("37", "72 square meters", "730", "-73", "7 3", "73, 74", "7,3", "73.5", "", "1" * 5000, "9" * 41)


def test_integers_are_judged_without_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert [a for a in RIGHT_73 if grade_math("73", f"Answer: {a}") != 1.0] == []
    assert [a for a in WRONG_73 if grade_math("73", f"Answer: {a}") != 0.0] == []
    assert grade_math("1024", "Answer: 1,024") == grade_math("1,024", r"\boxed{1{,}024}") == 1.0
    assert [a for a in ("٧٣", "73m", "73 x", "73 million", "73\\%", "52_8", "", ".") if read(a).key == "73"] == []


@pytest.mark.parametrize("truth", ["", "  ", "\\frac{1}{", "x" * (MAX_ANSWER + 1)])
def test_a_reference_that_cannot_be_graded_against_is_bad_data(truth: str) -> None:
    needs_math_verify()
    with pytest.raises(DataError, match="reference answer"):
        MathReward([truth], seconds=1.0).close()


def test_a_bad_reference_is_also_found_at_first_use(reward: MathReward) -> None:
    with pytest.raises(DataError, match="empty"):
        reward(prompt(""), "Answer: 1")
    assert reward(prompt("1"), "Answer: 1") == 1.0


BODIES = [
    "9^{{9^{{9^{{9^{{9+{n}}}}}}}}}",
    "9^9^9^9^9^{n}",
    "{n}" + "{{" * 10000 + "1" + "}}" * 10000,
    "{n}" + r"\frac{{1}}{{" * 150 + "1" + "}}" * 150,
    r"\sqrt{{" * 300 + "{n}" + "}}" * 300,
    "(1+{n})^{{123456789}}!!!",
    r"\int_0^1 \int_0^1 \sin(\cos(x^{n}))^{{x^{{y}}}} e^{{x^2y^3}} dx dy",
    "__import__('os').fork() + {n}",
    "__import__('os')._exit({n})",
    r"\text{{import os; os.abort()}} {n}",
    "\0{n}\0\ud800\u202e½∫𝔸" + "́" * 300,
    r"\sum_{{k=1}}^{{10^{{1{n}}}}} \frac{{1}}{{k^k}}",
    "x^{{x^{{x^{n}}}}} = " * 60 + "1",
    r"(x+y+z+w+v)^{{1{n}0}}(a+b)^{{200}} - 1",
    "1{n}00000!",
    r"\begin{{pmatrix}}" + "1 & 2 \\\\" * 180 + r"{n} \end{{pmatrix}}^{{99}}",
]  # fmt: skip


def test_a_hundred_hostile_texts_each_cost_at_most_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    needs_math_verify()
    texts = [f"\\boxed{{{body.format(n=n)}}}" for n in range(1, 7) for body in BODIES] + HUGE[:4]
    assert len(texts) == 100
    with MathReward([r"\frac{3}{7}"], seconds=LIMIT) as reward:
        slowest, worst, bad = 0.0, "", []
        for text in texts:
            start = time.monotonic()
            if reward(prompt(r"\frac{3}{7}"), text) != 0.0:
                bad.append(text[:100])
            seconds = time.monotonic() - start
            if seconds > slowest:
                slowest, worst = seconds, text[:40]
        assert bad == []
        assert sum(reward.counts.values()) == 100
        with capsys.disabled():
            print(f"\nslowest of 100 hostile verdicts: {slowest:.2f} s of {LIMIT} s ({worst!r}); {reward.counts}")
        assert slowest < LIMIT + SLACK
        assert reward(prompt(r"\frac{3}{7}"), "Answer: 6/14") == 1.0
    assert reward.counts["timeout"] > 0, "none of these texts was hostile"


def test_texts_of_every_kind_of_malice_are_wrong_and_nothing_dies() -> None:
    """What takes long is ended; nothing gets through, ends a worker by itself, or is an error of ours."""
    needs_math_verify()
    truth = r"\frac{3}{7}"
    with MathReward([truth], workers=2, seconds=0.2) as reward:
        scores = grade_many(reward, [truth] * len(HOSTILE), list(HOSTILE.values()))
        assert [name for name, score in zip(HOSTILE, scores, strict=True) if score] == []
        counts = reward.counts
        assert sum(counts.values()) == len(HOSTILE) > 90
        assert counts["died"] == counts["error"] == 0
        assert counts["timeout"] > 0, "none of these texts was hostile"
        assert reward.slowest < 0.2 + SLACK
    quick = [name for name, text in HOSTILE.items() if _seconds(text) > 1.0]
    assert quick == [], "found and read in the process that asks, where nothing limits it"


def _seconds(text: str) -> float:
    """Processor time of what a vote takes: finding the answer and reading its key."""
    began = time.process_time()
    answer = find_answer(text)
    assert answer is None or len(answer) > MAX_ANSWER or isinstance(read(answer).key, str)
    return time.process_time() - began


def test_scores_keep_their_order_around_failures() -> None:
    needs_math_verify()
    tower = "\\boxed{9^{9^{9^{9^{9}}}}}"
    with MathReward(workers=2, seconds=2.0) as reward:
        texts = ["Answer: 1/2", tower, "Answer: 0.5", "nothing", tower, "\\boxed{\\frac24}"]
        assert grade_many(reward, ["\\frac12"] * 6, texts) == [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
        expected = {
            **dict.fromkeys(REASONS, 0),
            "ok": 3,
            "no_answer": 1,
            "timeout": 2,
            "memory": 0,
            "died": 0,
            "error": 0,
        }
        assert reward.counts == expected


@given(value=st.integers(0, 999), zeros=st.integers(0, 3), money=st.booleans(), period=st.booleans())
def test_every_spelling_of_an_integer_has_its_value(value: int, zeros: int, money: bool, period: bool) -> None:
    spelled = "0" * zeros + str(value) + "." * period
    assert read(f"${spelled}$" if money else spelled).key == str(value)
    assert grade_math(str(value), f"Answer: {spelled}") == 1.0
    assert grade_math(str(value + 1), f"Answer: {spelled}") == 0.0
