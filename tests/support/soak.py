"""A run with a checkpoint at every step, in a process of its own: resident memory, open files and folder size by step.

Writes one line of JSON a step to standard output: ``python soak.py FOLDER STEPS``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from tests.support.helpers import small_token_mdp
from tppo.ranks.ranks import Ranks
from tppo.runs.folder import RunFolder
from tppo.runs.run import run


def resident() -> int:
    """Memory of this process [bytes]."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(out: Path, steps: int) -> None:
    """Train and watch."""
    log = RunFolder.log

    def spy(self: RunFolder, metrics: dict[str, Any]) -> None:
        log(self, metrics)
        files = [f for _, _, names in os.walk(out / "checkpoints") for f in names]  # takes it when one vanishes
        record = {
            "step": metrics["step"],
            "resident": resident(),
            "handles": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "files": len(files),
        }
        print(json.dumps(record), flush=True)

    RunFolder.log = spy  # type: ignore[method-assign]
    run(small_token_mdp(steps=steps, checkpoint__every=1), out, Ranks(), progress=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
