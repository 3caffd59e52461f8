r"""How answers are judged: wrong verdicts on published truths in many layouts, and verdicts per second.

    python -m tests.benchmarks.bench_judging FOLDER [TABLE]

FOLDER holds math500.json, gsm8k_test.jsonl, amc23.jsonl and dapo_aime_2024.parquet. Every truth is written in every
layout of `tests.support.layouts`, and so is every answer that differs from it. TABLE, a Markdown file, is written when
it is named; it holds numbers alone.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from pathlib import Path

from tests.support.layouts import layouts, other_answers

Counts = Counter[tuple[str, str, str]]


def truths(folder: Path) -> dict[str, list[str]]:
    """The different truths of each set of problems."""
    import pyarrow.parquet

    aime = pyarrow.parquet.read_table(folder / "dapo_aime_2024.parquet", columns=["reward_model"]).to_pylist()
    lines = {n: map(json.loads, (folder / n).read_text().splitlines()) for n in ("gsm8k_test.jsonl", "amc23.jsonl")}
    found = {
        "MATH-500": [row["final_answer"] for row in json.loads((folder / "math500.json").read_text())],
        "GSM8K": [row["answer"].rpartition("####")[2].strip() for row in lines["gsm8k_test.jsonl"]],
        "AMC 2023": [f"{row['answer']:.0f}" for row in lines["amc23.jsonl"]],
        "AIME 2024": [row["reward_model"]["ground_truth"] for row in aime],
    }
    return {name: list(dict.fromkeys(answers)) for name, answers in found.items()}


def measure(folder: Path) -> tuple[Counts, list[tuple[str, str, float]]]:
    """Counts by (data set, layout, what), and what was judged wrongly: truth, response, score."""
    from tppo.grading.mathematics import grade_math

    logging.disable(logging.CRITICAL)
    counts, bad = Counts(), list[tuple[str, str, float]]()
    for name, answers in truths(folder).items():
        for truth in answers:
            same = [(layout, text, 1.0) for layout, text in layouts(truth).items()]
            others = list(other_answers(truth).values())
            same += [(layout, text, 0.0) for other in others for layout, text in layouts(other).items()]
            for layout, text, right in same:
                counts[name, layout, "right" if right else "wrong"] += 1
                if (score := grade_math(truth, text)) != right:
                    counts[name, layout, "missed" if right else "let through"] += 1
                    bad.append((truth, text, score))
    return counts, bad


def table(counts: Counts, seconds: float) -> str:
    """The Markdown table: layouts down, data sets across."""
    names = list(dict.fromkeys(name for name, _, _ in counts))
    total = {
        what: sum(n for (_, _, w), n in counts.items() if w == what)
        for what in ("right", "missed", "wrong", "let through")
    }
    lines = [
        "# Judging of published truths in many layouts",
        "",
        "Made by `python -m tests.benchmarks.bench_judging`. Each cell: right answers missed / right answers,",
        "wrong answers let through / wrong answers. Wrong answers are the truth with its first number one more, its",
        "other sign, a tenth of it, or another word.",
        "",
        f"Right answers missed: {total['missed']} of {total['right']:,}. Wrong answers let through: "
        f"{total['let through']} of {total['wrong']:,}. "
        f"{sum(total.values()) / seconds:,.0f} verdicts a second of processor time, in one process.",
        "",
        "| layout | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for layout in dict.fromkeys(layout for _, layout, _ in counts):
        cells = []
        for name in names:
            right, missed, wrong, let = (
                counts[name, layout, what] for what in ("right", "missed", "wrong", "let through")
            )
            cells.append(f"{missed} / {right}, {let} / {wrong}" if right + wrong else "")
        lines.append(f"| {layout} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(folder: Path, out: Path | None) -> int:
    """Print what was judged wrongly and write the table; 1 when anything was."""
    began = time.process_time()
    counts, bad = measure(folder)
    found = table(counts, time.process_time() - began)
    for truth, text, score in bad[:200]:
        print(f"{score:.0f} for {text!r}, truth {truth!r}")
    print("\n".join(found.splitlines()[:9]))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(found)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
