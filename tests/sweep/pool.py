"""Worker processes, and the rows that they give."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from tests.sweep.table import ROOT, Row


class Worker:
    """A process that is asked for one row after the other.

    Args:
        verbose: show what it writes to stderr: tracebacks, and what models print.
    """

    def __init__(self, verbose: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.sweep.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if verbose else subprocess.DEVNULL,
            text=True,
        )

    def row(self, mapping: str, name: str) -> Row:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([mapping, name]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker ended at {mapping}/{name}; --verbose shows why")
        return dict(json.loads(answer))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answered(entries: list[tuple[str, str]], jobs: int, verbose: bool) -> Iterator[Row]:
    """The rows of entries, as they come.

    Raises:
        RuntimeError: a worker ended.
    """
    waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for entry in entries:
        waiting.put(entry)

    def work() -> None:
        try:
            with Worker(verbose) as worker:
                while True:
                    done.put(worker.row(*waiting.get_nowait()))
        except queue.Empty:
            pass
        except Exception as problem:
            done.put(problem)

    for _ in range(min(jobs, len(entries))):
        threading.Thread(target=work, daemon=True).start()
    for _ in entries:
        row = done.get()
        if isinstance(row, Exception):
            raise row
        yield row
