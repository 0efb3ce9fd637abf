"""How a call is run."""

from __future__ import annotations

from dataclasses import dataclass, replace

TREE, CHAIN, PLAIN = "tree", "chain", "plain"
_ORDER = (TREE, CHAIN, PLAIN)


@dataclass(frozen=True, slots=True)
class CallPlan:
    """How one `generate` call is run, and on what.

    Attributes:
        mode: what is verified in a forward pass: "tree", "chain" or "plain" (nothing is drafted).
        reason: why it is not a tree; "" if it is.
        engine: the name of the engine that runs the forward passes.
        widths: tokens per forward pass to which that engine pads trees; None if it does not pad.

    Example:
        >>> CallPlan("tree").limited("chain", "flash attention takes no tree mask").mode
        'chain'
    """

    mode: str = TREE
    reason: str = ""
    engine: str = ""
    widths: tuple[int, ...] | None = None

    def limited(self, mode: str, reason: str) -> CallPlan:
        """The same plan with at most this mode; the reason is that of the first limit."""
        if _ORDER.index(mode) <= _ORDER.index(self.mode):
            return self
        return replace(self, mode=mode, reason=reason)
