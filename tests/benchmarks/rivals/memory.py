"""How much memory something takes, whatever language holds it: by doing it in a process apart."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

_SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(
    r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)\n(?:.*\n)*?Rss: +(\d+) kB\n"
    r"(?:.*\n)*?Anonymous: +(\d+) kB",
    re.MULTILINE,
)


def grown(work: Callable[[], object], folder: Path) -> int | None:
    """Bytes that a process has grown by when it holds what `work` returns; None if not on Linux.

    Counted are memory of its own and what it has read of mapped files in `folder`, and not the code
    of libraries. It is forked from this process, so that what is here already does not count.
    """
    if not _SMAPS.exists():
        return None
    process = multiprocessing.get_context("fork")
    receiver, sender = process.Pipe(duplex=False)
    child = process.Process(target=_measure, args=(work, str(folder), sender))
    child.start()
    sender.close()
    try:
        return int(receiver.recv())
    except EOFError:
        raise RuntimeError("the process whose memory was measured has failed") from None
    finally:
        child.join()


def _measure(work: Callable[[], object], folder: str, sender: Connection) -> None:
    gc.freeze()  # what is here already need not be looked through
    before = _resident(folder)
    kept = work()
    sender.send(max(0, _resident(folder) - before))
    del kept


def _resident(folder: str) -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is no longer taken
    return 1024 * sum(
        int(rss) if path.startswith(folder) else int(anonymous)
        for path, rss, anonymous in _MAPPING.findall(_SMAPS.read_text())
    )
