"""Groups: the rows of a batch that have the same prompt."""

from __future__ import annotations

from hashlib import blake2b

from hf_specplug.drafters.contract import Int32


def group_of(prompt: Int32) -> int:
    """A hash of a prompt int32[n], in [1, 2^64): the same in every process; see `Context.group`.

    Example:
        >>> group_of(np.array([5, 6], np.int32)) == group_of(np.array([5, 6], np.int32))
        True
    """
    return int.from_bytes(blake2b(prompt.tobytes(), digest_size=8).digest(), "little") or 1
