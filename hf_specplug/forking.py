"""`os.fork` while threads generate: in the child their calls are over, and no lock is held.

What is registered here is whole in the child, as its lock is waited for before the fork.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol
from weakref import WeakSet

PATIENCE = 1.0
"""Seconds to wait for a lock before a fork; the child gets a new one if it is not to be had."""


class Forked(Protocol):
    """What must know of forks.

    Attributes:
        lock: held while it changes.
    """

    lock: threading.RLock  # type: ignore[valid-type]  # a function, says typeshed

    def after_fork(self) -> None:
        """In the child: of all threads only this one is left."""


lock = threading.RLock()
"""For short changes of what a whole process shares; it is never held in a child."""

_known: WeakSet[Forked] = WeakSet()
_held: list[Forked] = []


def register(thing: Forked) -> None:
    """Call its `after_fork` in children, as long as it is in use."""
    with lock:
        _known.add(thing)


def _before() -> None:
    lock.acquire()
    _held.extend(thing for thing in list(_known) if thing.lock.acquire(timeout=PATIENCE))


def _in_parent() -> None:
    for thing in _held:
        thing.lock.release()
    _held.clear()
    lock.release()


def _in_child() -> None:
    for thing in _known:
        if not any(thing is other for other in _held):
            thing.lock = threading.RLock()
    _in_parent()
    for thing in _known:
        thing.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
