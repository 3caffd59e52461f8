"""Reports phases of a run that do not end.

The watchdog only reports. A phase that hangs on a GPU or a network leaves no trace otherwise, and a run that is killed
by a rule of thumb loses more than one that a person looks at.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time

STDERR = 2


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
