"""SIGTERM asks a run to end: the step is finished, a checkpoint is saved, and the process ends."""

from __future__ import annotations

import contextlib
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
