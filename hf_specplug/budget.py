"""How large a draft may be."""

from __future__ import annotations

from hf_specplug.errors import OptionError

MAX_NODES = 1024

# A node is worth checking while its chance to be accepted exceeds its share of the step's time. On
# two CPU cores the time of a step grows by a few percent per token, on an accelerator that waits
# for launches or memory hardly at all. (nodes, least path probability) by kind of device:
_AUTO = {"cpu": (16, 0.06), "cuda": (64, 0.004)}


class Budget:
    """The number of tokens in one forward pass, the last accepted one included.

    Args:
        nodes: "auto", or a fixed number of tokens per forward pass (1: no draft), for measurements.
        device: the target's kind of device, "cpu" or "cuda", ...

    Raises:
        OptionError: `nodes` is neither "auto" nor an int in [1, 1024].

    Example:
        >>> Budget(32, "cpu").size()
        (31, 0.0)
    """

    def __init__(self, nodes: int | str, device: str) -> None:
        check_nodes(nodes)
        if isinstance(nodes, str):
            width, self._floor = _AUTO.get(device, _AUTO["cuda"])
        else:
            width, self._floor = nodes, 0.0
        self._limit = width - 1

    def size(self) -> tuple[int, float]:
        """(drafted tokens at most, least path probability) for the next step."""
        return self._limit, self._floor


def check_nodes(nodes: int | str) -> None:
    """Raise OptionError unless `nodes` is "auto" or an int in [1, 1024]."""
    if nodes == "auto":
        return
    if not isinstance(nodes, int) or isinstance(nodes, bool) or not 1 <= nodes <= MAX_NODES:
        raise OptionError(
            f'nodes must be "auto" or a number from 1 (no draft) to {MAX_NODES}, not {nodes!r}'
        )
