"""The checkpoints of a run: written in the background, the newest and the best kept, the newest sound one found."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tppo.config.run import CheckpointOptions, RunConfig
from tppo.environment import warn
from tppo.errors import CheckpointError, ConfigError, DataError, FormatError
from tppo.files import flush, partial_path
from tppo.ranks.ranks import Ranks
from tppo.ranks.shard import quiet_torch
from tppo.runs.checkpoint import files
from tppo.runs.checkpoint.contents import changed_fields, changed_packages, leaf_names
from tppo.runs.checkpoint.files import step_of
from tppo.runs.checkpoint.stored import Checkpoint, check_checkpoint

FOLDER = "checkpoints"
_REMEDIES = {
    errno.ENOSPC: "free disk space, or keep fewer (checkpoint.keep, checkpoint.keep_best)",
    errno.EDQUOT: "raise the quota, or keep fewer (checkpoint.keep, checkpoint.keep_best)",
    errno.EROFS: "make the folder writable again",
    errno.EACCES: "make the folder writable again",
    errno.EPERM: "make the folder writable again",
}
Watch = Callable[[str | None], None]


class CheckpointStore:
    """Writes one checkpoint at a time, in a thread; the run waits only for the copy, and for the one before.

    A checkpoint that cannot be written is reported with the remedy, and the run goes on: the ones before it stay.
    """

    def __init__(
        self,
        run: Path,
        options: CheckpointOptions,
        ranks: Ranks,
        *,
        watch: Watch,
        report: Callable[[str], None] = warn,
    ) -> None:
        self.root, self.options, self.watch, self.report = run / FOLDER, options, watch, report
        self.saved_step: int | None = None
        self.written = self.failed = 0
        self.ranks = ranks.background  # the writing thread has messages of its own
        self._thread: threading.Thread | None = None
        self._bug: BaseException | None = None

    def open(self) -> None:
        """Make the folder, try to write in it, and clear what an earlier process left half done.

        Raises ConfigError when nothing can be written there.
        """
        self.ranks.lead(self._try_folder)

    def _try_folder(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / ".tmp-probe"
            probe.write_bytes(b"tppo")
            flush(probe)
            for path in [*self.root.glob(".tmp-*"), *self.root.glob(".old-*")]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise _unwritable(self.root, error) from None

    def save(self, contents: files.Contents, *, now: bool = False) -> None:
        """Start writing; returns at once unless the one before is still being written. With ``now`` it is on the disk
        when this returns, or ConfigError is raised.
        """
        self.wait()
        quiet_torch()
        if now:
            try:
                return self.write(contents)
            except OSError as error:
                raise _unwritable(self.root, error) from None
        self.saved_step = contents.step
        self._thread = threading.Thread(target=self._run, args=(contents,), name="checkpoint-writer")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._bug is not None:
            bug, self._bug = self._bug, None
            raise bug

    def write(self, contents: files.Contents) -> None:
        """Write now, all ranks together. Raises OSError, with what was begun removed and what was there untouched."""
        name = files.folder_name(contents.step)
        scratch = self.ranks.broadcast(self.root / f".tmp-{name}-{os.getpid()}")
        try:
            self.watch("checkpoint_write")
            files.write(scratch, contents, self.ranks)
            self.watch("checkpoint_rename")
            self.ranks.lead(lambda: files.publish(scratch, self.root / name))
        except BaseException:
            if self.ranks.main:
                shutil.rmtree(scratch, ignore_errors=True)
            self.watch(None)
            raise
        self.saved_step = contents.step
        self.written += 1
        self.watch("checkpoint_prune")
        try:
            if self.ranks.main:
                self._prune(contents.step)
        except OSError as error:
            self.report(f"older checkpoints were not removed ({error.strerror or error}): {_remedy(error)}")
        finally:
            self.watch(None)

    def _run(self, contents: files.Contents) -> None:
        self.ranks.on_own_device()
        try:
            self.write(contents)
        except OSError as error:
            self.failed += 1
            self.saved_step = None
            steps = [step for step, _ in listed(self.root)]
            last = f"the newest is of step {steps[0]}" if steps else "there is none yet"
            self.report(
                f"the checkpoint of step {contents.step} was not written ({error.strerror or error}): "
                f"{_remedy(error)}. Training goes on; {last}"
            )
        except BaseException as error:  # a mistake of ours: raised where the run can see it
            self._bug = error

    def _prune(self, newest: int) -> None:
        steps = [step for step, _ in listed(self.root) if step <= newest]
        rates = []
        for step in steps:
            with contextlib.suppress(CheckpointError, FormatError):
                manifest = files.read_manifest(self.root / files.folder_name(step))
                if manifest["solve_rate"] is not None:
                    rates.append((manifest["solve_rate"], step))
        best = [step for _, step in sorted(rates, reverse=True)[: self.options.keep_best]]
        for step in set(steps) - set(steps[: self.options.keep]) - set(best):
            files.discard(self.root / files.folder_name(step))


@dataclass(frozen=True)
class Choice:
    """Where a run goes on."""

    checkpoint: Path | None
    """None: it starts."""
    skipped: tuple[str, ...] = ()
    """Why newer checkpoints cannot be used, newest first."""
    aside: tuple[Path, ...] = ()
    """Newer folders that it does not go on from."""
    changed: tuple[str, ...] = ()
    """Fields that differ from the stored configuration, all of them allowed."""
    packages: tuple[str, ...] = ()
    """Packages of other versions than the checkpoint was made with, in words."""
    started: str = ""
    """When the run was started, as the checkpoint has it; empty where it has not."""


def choose(out: Path, which: str, config: RunConfig, allow: Sequence[str] = ()) -> Choice:
    """Where ``--resume`` goes on. ``which`` is 'auto' or the folder of one checkpoint of this run.

    'auto' takes the newest sound checkpoint and starts afresh only where no run has left anything. It never goes back
    behind a sound checkpoint because the configuration changed: that is refused, with the fields. Raises ConfigError,
    CheckpointError, FormatError where nothing is wrong but the format.
    """
    if which == "auto":
        folders = [path for _, path in listed(out / FOLDER)]
        if not folders:
            return _start(out)
    else:
        first = Path(which)
        if step_of(first.name) is None or not _lies_in(first, out / FOLDER):
            raise ConfigError("resume", which, f"'auto' or a folder in {out / FOLDER}, such as {files.folder_name(20)}")
        folders = [first]
    skipped: list[DataError] = []
    for path in folders:
        try:
            found = check_checkpoint(path)
            changed = _allowed_changes(found, config, allow)
        except (CheckpointError, FormatError) as error:
            skipped.append(error)
            continue
        newer = tuple(other for step, other in listed(out / FOLDER) if step > found.manifest["step"])
        packages = tuple(changed_packages(found.state["environment"]))
        return Choice(
            path,
            tuple(map(str, skipped)),
            newer,
            tuple(changed),
            packages,
            str(found.state["config"].get("started", "")),
        )
    raise _unusable(f"no checkpoint in {out / FOLDER} can be used; nothing was changed\n  ", skipped)


def newest(where: Path) -> Path:
    """A checkpoint: ``where`` itself, or the newest sound one of the run in it.

    Raises ConfigError, CheckpointError, FormatError where nothing is wrong but the format.
    """
    folders = [path for _, path in listed(where / FOLDER)] or [where]
    if not os.path.isdir(folders[0]):  # of a name that is none too, where Path raises
        raise ConfigError("checkpoint", str(where), "the folder of a checkpoint, or of a run that has one")
    problems: list[DataError] = []
    for path in folders:
        try:
            check_checkpoint(path)
            return path
        except (CheckpointError, FormatError) as error:
            problems.append(error)
    raise _unusable("", problems)


def _unusable(begin: str, problems: Sequence[DataError]) -> DataError:
    kind = FormatError if all(isinstance(p, FormatError) for p in problems) else CheckpointError
    return kind(begin + "\n  ".join(map(str, problems)))


def listed(root: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every folder that has a checkpoint's name, newest first; none where nothing can be listed."""
    try:
        names = os.listdir(root)
    except (OSError, ValueError):
        return []
    steps = sorted((step for name in names if (step := step_of(name)) is not None), reverse=True)
    return [(step, path) for step in steps if os.path.isdir(path := root / files.folder_name(step))]


def set_aside(paths: Sequence[Path]) -> None:
    """Take checkpoints that the run does not go on from out of the way; they are kept."""
    for path in paths:
        for n in range(1, 10_000):
            target = path.with_name(f"skipped-{path.name}-{n}")
            if not target.exists():
                path.rename(target)
                break


def _start(out: Path) -> Choice:
    """Nothing to go on from: allowed where a run was ended before its first checkpoint was written, or never began."""
    metrics = out / "metrics.jsonl"
    begun = metrics.is_file() and not metrics.stat().st_size
    left = {p.name for p in out.iterdir()} if out.is_dir() else set()
    early = {metrics.name, "config.json", partial_path(out / "config.json").name, FOLDER}
    if left - (early if begun else set()):
        raise ConfigError(
            "resume",
            "auto",
            f"checkpoints in {out}, or an empty folder",
            "choose another folder, or move this one away",
        )
    return Choice(None)


def _lies_in(folder: Path, home: Path) -> bool:
    try:
        return os.path.isdir(folder) and os.path.samefile(folder.parent, home)
    except (OSError, ValueError):
        return False


def _allowed_changes(found: Checkpoint, config: RunConfig, allow: Sequence[str]) -> list[str]:
    known = leaf_names(config)
    for a in allow:
        if not any(name == a or name.startswith(f"{a}.") for name in known):
            raise ConfigError("allow-change", a, "a field, such as steps, or a part, such as evaluation")
    changed = changed_fields(found.state["config"], config)
    refused = [name for name in changed if not any(name == a or name.startswith(f"{a}.") for a in allow)]
    if refused:
        raise ConfigError(
            "resume", str(found.folder), f"the run's own configuration, but these fields changed: {', '.join(refused)}",
            f"set them back, or allow it: --allow-change {','.join(refused)}",
        )  # fmt: skip
    return changed


def _remedy(error: OSError) -> str:
    return _REMEDIES.get(error.errno or 0, "look after the disk")


def _unwritable(root: Path, error: OSError) -> ConfigError:
    remedy = f"{error.strerror or error}; {_remedy(error)}, or turn checkpoints off with checkpoint.every = 0"
    return ConfigError("out", str(root), "a folder that checkpoints can be written to", remedy)
