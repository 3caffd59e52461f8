"""Studies: a question, a run that answers it, and what the run leaves on disk.

A study is a module with a `Study`, found through the entry points ``tppo.studies`` of any package:

    STUDY = Study(name="bias", chapter="exact", question="How biased is ...?", run=run)

    def run(options: StudyOptions, progress: Ticks) -> StudyResult:
        rows = progress.map(one_part, parts)    # in order, in as many processes as asked for
        ...

`run_study` writes four files, all or none: ``data.csv`` (every row), ``figure.png``, ``findings.md`` (question, answer
and limits, with the numbers of this run) and ``study.json`` (options, versions, git revision, seconds).

Nothing here imports torch. A study is deterministic given its options, whatever the number of jobs: parts are returned
in the order they were given, and all of them compute on one thread.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

from tppo.environment import environment, load_plugin, plugins
from tppo.errors import ConfigError
from tppo.files import writing_to
from tppo.ranges import WORKERS, Range, check_leaf
from tppo.studies.folder import Chapter, check_study_folder, swap, write_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUP = "tppo.studies"

Row = Mapping[str, str | int | float | bool | None]
Part = TypeVar("Part")
Done = TypeVar("Done")


@dataclass(frozen=True)
class StudyOptions:
    """What a study is told."""

    full: bool = False  # larger tables, more seeds: as long as it takes
    seeds: int = 0  # independent repetitions; the study's own number unless asked otherwise, 0 for exact studies
    seed: int = 0  # where the seeds begin
    jobs: int = 1  # processes of `Ticks.map`; never changes a result


@dataclass(frozen=True)
class StudyResult:
    """What a study found. No number in the texts is typed by hand: all are formatted from the rows of this run.

    In the texts, `code` between backticks and **bold** between double stars are understood; nothing else.
    """

    rows: Sequence[Row]  # of data.csv; the keys of the first row are the columns, of which others may lack some
    figure: Figure  # from `tppo.figures.new_figure`
    caption: str  # what the figure shows; also its text for those who cannot see it
    answer: str  # two sentences: the answer, with numbers and their intervals
    details: Sequence[str] = ()  # further findings, one a bullet
    limits: Sequence[str] = ()  # where the answer stops holding, one a bullet; at least one


@dataclass(frozen=True)
class Study:
    """A question and the run that answers it."""

    name: str  # that of the entry point and of the folder
    chapter: Chapter  # where it stands on the page
    question: str  # one sentence
    run: Callable[[StudyOptions, Ticks], StudyResult]
    seeds: int = 0  # default number of repetitions; 0: exact, nothing to repeat
    full_seeds: int = 0  # the same with --full; 0: no more than `seeds`


class Ticks:
    """Runs the parts of a study, in as many processes as asked for, and ticks them off on a bar on stderr."""

    def __init__(self, name: str = "", *, jobs: int = 1, show: bool = False) -> None:
        self.name, self.jobs, self.show = name, jobs, show

    def map(self, function: Callable[[Part], Done], parts: Sequence[Part], unit: str = "part") -> list[Done]:
        """function(part) for every part, in order. With several jobs `function` and the parts travel by pickle.

        The error of a part is raised here, and parts that have not begun are given up.

        >>> Ticks().map(abs, [-1, 2])
        [1, 2]
        """
        bar: Any = self._bar(len(parts), unit)
        with bar, one_thread():
            if self.jobs == 1 or len(parts) < 2:
                return [self._advance(bar, function(part)) for part in parts]
            # Spawned, not forked: a fork of a process with threads may hang.
            pool = ProcessPoolExecutor(min(self.jobs, len(parts)), mp_context=get_context("spawn"))
            try:
                return [self._advance(bar, done) for done in pool.map(function, parts)]
            finally:
                pool.shutdown(cancel_futures=True)

    def track(self, parts: Sequence[Part], unit: str = "part") -> Iterator[Part]:
        """The parts one after the other, in this process."""
        bar: Any = self._bar(len(parts), unit)
        with bar, one_thread():
            for part in parts:
                yield part
                bar.update()

    def _bar(self, total: int, unit: str) -> Any:
        from tqdm import tqdm

        return tqdm(total=total, desc=self.name, unit=unit, disable=not self.show, file=sys.stderr, dynamic_ncols=True)

    @staticmethod
    def _advance(bar: Any, done: Done) -> Done:
        bar.update()
        return done


def study_entry_points() -> dict[str, EntryPoint]:
    """Name to entry point, sorted; nothing is imported."""
    return plugins(GROUP)


def load_study(name: str) -> Study:
    """The study of that name. Raises ConfigError for an unknown one, and for one that cannot be imported."""
    study = load_plugin(study_entry_points(), "study", name, "see 'tppo study list'")
    if not isinstance(study, Study) or study.name != name or study.chapter not in get_args(Chapter):
        raise ConfigError(
            "study", name, f"a tppo.studies.study.Study named {name!r} at {study_entry_points()[name].value}"
        )
    return study


def resolve(
    study: Study, *, full: bool = False, seeds: int | None = None, seed: int = 0, jobs: int = 1
) -> StudyOptions:
    """The options of a run. Raises ConfigError for what cannot be meant."""
    for field, value, allowed in (
        ("jobs", jobs, Range(1, WORKERS, unit="processes")), ("seed", seed, Range(0, 2**31 - 1)),
        ("seeds", seeds, Range(1, 10_000)),
    ):  # fmt: skip
        check_leaf(field, Annotated[int, allowed] | None, value)
    if seeds is not None and not study.seeds:
        raise ConfigError("seeds", seeds, f"no number, for {study.name!r} is exact", "leave --seeds out")
    if seeds is None:
        seeds = max(study.seeds, study.full_seeds if full else 0)
    return StudyOptions(full=full, seeds=seeds, seed=seed, jobs=jobs)


def run_study(
    study: Study, options: StudyOptions, out: Path, *, force: bool = False, show: bool = False
) -> StudyResult:
    """Run and write the folder `out`, whole or not at all; an earlier run there is replaced with `force` only."""
    check_study_folder(out, study.name, force=force)
    with writing_to(out):
        out = out.resolve()  # a folder of its own beside it, whatever links lead there
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".tppo-study-", dir=out.parent))
    try:
        began = time.perf_counter()
        result = study.run(options, Ticks(study.name, jobs=options.jobs, show=show))
        _check_result(study, result)
        record = _record(study, options, result, time.perf_counter() - began)
        write_files(partial, result.rows, result.figure, findings(study, result), record)
        check_study_folder(out, study.name, force=force)  # it may have changed meanwhile
        with writing_to(out):
            partial.chmod(0o755)
            swap(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return result


def findings(study: Study, result: StudyResult) -> str:
    """findings.md."""
    lines = [f"# {study.question}", result.answer, f"![{result.caption}](figure.png)", result.caption]
    lines += ["\n".join(f"- {item}" for item in result.details)] if result.details else []
    lines += ["## Limits", "\n".join(f"- {item}" for item in result.limits)]
    return "\n\n".join(lines) + "\n"


def _record(study: Study, options: StudyOptions, result: StudyResult, seconds: float) -> dict[str, Any]:
    """study.json."""
    return {
        "name": study.name, "chapter": study.chapter, "question": study.question, "answer": result.answer,
        "details": list(result.details), "limits": list(result.limits), "caption": result.caption,
        "options": asdict(options), "seconds": round(seconds, 1), "environment": environment(),
    }  # fmt: skip


def _check_result(study: Study, result: StudyResult) -> None:
    """A study that breaks the protocol is a bug; say so before anything is written."""
    columns = list(result.rows[0]) if result.rows else []
    stray = {key for row in result.rows for key in row} - set(columns)
    if not columns or stray or not result.limits or not result.answer or not result.caption:
        raise ValueError(
            f"study {study.name!r}: found {len(result.rows)} rows, columns missing from the first {sorted(stray)}, "
            f"{len(result.limits)} limits; expected rows, an answer, a caption and at least one limit."
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for numpy and torch, here and in spawned processes: same bits on any machine, no crowding.

    A library reads these variables when it is imported: enter before the first import of numpy.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    torch: Any = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else None
    os.environ.update(dict.fromkeys(names, "1"))
    if torch:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if torch:
            torch.set_num_threads(threads)
