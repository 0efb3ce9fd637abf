"""Compile the kernels ahead of the first call, on synthetic text, in a background process.

numba compiles a kernel at its first call, and caches the machine code on disk for all later
processes. Without precompilation, the first call after installation would take longer by the whole
compile time. `start` therefore runs the same kernels in a second process, in reverse order. A call
that begins in the meantime compiles in forward order, and each of the two processes finds in the
cache what the other has compiled. Neither waits for the other.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from hf_specplug.drafters.contract import (
    TOP_K,
    Context,
    Drafter,
    Frontier,
    Int32,
    Noise,
    Step,
    TopK,
)
from hf_specplug.drafters.registry import create
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.kernels import compile_cache, store_tables
from hf_specplug.kernels import tree as kernels
from hf_specplug.kernels.tally import tally
from hf_specplug.kernels.topk import top_k
from hf_specplug.tree import DraftTree

_VOCAB = 32
_PROMPT, _ANSWER = 40, 700  # tokens; enough for the drafters' tables to grow
_LONGEST = 120  # seconds that the background process may take; what it has compiled is kept


class CompileProcess(subprocess.Popen[bytes]):
    """A process that is deliberately never waited for."""

    def __del__(self) -> None:
        pass  # the base class warns if the process is still running


_processes: list[CompileProcess] = []


def built_in(drafters: Iterable[Drafter]) -> list[str]:
    """The names of the built-in drafters; nothing is known about what other drafters would do."""
    own = "hf_specplug.drafters."
    return [drafter.name for drafter in drafters if type(drafter).__module__.startswith(own)]


def rehearse(names: Sequence[str], backwards: bool = False) -> None:
    """Run every kernel that drafting uses, in the order of a call.

    Args:
        names: names of built-in drafters, in the order of the call.
        backwards: run the kernels in reverse order.
    """
    runs: list[Callable[[], None]] = [partial(_run_drafter, drafter) for drafter in create(names)]
    runs += [_run_top_k, partial(_run_search, [])]
    if not set(store_tables.DRAFTERS).isdisjoint(names):
        runs.append(partial(_run_search, create(["trigram"])))
    for run in reversed(runs) if backwards else runs:
        run()


def start(names: Sequence[str]) -> None:
    """Start the background process, unless the cache is complete, being filled or unavailable.

    Args:
        names: names of built-in drafters, in the order of the call.
    """
    _processes[:] = [process for process in _processes if process.poll() is None]
    mark = compile_cache.mark(names)
    if mark is None or mark.exists() or _is_busy(mark) or not _is_python():
        return
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        "from hf_specplug.drafting import precompile; precompile.main()"
    )
    # without memory or processes left, the call compiles the kernels itself
    with contextlib.suppress(OSError):
        process = CompileProcess(
            [sys.executable, "-c", code, *names],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C must not reach it
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        _processes.append(process)


def main() -> None:
    """Entry point of the background process: `sys.argv[1:]` are names of drafters."""
    names = sys.argv[1:]
    if hasattr(os, "nice"):
        os.nice(10)
        signal.alarm(_LONGEST)
    mark = compile_cache.mark(names)
    if mark is None:
        return
    with _alone(mark) as alone:
        if alone:
            rehearse(names, backwards=True)
            mark.touch()


def _is_python() -> bool:
    """Whether the executable is a Python interpreter, not a program that embeds one."""
    name = Path(sys.executable or "").name.lower()
    return name.startswith(("python", "pypy")) and not getattr(sys, "frozen", False)


def _lock(mark: Path) -> Path:
    return mark.with_suffix(".lock")


def _is_busy(mark: Path) -> bool:
    """Whether a process holds the lock; a lock older than `_LONGEST` seconds is ignored."""
    with contextlib.suppress(OSError):
        return time.time() - _lock(mark).stat().st_mtime < _LONGEST
    return False


@contextlib.contextmanager
def _alone(mark: Path) -> Iterator[bool]:
    """Hold the lock inside the block; yields False if another process holds it."""
    lock = _lock(mark)
    if not _is_busy(mark):
        lock.unlink(missing_ok=True)
    try:
        lock.touch(exist_ok=False)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        lock.unlink(missing_ok=True)


class _Constant(Drafter):
    """Proposes the same token at every node, to run the kernels of the search."""

    name: ClassVar[str] = "guess"

    def __init__(self) -> None:
        self.priors = np.array([0.5], np.float32)

    def expand(self, frontier: Frontier) -> Int32:
        return np.array([[node, 1, 0] for node in frontier.nodes.tolist()], np.int32)


def _run_search(others: Sequence[Drafter]) -> None:
    drafters = [_Constant(), *others]
    search = TreeSearch(drafters, Mixer([drafter.name for drafter in drafters]), _VOCAB, _fail)
    search.begin(Context([], _VOCAB))
    tree = search.grow(0, 4, 3, noise=_noise())
    tree.ancestors()
    search.learn(np.ones(2, np.int32))
    bins, by_drafter = np.zeros((3, 1)), np.zeros((2, 1), np.int64)
    tally(tree.parents, tree.probs, tree.sources, np.zeros(1, np.int32), bins, by_drafter)


def _fail(drafter: Drafter, error: Exception) -> None:
    raise error


def _run_top_k() -> None:
    top_k(np.zeros((2, _VOCAB), np.float32), TOP_K)


def _run_drafter(drafter: Drafter) -> None:
    """Run a drafter on a prompt, a long answer, a tree of two tokens, and the verified step."""
    text = np.arange(_PROMPT, dtype=np.int32) % 7
    answer = np.arange(_ANSWER, dtype=np.int32) % 11
    context = Context(text, _VOCAB)
    drafter.begin(context)
    context.append(answer)
    drafter.observe(Step.of_text(text, 0, [], answer, _topk(_PROMPT)))
    tree = DraftTree(
        np.array([1, 2], np.int32),
        np.array([-1, 0], np.int32),
        np.full(2, 0.5, np.float32),
        np.ones(2, np.uint16),
    )
    pool = np.zeros((3, kernels.COLUMNS), np.int32)
    pool[1:, kernels.TOKEN] = tree.tokens
    pool[1:, kernels.PARENT] = tree.parents + 1
    pool[1:, kernels.DEPTH] = 1, 2
    nodes = np.arange(3, dtype=np.int32)
    pool.flags.writeable = nodes.flags.writeable = False
    root = context.last
    drafter.expand(Frontier(nodes, pool, root, _noise()))
    before = len(context) - 1
    context.append([1])
    drafter.observe(Step.of_tree(root, tree, before, [0], [1], _topk(1 + len(tree))))


def _topk(rows: int) -> TopK:
    ids = np.tile(np.arange(TOP_K, dtype=np.int32), (rows, 1))
    return TopK(ids, np.full((rows, TOP_K), 1 / TOP_K, np.float32))


def _noise() -> Noise:
    return np.full((2, _VOCAB), 0.5), 0
