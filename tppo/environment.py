"""Where and with what a program runs: package versions, git revision, machine; and how it speaks to whoever reads."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any, ParamSpec

from tppo.errors import ConfigError, TPPOError

_PACKAGES = ("tppo", "torch", "transformers", "numpy", "gymnasium", "safetensors")


def environment() -> dict[str, Any]:
    """Versions, git revision, machine."""
    return {
        "packages": versions_of(_PACKAGES),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": git_revision(),
    }


def plugins(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group by name, sorted; nothing is imported."""
    return {e.name: e for e in sorted(entry_points(group=group), key=lambda e: e.name)}


def load_plugin(known: Mapping[str, EntryPoint], what: str, name: str, remedy: str) -> Any:
    """What the entry point of that name leads to. Raises ConfigError on the field ``what`` for an unknown name, and for
    one that cannot be imported: its module is gone, is not on the path of this process, or fails.
    """
    if name not in known:
        raise ConfigError(what, name, "one of " + ", ".join(known), remedy)
    try:
        return known[name].load()
    except TPPOError:
        raise
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise ConfigError(
            what, name, "one that can be imported", f"{known[name].value}: {in_one_line(error)}"
        ) from error


def in_one_line(error: BaseException) -> str:
    """The class of an error and the first line of its text, in characters that can be printed.

    >>> in_one_line(ValueError("one" + chr(10) + "two")), in_one_line(KeyboardInterrupt())
    ('ValueError: one', 'KeyboardInterrupt')
    """
    text = str(error).strip().partition("\n")[0][:500].encode(errors="backslashreplace").decode()
    return type(error).__name__ + (f": {text}" if text else "")


def versions_of(packages: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each package; None for one that is not installed.

    >>> versions_of(["no-such-package"])
    {'no-such-package': None}
    """
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


@functools.cache
def git_revision() -> str | None:
    """The commit that this package was imported from, with "-dirty" where files differ from it; None outside git."""
    where = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=where, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def machine_memory() -> int | None:
    """Bytes of memory that this program may have: the machine's, or less where a container limits it; None: unknown."""
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError, AttributeError):
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" is none
            found.append(int(Path(limit).read_text(encoding="ascii")))
    return min(found)


def warn(text: str) -> None:
    """Print to standard error, on a line of its own beside the progress bar; of several ranks only rank 0 prints."""
    if os.environ.get("RANK", "0") != "0":
        return
    print(f"\ntppo: warning: {text}", file=sys.stderr, flush=True)


class Stream:
    """A standard stream that ends no run. What it cannot take is dropped, from then on all of it; ``failure`` is why.

    A character that its encoding lacks, such as a byte of a file's name that is no text, is written as an escape.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.failure: Exception | None = None

    def write(self, text: str) -> int:
        """Write, or drop."""
        try:
            self._try(self.stream.write, text)
        except UnicodeEncodeError:
            encoding = self.stream.encoding
            self._try(self.stream.write, text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush, or drop."""
        self._try(self.stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _try(self, action: Callable[..., Any], *args: str) -> None:
        try:
            action(*args)
        except UnicodeEncodeError:
            raise
        except (OSError, ValueError) as error:  # ValueError: somebody closed it
            self.failure = self.failure or error
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())  # what is buffered would fail again at the end


P = ParamSpec("P")


def speaking(main: Callable[P, int]) -> Callable[P, int]:
    """The entry point of a program, made safe against its standard streams: closed, full, or with nobody who reads.

    Results are on disk by the time they are printed, so no work is lost by a stream. Standard output that failed is an
    exit status of 1, unless its reader had enough, as ``head`` does.
    """

    @functools.wraps(main)
    def safe(*args: P.args, **kwargs: P.kwargs) -> int:
        _fill_descriptors()
        before = sys.stdout, sys.stderr
        with open(os.devnull, "w") as nowhere:
            out, err = (Stream(nowhere if stream is None else stream) for stream in before)
            sys.stdout, sys.stderr = out, err
            try:
                return main(*args, **kwargs) or _spoken(out)
            except SystemExit as stop:
                raise SystemExit(stop.code or _spoken(out)) from None
            finally:
                out.flush()
                err.flush()
                sys.stdout, sys.stderr = before

    return safe


def _spoken(out: Stream) -> int:
    """The exit status of a program whose work is done and has been said, or could not be."""
    out.flush()
    if out.failure is None or getattr(out.failure, "errno", None) == errno.EPIPE:
        return 0
    print(f"tppo: standard output failed: {out.failure}", file=sys.stderr)
    return 1


def _fill_descriptors() -> None:
    """Open what is closed of the three standard descriptors: a file of the run would get its number, and the output of
    some library would go into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
