"""Kernels compiled ahead of the first call: on a made-up text, in a process of their own.

numba compiles a kernel when it is first called, and keeps the machine code on disk for all later
processes. The first call after installing would take the longer by all of it. So `start` lets a
second process run the same kernels, the last ones first: a call that begins meanwhile compiles
from the other end, and each finds what the other has done. Nobody waits for anybody.
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
from hf_specplug.kernels import compile_cache
from hf_specplug.kernels import tree as kernels
from hf_specplug.kernels.topk import top_k
from hf_specplug.tree import DraftTree

_VOCAB = 32
_PROMPT, _ANSWER = 40, 700  # tokens; so many that tables grow
_LONGEST = 120  # seconds that the other process may take; what it has compiled by then is kept


class _Process(subprocess.Popen[bytes]):
    """Nobody waits for it, and that is no mistake."""

    def __del__(self) -> None:
        pass


_processes: list[_Process] = []


def built_in(drafters: Iterable[Drafter]) -> list[str]:
    """The names of those that can be rehearsed: nothing is known of what others would do."""
    own = "hf_specplug.drafters."
    return [drafter.name for drafter in drafters if type(drafter).__module__.startswith(own)]


def rehearse(names: Sequence[str], backwards: bool = False) -> None:
    """Run every kernel that drafting takes, as a call does.

    Args:
        names: of built-in drafters, in the order of the call.
        backwards: begin with what a call needs last.
    """
    acts: list[Callable[[], None]] = [partial(_drafter, drafter) for drafter in create(names)]
    acts += [_outputs, _search]
    for act in reversed(acts) if backwards else acts:
        act()


def start(names: Sequence[str]) -> None:
    """Let another process rehearse, unless this machine's cache is filled or cannot be."""
    _processes[:] = [process for process in _processes if process.poll() is None]
    mark = compile_cache.mark(names)
    if mark is None or mark.exists() or _is_busy(mark) or not _is_python():
        return
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        "from hf_specplug.drafting import precompile; precompile.main()"
    )
    with contextlib.suppress(OSError):  # no memory, no processes: the call compiles by itself
        process = _Process(
            [sys.executable, "-c", code, *names],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        _processes.append(process)


def main() -> None:
    """The other process: the arguments are names of drafters."""
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
    """Whether the executable is an interpreter, and no program that has one built in."""
    name = Path(sys.executable or "").name.lower()
    return name.startswith(("python", "pypy")) and not getattr(sys, "frozen", False)


def _lock(mark: Path) -> Path:
    return mark.with_suffix(".lock")


def _is_busy(mark: Path) -> bool:
    """Whether a process is at it; one that was killed is forgotten after a while."""
    with contextlib.suppress(OSError):
        return time.time() - _lock(mark).stat().st_mtime < _LONGEST
    return False


@contextlib.contextmanager
def _alone(mark: Path) -> Iterator[bool]:
    """Hold the lock; False if another process does."""
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


class _Guess(Drafter):
    """Names one token everywhere: the search is rehearsed, not a drafter."""

    name: ClassVar[str] = "guess"

    def __init__(self) -> None:
        self.priors = np.array([0.5], np.float32)

    def expand(self, frontier: Frontier) -> Int32:
        return np.array([[node, 1, 0] for node in frontier.nodes.tolist()], np.int32)


def _search() -> None:
    drafter = _Guess()
    search = TreeSearch([drafter], Mixer([drafter.name]), _VOCAB, _fail)
    search.grow(0, 4, 3, noise=_noise()).ancestors()
    search.learn(np.ones(2, np.int32))


def _fail(drafter: Drafter, error: Exception) -> None:
    raise error


def _outputs() -> None:
    top_k(np.zeros((2, _VOCAB), np.float32), TOP_K)


def _drafter(drafter: Drafter) -> None:
    """A prompt, a long answer, a tree of two tokens, and what came of it."""
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
