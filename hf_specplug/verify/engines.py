"""The engines by name: what runs a call's forward passes, and what is kept from call to call."""

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
    """Makes the engine of each call, and keeps what calls on one model can use again.

    A new engine is a file in `hf_specplug/verify/` with a subclass under `@register_engine`.

    Attributes:
        name: short, unique; the `engine` of a `CallPlan`.
        priority: of the engines that suit a call, the one of highest priority runs it.
        modes: what it runs; another engine takes a call that is limited to anything else.
        widths: tokens per forward pass to which trees are padded; None if they are not.
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
        """The plan, limited to what this engine can verify in this call."""

    @abstractmethod
    def make(
        self, call: Call, plan: CallPlan, packed: PackedLinears | None, layer: int | None
    ) -> Engine:
        """The engine of one call.

        Args:
            packed: the model's weights in a faster layout, if it is to be used.
            layer: whose hidden states drafters need; None if none does.
        """

    def acquire(self) -> bool:
        """Begin a call on this thread; False if other calls leave no room for it."""
        return True

    def release(self) -> None:  # noqa: B027
        """End a call that `acquire` began."""


F = TypeVar("F", bound=type[EngineFactory])
_registry: dict[str, type[EngineFactory]] = {}


def register_engine(cls: F) -> F:
    """Make an engine known by its `name`."""
    _registry[cls.name] = cls
    return cls


@cache
def _import_all() -> None:
    """Once: importing an engine registers it."""
    package = importlib.import_module("hf_specplug.verify")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"hf_specplug.verify.{module.name}")


def make_factories() -> dict[str, EngineFactory]:
    """A new factory of every engine by name, highest priority first."""
    _import_all()
    ordered = sorted(_registry.values(), key=lambda factory: -factory.priority)
    return {factory.name: factory() for factory in ordered}
