"""What an evaluation says: scores.json, problems.csv, and the table for the terminal."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np

from tppo.errors import DataError
from tppo.evaluation.paired import Paired
from tppo.evaluation.scores import Ballot, Score, avg_at, maj_at, pass_at, wilson
from tppo.evaluation.store import EvalFolder, Generation, read_generations, read_manifest
from tppo.grading.answers import vote_key
from tppo.ranges import Range
from tppo.shapes import misfit
from tppo.types import Prompt

_COLUMNS = (
    *("id", "samples", "correct", "rate", "rate_low", "rate_high"),
    *("truth", "majority", "mean_tokens", "truncated", "unanswered"),
)


class _Data(TypedDict):
    """Of the problems of an evaluation."""

    problems: Annotated[int, Range(1)]


class _Settings(TypedDict):
    """Of its sampling."""

    k: Annotated[int, Range(1)]


class _Manifest(TypedDict):
    """eval.json, as far as a comparison reads it."""

    data: _Data
    settings: _Settings


@dataclass(frozen=True)
class ProblemResult:
    """One problem: how many of its samples are right, and what was answered."""

    problem: str
    """Its id."""
    samples: int
    correct: int
    """Samples that are right."""
    rate: float
    """Share of samples that are right."""
    interval: tuple[float, float]
    """Wilson's 95% interval of that rate."""
    truth: str
    """The reference answer, as ``vote_key`` writes it."""
    majority: tuple[str, ...]
    """The most frequent answers (several in a tie), as ``vote_key`` writes them."""
    length: float
    """Mean of its responses [tokens]."""
    truncated: float
    """Share of samples that hit the cap."""
    unanswered: float
    """Share of samples that hold no answer."""


@dataclass(frozen=True)
class EvalReport:
    """An evaluation in numbers."""

    name: str
    """Of the data."""
    samples: int
    """Responses to each problem."""
    scores: tuple[Score, ...]
    """avg@k, then pass@j and maj@j for j = 2, 4, 8, ... and k."""
    problems: tuple[ProblemResult, ...]
    """In the order of the data."""
    mean_length: float
    """Of all responses [tokens]."""
    longest: int
    """Of all responses [tokens]."""
    truncated: float
    """Share of responses that hit the cap."""
    unanswered: float
    """Share of responses that hold no answer."""

    def summary(self) -> dict[str, Any]:
        """The content of scores.json: the same bytes for the same generations."""
        rest = {k: getattr(self, k) for k in ("mean_length", "longest", "truncated", "unanswered")}
        scores = {s.name: {k: v for k, v in dataclasses.asdict(s).items() if k != "name"} for s in self.scores}
        return {"data": self.name, "problems": len(self.problems), "samples": self.samples, "scores": scores, **rest}

    def table(self) -> str:
        """For the terminal."""
        responses = len(self.problems) * self.samples
        lines = [
            f"{self.name}: {len(self.problems)} problems x {self.samples} samples = {responses} responses, "
            f"mean length {self.mean_length:.0f} tokens, longest {self.longest}, "
            f"{self.truncated:.1%} cut at the cap, {self.unanswered:.1%} without an answer",
            f"{'':<10}{'':>8}  {'--- same problems, new samples ---':<34}  {'--- new problems, new samples ---':<34}",
            f"{'score':<10}{'value':>8}  {'SE':>8}   {'95% interval':<23}  {'SE':>8}   {'95% interval':<23}",
        ]
        for s in self.scores:
            lines.append(
                f"{s.name:<10}{s.value:>8.4f}  {_number(s.se_sampling):>8}   {_interval(s.interval_sampling):<23}  "
                f"{_number(s.se_total):>8}   {_interval(s.interval_total):<23}".rstrip()
            )
        if math.isnan(self.scores[0].se_sampling):
            lines.append("n/i: not identifiable from one sample a problem")
        if math.isnan(self.scores[0].se_total):
            lines.append("n/i: not identifiable from one problem")
        return "\n".join(lines)

    def csv(self) -> str:
        """The content of problems.csv, a line a problem in the order of the data."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for p in self.problems:
            low, high = (f"{x:.6f}" for x in p.interval)
            shares = (f"{p.length:.2f}", f"{p.truncated:.6f}", f"{p.unanswered:.6f}")
            row = (p.problem, p.samples, p.correct, f"{p.rate:.6f}", low, high, p.truth, " | ".join(p.majority))
            writer.writerow([*row, *shares])
        return out.getvalue()


def _number(value: float) -> str:
    return "n/i" if math.isnan(value) else f"{value:.4f}"


def _interval(ends: tuple[float, float]) -> str:
    return "n/i" if math.isnan(ends[0]) else f"[{ends[0]:.4f}, {ends[1]:.4f}]"


def correct_table(responses: Sequence[Sequence[Generation]]) -> np.ndarray:
    """bool [P, N]."""
    return np.array([[g.correct for g in row] for row in responses], dtype=bool)


def report_on(name: str, prompts: Sequence[Prompt], responses: Sequence[Sequence[Generation]]) -> EvalReport:
    """Score responses [problem][sample]. Random numbers, for the error of maj@k, are seeded with zero."""
    correct_PN = correct_table(responses)
    answers = [[g.answer for g in row] for row in responses]
    k = correct_PN.shape[1]
    several = [j for j in (2**i for i in range(1, 20)) if j < k] + ([k] if k > 1 else [])
    scores = [avg_at(correct_PN), *(pass_at(correct_PN, j) for j in several)]
    scores += [maj_at(correct_PN, answers, j) for j in several]
    lengths = [g.tokens for row in responses for g in row]
    problems = tuple(_problem(prompt, row) for prompt, row in zip(prompts, responses, strict=True))
    return EvalReport(
        name=name,
        samples=k,
        scores=tuple(scores),
        problems=problems,
        mean_length=float(np.mean(lengths)),
        longest=max(lengths),
        truncated=float(np.mean([p.truncated for p in problems])),
        unanswered=float(np.mean([p.unanswered for p in problems])),
    )


def _problem(prompt: Prompt, row: Sequence[Generation]) -> ProblemResult:
    correct = sum(g.correct for g in row)
    ballot = Ballot.of([g.correct for g in row], [g.answer for g in row])
    return ProblemResult(
        problem=prompt.id,
        samples=len(row),
        correct=correct,
        rate=correct / len(row),
        interval=wilson(correct / len(row), len(row)),
        truth=vote_key(prompt.truth),
        majority=tuple(ballot.winners()),
        length=float(np.mean([g.tokens for g in row])),
        truncated=float(np.mean([g.finish == "length" for g in row])),
        unanswered=float(np.mean([g.answer is None for g in row])),
    )


def write_report(folder: EvalFolder, report: EvalReport) -> None:
    """scores.json and problems.csv; the figure is drawn by ``tppo.evaluation.figure``."""
    folder.write_json("scores.json", report.summary())
    folder.write_text("problems.csv", report.csv())


def read_correct(folder: Path) -> dict[str, list[bool]]:
    """Problem id to whether each sample is right, of a finished evaluation. Raises DataError for an unfinished one."""
    manifest = read_manifest(folder)
    generations, torn = read_generations(folder)
    found: dict[str, list[tuple[int, bool]]] = {}
    for g in generations:
        found.setdefault(g.problem, []).append((g.sample, g.correct))
    if wrong := misfit(_Manifest, manifest):
        raise DataError(f"{folder}: its manifest does not say how many responses it has: {wrong}")
    expected = manifest["data"]["problems"], manifest["settings"]["k"]
    if torn or len(found) != expected[0] or any(len(row) != expected[1] for row in found.values()):
        raise DataError(
            f"{folder} holds {len(generations)} of {expected[0] * expected[1]} responses: expected a finished "
            "evaluation; run it again with its own settings to finish it"
        )
    return {problem: [right for _, right in sorted(row)] for problem, row in found.items()}


def paired_table(paired: Paired, name_a: str, name_b: str) -> str:
    """For the terminal."""
    how = f"all {paired.patterns}" if paired.exact else f"{paired.patterns} random"
    same, new = _interval(paired.interval_sampling), _interval(paired.interval_total)
    unequal = sum(d != 0 for d in paired.differences)
    return "\n".join(
        [
            f"A = {name_a}: {paired.mean_a:.4f}",
            f"B = {name_b}: {paired.mean_b:.4f}",
            f"A - B, paired over {len(paired.problems)} problems, {unequal} of which differ: {paired.difference:+.4f}",
            f"  same problems, new samples: SE {_number(paired.se_sampling)}, 95% {same}",
            f"  new problems, new samples:  SE {_number(paired.se_total)}, 95% {new}",
            f"  p = {paired.p_value:.4g} that swapping the runs on any problem changes nothing ({how} sign patterns)",
        ]
    )


def paired_dict(paired: Paired, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """The content of comparison.json."""
    figures = dataclasses.asdict(paired)
    figures["differences"] = dict(zip(figures.pop("problems"), figures["differences"], strict=True))
    return {"a": dict(a), "b": dict(b), **figures}
