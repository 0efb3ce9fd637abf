"""Registry of engines: a factory per engine makes the engine of each call and keeps its caches."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from functools import cache
from typing import ClassVar, TypeVar

from hf_specplug.hf.call import Call
from hf_specplug.hf.plan import CHAIN, PLAIN, TREE, CallPlan
from hf_specplug.verify.engine import Engine
from hf_specplug.verify.packed import PackedLinears


class EngineFactory(ABC):
    """Makes the engine of each call, and keeps what later calls on the same model can reuse.

    To add an engine, add a file to `hf_specplug/verify/` with a subclass decorated with
    `@register_engine`.

    Attributes:
        name: short and unique; the `engine` of a `CallPlan`.
        priority: among the engines that suit a call, the one with the highest priority runs it.
        modes: the modes that the engine runs; a call limited to another mode gets another engine.
        widths: padded widths of trees in tokens per forward pass; None if trees are not padded.
    """

    name: ClassVar[str]
    priority: ClassVar[int] = 0
    modes: ClassVar[tuple[str, ...]] = (TREE, CHAIN, PLAIN)
    widths: ClassVar[tuple[int, ...] | None] = None

    @abstractmethod
    def suits(self, call: Call, plan: CallPlan) -> bool:
        """Whether this engine should run a call that may be verified as `plan` says."""

    @abstractmethod
    def limit(self, call: Call, plan: CallPlan) -> CallPlan:
        """Limit a plan to what this engine can verify in this call."""

    @abstractmethod
    def make(
        self, call: Call, plan: CallPlan, packed: PackedLinears | None, layer: int | None
    ) -> Engine:
        """Make the engine of one call.

        Args:
            call: the call as `generate` prepared it.
            plan: how the call is verified.
            packed: the model's packed weights; None to use the plain weights.
            layer: the layer whose hidden states drafters need; None if no drafter needs any.
        """

    def acquire(self) -> bool:
        """Begin a call on this thread; False if concurrent calls occupy the engine."""
        return True

    def release(self) -> None:  # noqa: B027
        """End a call that `acquire` began."""


F = TypeVar("F", bound=type[EngineFactory])
REGISTERED: dict[str, type[EngineFactory]] = {}
"""What has been registered so far; `make_factories()` imports the rest first."""


def register_engine(cls: F) -> F:
    """Class decorator that registers an engine under its `name`."""
    REGISTERED[cls.name] = cls
    return cls


@cache
def _import_all() -> None:
    """Import all engines, once. Importing an engine registers it."""
    package = importlib.import_module("hf_specplug.verify")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"hf_specplug.verify.{module.name}")


def make_factories() -> dict[str, EngineFactory]:
    """A new factory for every engine, by name, highest priority first."""
    _import_all()
    ordered = sorted(REGISTERED.values(), key=lambda factory: -factory.priority)
    return {factory.name: factory() for factory in ordered}
