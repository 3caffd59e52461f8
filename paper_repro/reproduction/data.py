"""Problems for a reproduction: read once from files or the hub, checked, written as two plain files that every rank
reads in a second."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper_repro.tasks.pretrained import MathDataTask
from tppo.data.catalogue import DAPO_PROMPT, STRICT, aime_2024, dapo_math_17k
from tppo.data.problems import Problem, check_overlap, load_problems
from tppo.data.sources import SLOT, DataSource
from tppo.errors import ConfigError
from tppo.files import sha256_of_file

TRAIN, HELD_OUT, REPORT = "train.jsonl", "held_out.jsonl", "report.txt"
FILES = {"train": "dapo-math-17k", "held_out": "aime-2024"}
AIME_HUB = "BytedTsinghua-SIA/AIME-2024"
Sources = tuple[DataSource, DataSource]


def find_sources(folder: Path | None) -> Sources:
    """(training, held out): dapo-math-17k and aime-2024 (.parquet or .jsonl) in ``folder``, or from the hub when it is
    None. Raises ConfigError that names the missing file.
    """
    if folder is None:
        return dapo_math_17k(), dataclasses.replace(aime_2024("-"), path=None, hub=AIME_HUB)
    found = []
    for name in FILES.values():
        paths = [
            folder / f"{name}{suffix}" for suffix in (".parquet", ".jsonl") if (folder / f"{name}{suffix}").exists()
        ]
        if len(paths) != 1:
            wanted = f"one of {name}.parquet and {name}.jsonl in it, as BytedTsinghua-SIA publishes them on the hub"
            raise ConfigError("data", str(folder), wanted, "download them, or leave --data out to read the hub")
        found.append(paths[0])
    return dapo_math_17k(found[0]), aime_2024(found[1])


def made_sources(folder: Path) -> Sources:
    """A few sums in the format of the real files, for a dry run; written into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, first in ((FILES["train"], 0), (FILES["held_out"], 100)):
        rows = [
            {
                "prompt": [{"role": "user", "content": DAPO_PROMPT.replace(SLOT, f"What is ${a} + {a % 7}$?")}],
                "reward_model": {"ground_truth": str(a + a % 7)},
                "extra_info": {"index": f"sum-{a}"},
            }
            for a in range(first, first + 16)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return find_sources(folder)


def inputs_of(sources: Sources, on_overlap: str) -> dict[str, Any]:
    """What decides the staged files: how each source is read, and the bytes of its file. Raises ConfigError."""
    inputs: dict[str, Any] = {"on_overlap": on_overlap}
    for name, source in zip(FILES, sources, strict=True):
        read = {key: value for key, value in dataclasses.asdict(source).items() if key != "path"}
        inputs[name] = json.loads(json.dumps(read)) | {"sha256": None if source.path is None else _sha256(source.path)}
    return inputs


def stage(sources: Sources, task: MathDataTask, folder: Path) -> dict[str, Any]:
    """Write the problems that are left after all checks, and what was found. Returns counts and hashes.

    Raises ConfigError and DataError as loading does.
    """
    train, held_out = (load_problems(source) for source in sources)
    overlap = check_overlap(train.problems, held_out.problems, task.on_overlap)
    (folder / REPORT).write_text(f"{train}\n{held_out}\n{overlap}\n", encoding="utf-8")
    counts = {}
    for name, problems in ((TRAIN, overlap.train), (HELD_OUT, held_out.problems)):
        _write(folder / name, problems)
        counts[name] = {"problems": len(problems), "sha256": _sha256(folder / name)}
    return counts


def staged(task: MathDataTask, folder: Path) -> MathDataTask:
    """The task on staged files; prompts are those of the original sources."""
    train, held_out = (
        DataSource(name=name, path=str(folder / file), template=DAPO_PROMPT, bad_rows=STRICT)
        for name, file in zip(FILES.values(), (TRAIN, HELD_OUT), strict=True)
    )
    columns = dataclasses.replace(train.columns, id="id")
    return dataclasses.replace(
        task,
        train=dataclasses.replace(train, columns=columns),
        held_out=dataclasses.replace(held_out, columns=columns),
    )


def _write(path: Path, problems: Sequence[Problem]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for p in problems:
            row = {"id": p.id.removeprefix(f"{p.source}/"), "question": p.question, "answer": p.answer}
            file.write(json.dumps(row) + "\n")


def _sha256(path: str | Path) -> str:
    try:
        return sha256_of_file(Path(path))
    except OSError as error:
        raise ConfigError("data", str(path), "a file that can be read", str(error)) from None
