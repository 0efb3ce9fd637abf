"""A process that has everything imported, and forks another for each entry that it is asked for.

    echo '["causal", "llama"]' | python -m tests.sweep.worker

An entry is a line of JSON, and so is the row that comes back. A crash, a hang or a memory leak
costs the one entry only.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

SECONDS = int(os.environ.get("SWEEP_SECONDS", "120"))
GIGABYTES = 4


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what models print is not an answer
    _warm()
    for line in sys.stdin:
        answers.write(json.dumps(forked(*json.loads(line))) + "\n")
        answers.flush()


def _warm() -> None:
    """Import and compile what all entries need, once."""
    warnings.simplefilter("ignore")
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    from tests.sweep.compare import check

    check("causal", "llama")


def forked(mapping: str, name: str) -> dict[str, Any]:
    """The row of an entry, made in a process of its own."""
    from tests.sweep.compare import Row

    start = time.monotonic()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        _child(mapping, name, os.fdopen(write, "w"))
    os.close(write)
    said, late = b"", False
    while True:
        left = start + SECONDS - time.monotonic()
        late = left <= 0 or not select.select([read], [], [], left)[0]
        some = b"" if late else os.read(read, 1 << 16)
        if not some:
            break
        said += some
    os.close(read)
    if late:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    lines = said.decode().splitlines()
    if lines and lines[-1].startswith("{"):
        return dict(json.loads(lines[-1]))
    stage = lines[-1] if lines else "start"
    how = f"no end after {SECONDS} s" if late else f"ended with status {status}"
    row = Row(mapping, name, outcome="not built" if stage in ("start", "build") else "crash")
    row.reason, row.seconds = f"{stage}: {how}", round(time.monotonic() - start, 2)
    return asdict(row)


def _child(mapping: str, name: str, answers: Any) -> None:
    from tests.sweep.compare import check

    def say(what: str) -> None:
        print(what, file=answers, flush=True)

    faulthandler.enable()
    _limit_memory()
    try:
        row = check(mapping, name, say)
        say(json.dumps(asdict(row)))
    finally:
        os._exit(0)


def _limit_memory() -> None:
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (GIGABYTES << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
