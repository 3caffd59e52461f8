"""Ranks as torchrun would start them, but forked from one process that has everything imported: it takes seconds.

Reads one JSON command a line: ``ranks``; ``argv`` of ``tests.support.worker``; ``output``: file for what they say.
Answers with the largest exit status.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
from typing import Any

from tests.support.worker import work


def rank_main(rank: int, port: int, command: dict[str, Any]) -> int:
    """One rank, in a process of its own, with the variables that torchrun sets."""
    output = os.open(command["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(command["ranks"]),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    return work(command["argv"])


def fork(rank: int, port: int, command: dict[str, Any]) -> int:
    """Start a rank; its process id."""
    if pid := os.fork():
        return pid
    status = 70
    try:
        status = rank_main(rank, port, command)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(command: dict[str, Any]) -> int:
    """All ranks; those that are left when one fails are ended, as torchrun does."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    alive = {fork(rank, port, command) for rank in range(command["ranks"])}
    worst = 0
    while alive:
        pid, status = os.wait()
        alive.discard(pid)
        if code := os.waitstatus_to_exitcode(status):
            worst = worst or code
            for other in alive:
                os.kill(other, signal.SIGTERM)
    return worst


if __name__ == "__main__":
    for module in ("transformers.models.qwen2.modeling_qwen2", "paper_repro.recipes.small", "tppo.runs.run"):
        importlib.import_module(module)
    print("ready", flush=True)
    for line in sys.stdin:
        print(run(json.loads(line)), flush=True)
