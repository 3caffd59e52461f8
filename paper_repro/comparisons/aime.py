"""Evaluate a language model on AIME 2024 or other mathematics, as T-PPO, VAPO and DAPO do.

python -m paper_repro.comparisons.aime --model smollm2-135m --engine vllm --k 2 --max-new-tokens 512 \\
    --data dapo_aime_2024.parquet --out evaluations/smollm2

Every response goes to OUT/generations.jsonl. The same command again goes on where it stopped, however it was stopped;
with other settings it is refused. OUT/scores.json, problems.csv and figure.png are the results.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from paper_repro.models.known import model_folder
from tppo.config.run import VllmOptions
from tppo.data.catalogue import DAPO_PROMPT, STRICT, aime_2024, amc23, gsm8k, math500
from tppo.data.sources import Columns, DataSource
from tppo.errors import ConfigError, DataError, TPPOError
from tppo.evaluation.run import EvalSettings
from tppo.ranges import PROBLEMS, RESPONSES, SECONDS, WORKERS, Range, check_ranges

SOURCES: dict[str, Callable[[str | Path], DataSource]] = {
    "aime_2024": aime_2024,
    "math500": math500,
    "amc23": amc23,
    "gsm8k": gsm8k,
}


@dataclass(frozen=True)
class EvalCommand:
    """Which model, which problems, how it is sampled, where the results go."""

    model: str
    """'smollm2-135m', a model folder, a name on the hub, or 'shrunken:NAME' for a small random model."""
    data: str
    """A .parquet, .json or .jsonl file with the problems of ``source``."""
    out: Path
    """Folder of the results: new, empty, or one with the same evaluation, which then goes on."""
    settings: tyro.conf.OmitArgPrefixes[EvalSettings] = field(default_factory=EvalSettings)
    source: Literal["aime_2024", "math500", "amc23", "gsm8k", "file"] = "aime_2024"
    """How the file is read; 'file' has the columns named by ``question`` and ``answer``."""
    question: str = "question"
    """Column of the question, for source 'file'."""
    answer: str = "answer"
    """Column of the answer, for source 'file'."""
    limit: Annotated[int, Range(1, PROBLEMS, unit="problems")] | None = None
    """Only the first so many problems."""
    compare: Path | None = None
    """Folder of another finished evaluation of the same problems, to compare with."""
    engine: Literal["torch", "vllm"] = "torch"
    """The embedded engine, or vLLM."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights and cache."""
    device: str = "auto"
    """Of the embedded engine: auto, cpu or a CUDA device."""
    batch: Annotated[int, Range(1, RESPONSES, unit="responses")] = 64
    """Responses generated, graded and written together. More keep a GPU busy, fewer lose less when killed."""
    workers: Annotated[int, Range(1, WORKERS, unit="processes")] = 1
    """Processes that judge answers."""
    grader_seconds: Annotated[float, Range(0, SECONDS, above=True, unit="s")] = 30.0
    """Limit of one verdict; a text that takes longer is wrong and is counted. Generous: it is wall time."""
    vllm: VllmOptions = field(default_factory=VllmOptions)
    chat: bool = True
    """Ask through the model's chat template; False is plain text, the question in its template alone."""
    started: str = ""
    """Date, in ISO 8601, for chat templates that write today's; empty is that of the run that trained the model, or of
    this evaluation's start."""
    quiet: bool = False
    """No progress bar."""

    def data_source(self) -> DataSource:
        """How the problems are read."""
        if self.source == "file":
            columns = Columns(self.question, self.answer)
            name = Path(self.data).stem
            source = DataSource(name=name, path=self.data, columns=columns, template=DAPO_PROMPT, bad_rows=STRICT)
        else:
            source = SOURCES[self.source](self.data)
        return dataclasses.replace(source, limit=self.limit)


def evaluate(command: EvalCommand) -> dict[str, Any]:
    """Run an evaluation, or what is left of it, and write its results. Returns the content of scores.json.

    Everything that can be wrong with the command is raised, as ConfigError or DataError, before weights are loaded.
    """
    from tppo.data.chat import check_moment
    from tppo.data.problems import load_problems
    from tppo.environment import environment
    from tppo.evaluation import model, report
    from tppo.evaluation.figure import draw_report
    from tppo.evaluation.run import prompts_digest, sample_responses
    from tppo.evaluation.store import EvalFolder, check_evaluation_folder, moment_of
    from tppo.grading.mathematics import MathReward
    from tppo.grading.verdict import REASONS

    check_ranges(command)
    check_moment("started", command.started)
    if command.vllm.dtype != "auto":
        raise ConfigError("vllm.dtype", command.vllm.dtype, "'auto' in an evaluation", "use --dtype, for both engines")
    other = None if command.compare is None else report.read_correct(command.compare)
    source = command.data_source()
    loaded = load_problems(source)
    _say(command, str(loaded))
    if other is not None and set(other) != {problem.id for problem in loaded.problems}:
        raise ConfigError("compare", str(command.compare), f"an evaluation of the problems in {source.where}")
    folder = model_folder(command.model)
    cap = command.settings.max_new_tokens
    started = command.started or moment_of(command.out)
    asked = model.Asked(
        folder, loaded.problems, source.template, max_new_tokens=cap, plain=not command.chat, moment=started
    )
    manifest = {
        "settings": dataclasses.asdict(command.settings),
        "engine": {
            "name": command.engine,
            "dtype": command.dtype,
            "tensor_parallel": command.vllm.tensor_parallel if command.engine == "vllm" else 1,
        },
        "model": {"name": command.model, **model.fingerprint(folder)},
        "data": {
            "name": source.name,
            "path": str(Path(command.data).resolve()),
            "problems": len(asked.prompts),
            "prompts_sha256": prompts_digest(asked.prompts),
        },
        "stop_ids": sorted(asked.stop_ids),
        "started": asked.moment,
        "versions": model.package_versions(command.engine),
    }
    check_evaluation_folder(command.out, manifest)
    with (
        MathReward(
            [problem.answer for problem in loaded.problems], workers=command.workers, seconds=command.grader_seconds
        ) as grader,
        EvalFolder(command.out, manifest, environment()) as results,
    ):
        if results.dropped:
            _say(command, f"dropped a torn last line of {results.dropped} bytes; its response is generated again")
        if results.done:
            total = len(asked.prompts) * command.settings.k
            _say(command, f"{len(results.done)} of {total} responses are already there")
        responses = sample_responses(
            asked.prompts,
            command.settings,
            results,
            open_engine=lambda: model.open_engine(
                command.engine,
                folder,
                dtype=command.dtype,
                device=command.device,
                seed=command.settings.seed,
                rows=command.batch,
                options=command.vllm,
                longest=asked.longest + cap,
            ),
            stop_ids=asked.stop_ids,
            decode=asked.decode,
            grader=grader,
            batch=command.batch,
            progress=not command.quiet,
        )
        ends = {verdict: n for verdict, n in grader.counts.items() if n and verdict != "ok"}
        if unclear := {verdict: n for verdict, n in ends.items() if verdict in REASONS}:
            _say(command, f"responses without one clear answer, counted as wrong: {unclear}")
        if failed := {verdict: n for verdict, n in ends.items() if verdict not in REASONS}:
            _say(command, f"texts that the grader gave up on, counted as wrong: {failed}")
        found = report.report_on(source.name, asked.prompts, responses)
        report.write_report(results, found)
        draw_report(found, responses, command.settings.max_new_tokens, command.out / "figure.png")
        print(found.table())
        if other is not None and command.compare is not None:
            _compare(command, results, other)
    return found.summary()


def _compare(command: EvalCommand, results: Any, other: dict[str, list[bool]]) -> None:
    from tppo.evaluation.figure import draw_comparison
    from tppo.evaluation.paired import compare
    from tppo.evaluation.report import paired_dict, paired_table, read_correct

    assert command.compare is not None
    paired = compare(read_correct(command.out), other)
    names = str(command.out), str(command.compare)
    print(paired_table(paired, *names))
    results.write_json("comparison.json", paired_dict(paired, {"folder": names[0]}, {"folder": names[1]}))
    draw_comparison(paired, *names, command.out / "comparison.png")


def _say(command: EvalCommand, text: str) -> None:
    if not command.quiet:
        print(text, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 1 (it failed), 2 (bad input), 130 (interrupted)."""
    command = tyro.cli(EvalCommand, args=argv, prog="python -m paper_repro.comparisons.aime", description=__doc__)
    try:
        evaluate(command)
    except (ConfigError, DataError) as error:
        print(f"eval_aime: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eval_aime: interrupted; the same command goes on", file=sys.stderr)
        return 130
    except TPPOError as error:
        print(f"eval_aime: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    names = "generations.jsonl, scores.json, problems.csv, figure.png"
    print(f"written to {command.out}: {names}" + (", comparison.json, comparison.png" if command.compare else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
