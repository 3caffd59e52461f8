"""A reward function in processes of its own: the same function as in this one, and a run that survives what it does."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.helpers import response
from tppo.errors import ConfigError, RewardError
from tppo.grading import isolated
from tppo.grading.grader import Grader
from tppo.grading.isolated import IsolatedReward, digest_of, load, source_of
from tppo.grading.pool import SandboxError
from tppo.ranks.ranks import Ranks
from tppo.types import Prompt

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")
CODE = '''
import dataclasses, os, pathlib, re, sys, signal, helper_beside_it

@dataclasses.dataclass
class Verdict:
    score: float

class Instance:
    def __call__(self, prompt, text):
        return Verdict(0.25).score

instance = Instance()
number = 3

def needs_more(prompt, text, more):
    return 1.0

def score(prompt, text):
    """Does what the text says, or compares it with the truth."""
    match text:
        case "exit": sys.exit("done")
        case "_exit": os._exit(0)
        case "abort": os.abort()
        case "kill": signal.raise_signal(signal.SIGKILL)
        case "loop":
            while True: pass
        case "hold the lock": return re.match("(a+)+$", "a" * 60 + "b")
        case "memory": return len("x" * 2**34)
        case "close everything": os.closerange(0, 300)
        case "raise": raise KeyError("no such column")
        case "interrupt": raise KeyboardInterrupt
        case "socket": __import__("socket").socket()
        case "write": open("/tmp/written", "w")
        case "none": return None
        case "nan": return float("nan")
        case "fields": return float((prompt.id, prompt.tokens, prompt.source) == ("p", (1, 2), "here"))
        case "read": return float(pathlib.Path(__file__).read_text().startswith("\\nimport"))
        case "print": print("x" * 10**6); sys.stdout.close(); return True
    return helper_beside_it.half * (text == prompt.truth)
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("rewards")
    (home / "helper_beside_it.py").write_text("half = 0.5\n")
    (home / "mine.py").write_text(CODE)
    yield home / "mine.py"
    sys.path[:] = [entry for entry in sys.path if entry != str(home)]


@pytest.fixture(scope="module")
def reward(file: Path) -> Iterator[IsolatedReward]:
    reward = IsolatedReward(f"{file}:score", seconds=1.0, memory=2**28)
    assert reward(Prompt("p", (1,), "42"), "42") == 0.5
    yield reward
    reward.close()


def test_it_judges_as_the_same_function_does_here(reward: IsolatedReward, file: Path) -> None:
    here = load(f"{file}:score")
    prompt = Prompt("p", (1, 2), "42", "here")
    for text, score in (("42", 0.5), ("43", 0.0), ("fields", 1.0), ("read", 1.0), ("\ud800 \0", 0.0)):
        assert reward(prompt, text) == here(prompt, text) == score
    assert reward(prompt, "print") == 1.0
    assert load(f"{file}:instance")(prompt, "") == 0.25


@pytest.mark.parametrize(
    ("deed", "verdict"),
    [
        ("exit", "died"), ("_exit", "died"), ("abort", "died"), ("kill", "died"), ("close everything", "died"),
        ("loop", "timeout"), ("hold the lock", "timeout"), ("memory", "memory"),
    ],
)  # fmt: skip
def test_a_call_that_ends_its_process_scores_zero_and_is_counted(
    reward: IsolatedReward, deed: str, verdict: str
) -> None:
    before = reward.counts
    assert reward(Prompt("p", (1,), "x"), deed) == 0.0
    assert reward(Prompt("p", (1,), "x"), "x") == 0.5
    assert {name: count - before[name] for name, count in reward.counts.items() if count != before[name]} == {
        verdict: 1,
        "ok": 1,
    }
    assert reward.slowest > 0


@pytest.mark.parametrize(
    ("deed", "says"),
    [
        ("raise", "KeyError: 'no such column'$"),
        ("interrupt", "KeyboardInterrupt$"),
        ("none", "ValueError: is None: expected a finite number"),
        ("nan", "ValueError: is nan: expected a finite number"),
        ("socket", "PermissionError: socket.* may be called in the run's own process"),
        ("write", "PermissionError: writing files is refused here; a function that is trusted"),
    ],
)
def test_a_function_that_fails_is_an_error_that_names_the_prompt(reward: IsolatedReward, deed: str, says: str) -> None:
    rows = [response(3, [1], reward=None)]
    with pytest.raises(RewardError, match=rf"prompt 'p3', response 3: RewardError: .*mine\.py:score failed: {says}"):
        Grader(reward, lambda tokens: deed, seconds=20, ranks=Ranks()).grade(rows)


def test_a_function_that_never_comes_to_a_score_is_an_error(file: Path) -> None:
    reward = IsolatedReward(f"{file}:score")
    try:
        for _ in range(isolated.PATIENCE - 1):
            assert reward(Prompt("p", (1,)), "_exit") == 0.0
        with pytest.raises(RewardError, match=r"came to no score in 8 calls, .* ended with died \(exit code 0\)"):
            reward(Prompt("p", (1,)), "_exit")
    finally:
        reward.close()


def test_what_it_counts_is_reported_and_nothing_else(reward: IsolatedReward) -> None:
    of_pool = Grader(reward, str, seconds=20, ranks=Ranks()).report()
    assert of_pool == {"verdicts": reward.counts, "slowest_verdict_seconds": reward.slowest}
    assert Grader(lambda prompt, text: 1.0, str, seconds=20, ranks=Ranks()).report() == {}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "expected FILE.py:FUNCTION or module:FUNCTION"),
        ("score", "expected FILE.py:FUNCTION"),
        (":score", "expected FILE.py:FUNCTION"),
        ("mine.py", "expected FILE.py:FUNCTION"),
        ("mine.py:", "expected FILE.py:FUNCTION"),
        ("mine.py:a.b", "expected FILE.py:FUNCTION"),
        ("mine.py:score()", "expected FILE.py:FUNCTION"),
        ("gone.py:score", "there is no file gone.py"),
        (".py:score", r"there is no file \.py"),
        ("/:score", "expected FILE.py:FUNCTION"),
        ("a..b:score", "expected FILE.py:FUNCTION"),
        ("a" * 9000 + ".py:score", "there is no file"),
        ("a\0.py:score", "there is no file"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_before_anything_starts(name: str, says: str) -> None:
    for find in (load, source_of, lambda name, field: IsolatedReward(name, field=field)):
        with pytest.raises(ConfigError, match=says) as caught:
            find(name, "task.reward")  # type: ignore[operator]
        assert caught.value.field == "task.reward"


@pytest.mark.parametrize(
    ("code", "function", "says"),
    [
        ("import no_such_module", "score", "No module named 'no_such_module'"),
        ("def score(:", "score", "SyntaxError"),
        ("raise SystemExit(3)", "score", "SystemExit: 3"),
        ("\0", "score", "SyntaxError|ValueError"),
        (CODE.replace(", helper_beside_it", ""), "gone", "no attribute 'gone'"),
        (CODE.replace(", helper_beside_it", ""), "number", "not a callable object"),
        (CODE.replace(", helper_beside_it", ""), "needs_more", "missing a required argument: 'more'"),
        ("def score(): pass", "score", "too many positional arguments"),
    ],
)
def test_a_function_that_cannot_be_had_is_refused_in_one_line(
    code: str, function: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "other.py").write_text(code)
    for find in (load, IsolatedReward):
        with pytest.raises(ConfigError, match=says) as caught:
            find(f"{tmp_path / 'other.py'}:{function}")
        assert "\n" not in str(caught.value)


def test_imports_that_leave_no_memory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "large.py").write_text("kept = bytearray(2**28)\ndef score(prompt, text): return 1.0\n")
    with pytest.raises(ConfigError, match=r"its imports take \d+ MiB of address space, the limit is 256 MiB"):
        IsolatedReward(f"{tmp_path / 'large.py'}:score", memory=2**28)


def test_the_code_is_found_and_hashed_without_being_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "pack_of_rewards"
    package.mkdir()
    for name in ("__init__", "inner"):
        (package / f"{name}.py").write_text("raise AssertionError('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert source_of("pack_of_rewards:score") == package / "__init__.py"
    assert source_of("pack_of_rewards.inner:score") == package / "inner.py"
    assert source_of(f"{package}/inner.py:score") == package / "inner.py"
    assert source_of("pack_of_rewards.gone:score") is source_of("no_such.module:score") is None
    assert source_of("math:fsum") is None or "math" in str(source_of("math:fsum"))
    before = digest_of("pack_of_rewards.inner:score")
    (package / "inner.py").write_text("")
    assert before != digest_of("pack_of_rewards.inner:score") != digest_of("no_such:score") == ""


def test_a_forked_process_is_refused_and_may_make_its_own(reward: IsolatedReward) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking with threads, which is the point
        child = os.fork()
    if not child:
        try:
            reward(Prompt("p", (1,)), "")
        except SandboxError:
            own = IsolatedReward(reward.name)
            score = own(Prompt("p", (1,), "x"), "x")
            own.close()
            os._exit(0 if score == 0.5 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert reward(Prompt("p", (1,), "x"), "x") == 0.5
