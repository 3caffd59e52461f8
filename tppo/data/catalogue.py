"""Named sources: DAPO-Math-17k for training; AIME 2024, MATH-500, AMC 2023 and GSM8K for evaluation."""

from __future__ import annotations

from pathlib import Path

from tppo.data.sources import BadRows, Columns, DataSource

DAPO_PROMPT = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n{question}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)
"""The instruction that DAPO (arXiv 2503.14476) trains and evaluates with."""
STRICT = BadRows(question="error", answer="error")
"""For evaluation: a problem that goes missing would change the score."""


def dapo_math_17k(path: str | Path | None = None) -> DataSource:
    """DAPO-Math-17k from the hub, or from a downloaded parquet file; its rows are repeated about a hundred times.

    Rows outside DAPO's prompt and questions with several answers are dropped and counted.
    """
    return DataSource(
        name="dapo-math-17k",
        path=None if path is None else str(path),
        hub="BytedTsinghua-SIA/DAPO-Math-17k" if path is None else None,
        columns=Columns("prompt.0.content", "reward_model.ground_truth", "extra_info.index"),
        template=DAPO_PROMPT,
        wrapped_in=DAPO_PROMPT,
        bad_rows=BadRows(wrapper="drop", conflict="drop", repeated_id="drop"),
    )


def aime_2024(path: str | Path) -> DataSource:
    """AIME 2024 as DAPO publishes it (parquet): 30 problems, each 32 times, in DAPO's prompt."""
    return DataSource(
        name="aime-2024",
        path=str(path),
        columns=Columns("prompt.0.content", "reward_model.ground_truth", "extra_info.index"),
        template=DAPO_PROMPT,
        wrapped_in=DAPO_PROMPT,
        bad_rows=STRICT,
    )


def math500(path: str | Path) -> DataSource:
    """MATH-500 (json), questions as conversations. Answers are LaTeX."""
    columns = Columns("prompt.0.value", "final_answer")
    return DataSource(name="math500", path=str(path), columns=columns, template=DAPO_PROMPT, bad_rows=STRICT)


def amc23(path: str | Path) -> DataSource:
    """AMC 2023 (jsonl). Answers are whole numbers, stored as floats."""
    columns = Columns("problem", "answer", "id")
    return DataSource(name="amc23", path=str(path), columns=columns, template=DAPO_PROMPT, bad_rows=STRICT)


def gsm8k(path: str | Path) -> DataSource:
    """GSM8K (jsonl, either split): the final answer follows '####', thousands separators are taken out."""
    return DataSource(
        name="gsm8k",
        path=str(path),
        template=DAPO_PROMPT,
        answer_after="####",
        bare_numbers=True,
        bad_rows=STRICT,
    )
