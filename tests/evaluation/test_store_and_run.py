"""The folder and the sampling loop with an engine made of random numbers: resuming, torn lines, refusals."""

from __future__ import annotations

import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.support.mutants import mutants
from tppo.engines.sampling import uniforms
from tppo.errors import ConfigError, DataError, TPPOError
from tppo.evaluation.figure import draw_report
from tppo.evaluation.report import read_correct, report_on, write_report
from tppo.evaluation.run import EvalSettings, sample_responses
from tppo.evaluation.store import EvalFolder, Generation, check_evaluation_folder, read_generations
from tppo.types import Continuation, GenerationRequest, Prompt, Sampling

STOP = frozenset({0})
PROMPTS = [Prompt(f"set/{name}", (1, 2), truth=str(i)) for i, name in enumerate("abcde")]
SETTINGS = EvalSettings(k=4, max_new_tokens=9, temperature=1.0, top_p=1.0, seed=3)
MANIFEST: dict[str, Any] = {"settings": {"k": 4, "seed": 3}, "data": {"problems": 5, "path": "x"}}


class NumbersEngine:
    """Tokens from the request's own random numbers; raises at the ``fails_at``-th call."""

    def __init__(self, fails_at: int | None = None, error: BaseException | None = None) -> None:
        self.calls: list[list[int]] = []
        self.fails_at, self.error, self.closed = fails_at, error, False

    def load_policy(self, named_tensors: Any, version: int) -> None:
        raise AssertionError("an evaluation loads no other weights")

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        done: Callable[[Continuation], None] | None = None,
    ) -> list[Continuation]:
        if len(self.calls) == self.fails_at:
            assert self.error is not None
            raise self.error
        self.calls.append([r.uid for r in requests])
        out = []
        for r in requests:
            tokens = [int(4 * u) for u in uniforms(sampling.seed, r.uid, 0, r.max_new_tokens)]
            stop = tokens.index(0) if 0 in tokens else None
            kept = tokens if stop is None else tokens[: stop + 1]
            out.append(Continuation(r.uid, tuple(kept), (0.0,) * len(kept), stop is not None))
        for answer in sorted(out, key=lambda answer: len(answer.tokens)):
            assert done is not None
            done(answer)
        return out

    def score(self, tokens: Sequence[int], first: int) -> list[float]:
        raise AssertionError("nothing to score")

    def close(self) -> None:
        self.closed = True


class EqualGrader:
    def submit(self, prompt: Prompt, text: str) -> Future[float]:
        verdict: Future[float] = Future()
        verdict.set_result(float(f"Answer: {prompt.truth}" in text))
        return verdict


def decode(tokens: Sequence[int]) -> str:
    assert 0 not in tokens  # the stop token is not text
    return f"words \u2028 \u0000 é\nAnswer: {sum(tokens) % 5}" if len(tokens) > 1 else "nothing"


def sample(path: Path, engine: NumbersEngine, *, batch: int = 6, grader: Any = None) -> list[list[Generation]]:
    with EvalFolder(path, MANIFEST, {}) as folder:
        return sample_responses(
            PROMPTS, SETTINGS, folder, open_engine=lambda: engine, stop_ids=STOP, decode=decode,
            grader=grader or EqualGrader(), batch=batch, progress=False,
        )  # fmt: skip


def test_every_problem_gets_k_responses_and_every_line_says_all(tmp_path: Path) -> None:
    engine = NumbersEngine()
    rows = sample(tmp_path / "run", engine)
    assert engine.closed
    assert [len(call) for call in engine.calls] == [6, 6, 6, 2]
    assert len({uid for call in engine.calls for uid in call}) == 20
    assert [[(g.problem, g.sample) for g in row] for row in rows] == [[(p.id, s) for s in range(4)] for p in PROMPTS]
    stored, torn = read_generations(tmp_path / "run")
    assert torn == 0
    assert sorted(map(repr, stored)) == sorted(repr(g) for row in rows for g in row)
    assert {g.finish for g in stored} == {"stop", "length"}
    for g in stored:
        assert (g.finish == "length") == (g.tokens == 9 and not g.text.startswith("nothing"))
        assert (g.answer is None) == (g.text == "nothing")
        assert g.correct == (g.answer == {p.id: p.truth for p in PROMPTS}[g.problem])


@pytest.mark.parametrize("batch", [1, 4, 20, 64])
def test_batch_size_changes_nothing(tmp_path: Path, batch: int) -> None:
    sample(tmp_path / "a", NumbersEngine(), batch=6)
    sample(tmp_path / "b", NumbersEngine(), batch=batch)
    assert (tmp_path / "a/generations.jsonl").read_bytes() == (tmp_path / "b/generations.jsonl").read_bytes()


@pytest.mark.parametrize("cut", [0, 1, 100, 250, 1000, -1, -30])
def test_a_file_cut_anywhere_is_finished_without_repeating_anything(tmp_path: Path, cut: int) -> None:
    sample(tmp_path / "whole", NumbersEngine())
    whole = (tmp_path / "whole/generations.jsonl").read_bytes()
    sample(tmp_path / "cut", NumbersEngine())
    path = tmp_path / "cut/generations.jsonl"
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    with EvalFolder(tmp_path / "cut", MANIFEST, {}) as folder:
        assert len(folder.done) == kept
        assert folder.dropped == len(whole[:cut]) - (whole[:cut].rfind(b"\n") + 1)
    engine = NumbersEngine()
    sample(tmp_path / "cut", engine)
    assert sum(map(len, engine.calls)) == 20 - kept
    assert path.read_bytes() == whole


def test_a_finished_evaluation_opens_no_engine(tmp_path: Path) -> None:
    rows = sample(tmp_path / "run", NumbersEngine())
    engine = NumbersEngine()
    assert sample(tmp_path / "run", engine) == rows
    assert (engine.calls, engine.closed) == ([], False)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("lost the device")])
def test_what_was_generated_is_kept_when_the_engine_fails(tmp_path: Path, error: BaseException) -> None:
    sample(tmp_path / "whole", NumbersEngine())
    engine = NumbersEngine(fails_at=2, error=error)
    with pytest.raises(type(error)):
        sample(tmp_path / "run", engine)
    assert engine.closed
    assert len(read_generations(tmp_path / "run")[0]) == 12
    sample(tmp_path / "run", NumbersEngine())
    assert (tmp_path / "run/generations.jsonl").read_bytes() == (tmp_path / "whole/generations.jsonl").read_bytes()


def test_grading_overlaps_the_next_batch(tmp_path: Path) -> None:
    """No verdict on the first batch before the second is being generated: a loop that waited would hang."""
    second = threading.Event()

    class SecondBatch(NumbersEngine):
        def generate(self, requests: Any, sampling: Any, done: Any = None) -> list[Continuation]:
            if self.calls:
                second.set()
            return super().generate(requests, sampling, done)

    class Patient(EqualGrader):
        def submit(self, prompt: Prompt, text: str) -> Future[float]:
            verdict: Future[float] = Future()

            def wait() -> None:
                verdict.set_result(float(second.wait(20)))

            threading.Thread(target=wait, daemon=True).start()
            return verdict

    rows = sample(tmp_path / "run", SecondBatch(), batch=10, grader=Patient())
    assert all(g.correct for row in rows for g in row)


def test_a_failing_grader_stops_the_run(tmp_path: Path) -> None:
    class Broken(EqualGrader):
        def submit(self, prompt: Prompt, text: str) -> Future[float]:
            verdict: Future[float] = Future()
            verdict.set_exception(OSError("no space left"))
            return verdict

    engine = NumbersEngine()
    with pytest.raises(OSError, match="no space left"):
        sample(tmp_path / "run", engine, batch=2, grader=Broken())
    assert engine.closed
    assert len(engine.calls) <= 2


def test_other_settings_are_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    sample(tmp_path / "run", NumbersEngine())
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    other = {"settings": {"k": 4, "seed": 4, "top_p": 0.7}, "data": {"problems": 5, "path": "elsewhere"}}
    with pytest.raises(ConfigError) as caught:
        check_evaluation_folder(tmp_path / "run", other)
    assert "settings.seed was 3, now 4; settings.top_p was None, now 0.7" in str(caught.value)
    assert "path" not in str(caught.value)  # the same content may lie elsewhere
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="an empty folder or one with an evaluation"):
        check_evaluation_folder(tmp_path / "full", MANIFEST)
    with pytest.raises(ConfigError, match=r"out = .*expected a folder"):
        check_evaluation_folder(tmp_path / "full/notes.txt", MANIFEST)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/eval.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a readable eval\.json"):
        check_evaluation_folder(tmp_path / "bad", MANIFEST)


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with EvalFolder(tmp_path / "run", MANIFEST, {}), pytest.raises(ConfigError, match="no other evaluation writes"):
        EvalFolder(tmp_path / "run", MANIFEST, {})
    EvalFolder(tmp_path / "run", MANIFEST, {}).close()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: [lines[0], "{oops", *lines[1:]], r"line 2: .*expected a generation"),
        (lambda lines: [*lines, lines[0]], r"line 21: 'set/a', sample 0 is there twice"),
        (lambda lines: [lines[0].replace('"tokens": ', '"tokens": "x"+'), *lines[1:]], "line 1"),
        (
            lambda lines: [re.sub(r'"tokens": \d+', '"tokens": "3"', lines[0])],
            "line 1: tokens = .3.: expected a whole",
        ),
        (lambda lines: [lines[0].replace("set/a", "set/z")], "responses that are not asked for.*set/z"),
    ],
)
def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, spoil: Any, message: str) -> None:
    sample(tmp_path / "run", NumbersEngine())
    path = tmp_path / "run/generations.jsonl"
    path.write_text("\n".join(spoil(path.read_text().splitlines())) + "\n")
    before = path.read_bytes()
    with pytest.raises(DataError, match=message):
        sample(tmp_path / "run", NumbersEngine())
    assert path.read_bytes() == before


def test_files_of_a_report(tmp_path: Path) -> None:
    rows = sample(tmp_path / "run", NumbersEngine())
    report = report_on("set", PROMPTS, rows)
    with EvalFolder(tmp_path / "run", MANIFEST, {}) as folder:
        write_report(folder, report)
    draw_report(report, rows, 9, tmp_path / "run/figure.png")
    scores = json.loads((tmp_path / "run/scores.json").read_text())
    assert list(scores["scores"]) == ["avg@4", "pass@2", "pass@4", "maj@2", "maj@4"]
    rates = [sum(g.correct for g in row) / 4 for row in rows]
    assert scores["scores"]["avg@4"]["value"] == pytest.approx(sum(rates) / 5)
    header, *lines = (tmp_path / "run/problems.csv").read_text().splitlines()
    assert header == "id,samples,correct,rate,rate_low,rate_high,truth,majority,mean_tokens,truncated,unanswered"
    assert [line.split(",")[:4] for line in lines] == [
        [p.id, "4", str(round(4 * rate)), f"{rate:.6f}"] for p, rate in zip(PROMPTS, rates, strict=True)
    ]
    assert (tmp_path / "run/figure.png").read_bytes().startswith(b"\x89PNG")
    assert "same problems, new samples" in report.table()
    assert read_correct(tmp_path / "run") == {
        p.id: [g.correct for g in row] for p, row in zip(PROMPTS, rows, strict=True)
    }


def test_one_sample_and_one_problem_can_be_reported(tmp_path: Path) -> None:
    rows = sample(tmp_path / "run", NumbersEngine())
    one_sample = report_on("set", PROMPTS, [row[:1] for row in rows])
    assert "n/i" in one_sample.table()
    assert "from one sample a problem" in one_sample.table()
    one_problem = report_on("set", PROMPTS[:1], rows[:1])
    assert "from one problem" in one_problem.table()
    for name, report, some in (("a", one_sample, [row[:1] for row in rows]), ("b", one_problem, rows[:1])):
        with EvalFolder(tmp_path / name, MANIFEST, {}) as folder:
            write_report(folder, report)
        draw_report(report, some, 9, tmp_path / name / "figure.png")
        assert "NaN" not in (tmp_path / name / "scores.json").read_text()


def test_an_unfinished_evaluation_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        sample(tmp_path / "run", NumbersEngine(fails_at=1, error=RuntimeError("stop")))
    with pytest.raises(DataError, match="holds 6 of 20 responses: expected a finished"):
        read_correct(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"a readable eval\.json"):
        read_correct(tmp_path)


def test_every_mutant_of_an_evaluation_is_read_or_refused(tmp_path: Path) -> None:
    """eval.json and a line of generations.jsonl, each node removed or replaced."""
    sample(tmp_path / "run", NumbersEngine())
    ends = Counter[str]()
    for name in ("eval.json", "generations.jsonl"):
        path = tmp_path / "run" / name
        good = path.read_text()
        first, *rest = [good] if name == "eval.json" else good.splitlines()
        for _, text in mutants(json.loads(first)):
            path.write_text("\n".join([text, *rest]) + "\n")
            try:
                read_correct(tmp_path / "run")
                ends["read"] += 1
            except TPPOError as error:
                ends["refused" if "\n" not in str(error) else "refused at length"] += 1
        path.write_text(good)
    assert ends["refused"] > 60, ends
    assert ends["refused at length"] == 0


@pytest.mark.parametrize("name", ["eval.json", "generations.jsonl"])
def test_an_evaluation_whose_files_are_none(name: str, tmp_path: Path) -> None:
    sample(tmp_path / "run", NumbersEngine())
    (tmp_path / "run" / name).unlink()
    os.mkfifo(tmp_path / "run" / name)
    with pytest.raises(TPPOError, match="regular file"):
        read_correct(tmp_path / "run")
    with pytest.raises(TPPOError, match="regular file"):
        sample(tmp_path / "run", NumbersEngine())
