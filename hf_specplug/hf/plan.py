"""The plan of a call: its mode, the reason for it, and the engine."""

from __future__ import annotations

from dataclasses import dataclass, replace

TREE, CHAIN, PLAIN = "tree", "chain", "plain"
_ORDER = (TREE, CHAIN, PLAIN)


@dataclass(frozen=True, slots=True)
class CallPlan:
    """How one `generate` call runs, and on which engine.

    Attributes:
        mode: what one forward pass verifies: "tree", "chain" or "plain" (nothing is drafted).
        reason: why the mode is not "tree"; "" if it is.
        engine: the name of the engine that runs the forward passes.
        widths: tokens per forward pass to which the engine pads trees; None if it does not pad.

    Example:
        >>> CallPlan("tree").limited("chain", "flash attention takes no tree mask").mode
        'chain'
    """

    mode: str = TREE
    reason: str = ""
    engine: str = ""
    widths: tuple[int, ...] | None = None

    def limited(self, mode: str, reason: str) -> CallPlan:
        """Limit the plan to `mode`. A plan that is at least as strict keeps its mode and reason."""
        if _ORDER.index(mode) <= _ORDER.index(self.mode):
            return self
        return replace(self, mode=mode, reason=reason)
