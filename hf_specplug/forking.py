"""Support for `os.fork` while threads generate: the child has no such calls and no held locks.

Registered objects are in a consistent state in the child, because the fork waits for their locks.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol
from weakref import WeakSet

PATIENCE = 1.0
"""Seconds to wait for a lock before a fork. If the wait fails, the child gets a new lock."""


class Forked(Protocol):
    """An object that has to be notified of forks.

    Attributes:
        lock: held while the object changes.
    """

    lock: threading.RLock  # type: ignore[valid-type]  # typeshed declares a function

    def after_fork(self) -> None:
        """Called in the child, where only the forking thread is left."""


lock = threading.RLock()
"""Guards short changes of process-wide state; it is never held in a child."""

_registered: WeakSet[Forked] = WeakSet()
_held: list[Forked] = []


def register(obj: Forked) -> None:
    """Call `obj.after_fork` in forked children for as long as `obj` exists."""
    with lock:
        _registered.add(obj)


def _before() -> None:
    lock.acquire()
    _held.extend(obj for obj in list(_registered) if obj.lock.acquire(timeout=PATIENCE))


def _in_parent() -> None:
    for obj in _held:
        obj.lock.release()
    _held.clear()
    lock.release()


def _in_child() -> None:
    for obj in _registered:
        if not any(obj is other for other in _held):
            obj.lock = threading.RLock()
    _in_parent()
    for obj in _registered:
        obj.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
