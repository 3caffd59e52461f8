"""What happens to a run from outside: a signal that asks it to end, and phases that do not end.

The watchdog only speaks. A phase that hangs on a GPU or a network leaves no trace otherwise, and a run that is killed
by a rule of thumb loses more than one that is looked at.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

STDERR = 2
ECHO_SECONDS = 10.0
"""Under torchrun, a second SIGTERM within this time is an echo of the first."""


class Watchdog:
    """Reports, with the stack of every thread, a phase that takes longer than ``limit`` seconds; None watches nothing.

    Each thread has a phase of its own. A phase is reported again each time the time it took has doubled.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._phases: dict[int, tuple[str, float, float]] = {}  # thread: (phase, since, next report)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if limit is not None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def enter(self, phase: str | None) -> None:
        """This thread begins a phase, or with None ends one."""
        with self._lock:
            if phase is None:
                self._phases.pop(threading.get_ident(), None)
            else:
                now = time.monotonic()
                self._phases[threading.get_ident()] = (phase, now, now + (self.limit or 0.0))

    def close(self) -> None:
        """End the watch."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        assert self.limit is not None
        while not self._closed.wait(min(max(self.limit / 4, 0.005), 5.0)):
            now = time.monotonic()
            with self._lock:
                late = [(t, phase, since) for t, (phase, since, due) in self._phases.items() if now >= due]
                for thread, phase, since in late:
                    self._phases[thread] = (phase, since, since + 2 * (now - since))
            for _, phase, since in late:
                self._report(phase, now - since)

    def _report(self, phase: str, seconds: float) -> None:
        text = (
            f"\ntppo: warning: phase '{phase}' has taken {seconds:.1f} s, more than phase_limit_seconds "
            f"({self.limit:g}). The run goes on; this is where its threads are:\n"
        )
        with contextlib.suppress(OSError):
            os.write(STDERR, text.encode())
            faulthandler.dump_traceback(file=STDERR, all_threads=True)


class Termination:
    """While open, the first SIGTERM sets ``requested`` and the second ends the process at once with status 143.

    Does nothing outside the main thread, where Python has no signals.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._before: Any = None
        self._installed = False

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._before if self._before is not None else signal.SIG_DFL)

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        if self.requested:
            # torchrun passes the signal on to processes that a scheduler has told already: that is not a second one.
            if "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self._since < ECHO_SECONDS:
                return
            os._exit(128 + signal.SIGTERM)
        self.requested, self._since = True, time.monotonic()
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
            os.write(
                STDERR, b"\ntppo: SIGTERM: a checkpoint is saved when this step ends; a second SIGTERM ends at once\n"
            )
