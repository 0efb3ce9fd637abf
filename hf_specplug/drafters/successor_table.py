"""A table of fixed size from n-grams to successors, with its clock, state and checks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_specplug.drafters.contract import Float32, Int32
from hf_specplug.errors import StateError
from hf_specplug.kernels import successors

_LAST_STAMP = (1 << 31) - 1

_FIRST_ROWS = 1 << 12
"""Rows of a new table. The first write to a page of memory takes longer than all else that learning
does, and a table that stays in the cache is read faster."""

_NEVER = 1 << 62


class SuccessorTable:
    """The arrays of `hf_specplug.kernels.successors`, with the clock that tells the oldest rows.

    A table begins small and grows when a quarter of it may be in use: sets of rows are then hardly
    ever full, and only a table of the largest size drops rows.

    Args:
        rows: n-grams kept at most, a power of two, 8 at least.
        width: successors kept per n-gram.
        most: the largest possible weight, to check states.

    Attributes:
        vocab_size: token ids are in [0, vocab_size).
        clock: the last stamp given; kernels return the new one.
        keys, stamps, visits, ids, weights: the arrays.
        arrays: all five, in the order in which kernels take them.

    Example:
        >>> table = SuccessorTable(rows=8, width=4, most=1.0)
        >>> table.clear(100)
        >>> {name: array.shape for name, array in table.state_dict().items()}["ids"]
        (0, 4)
    """

    def __init__(self, rows: int, width: int, most: float) -> None:
        self._rows, self._width, self._most = rows, width, most
        self.clear(0)

    def clear(self, vocab_size: int) -> None:
        """Forget everything; token ids are in [0, vocab_size) from now on."""
        self.vocab_size = vocab_size
        self._allocate(_FIRST_ROWS)

    def _allocate(self, rows: int) -> None:
        """An empty table of `rows` rows, or the most that it may have."""
        rows = min(rows, self._rows)
        self.clock = 0
        self._full = rows // 4 if rows < self._rows else _NEVER  # on the clock, at the earliest
        self.keys = np.zeros(rows, np.uint64)
        self.stamps = np.zeros(rows, np.int32)
        self.visits = np.zeros(rows, np.int32)
        self.ids: Int32 = np.zeros((rows, self._width), np.int32)
        self.weights: Float32 = np.zeros((rows, self._width), np.float32)
        self.arrays = (self.keys, self.stamps, self.visits, self.ids, self.weights)

    def emptied(self, vocab_size: int) -> SuccessorTable:
        """An empty table of the same size; this one stays as it is for calls that share it."""
        table = SuccessorTable(self._rows, self._width, self._most)
        table.vocab_size = vocab_size
        return table

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in ("_rows", "_width", "_most")}
        return {**kept, "state": self.state_dict()}  # without the empty rows

    def __setstate__(self, kept: dict[str, Any]) -> None:
        state = kept.pop("state")
        vars(self).update(kept)
        self.load_state_dict(state)

    def make_room(self, claims: int) -> None:
        """Make room for so many claims: rows for their n-grams, and time on the clock."""
        if self.clock > self._full - claims:
            rows, enough = int(np.count_nonzero(self.keys)), len(self.keys) // 4
            if rows + claims > enough:
                state = self.state_dict()
                self._allocate(_rows_for(rows + claims))
                self._restore(state)
            else:
                self._full = self.clock + enough - rows
        if self.clock > _LAST_STAMP - claims:
            used = self._by_age()
            self.stamps[used] = np.arange(1, len(used) + 1)
            self.clock = len(used)

    def _by_age(self) -> NDArray[np.intp]:
        """The rows in use, oldest first."""
        used = np.flatnonzero(self.keys)
        return used[np.argsort(self.stamps[used])]

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The n rows in use, oldest first, and the vocabulary size.

        `keys` uint64[n], `visits` int32[n], `ids` int32[n, width], `weights` float32[n, width],
        `vocab_size` int64[1].
        """
        used = self._by_age()
        return {
            "keys": self.keys[used],
            "visits": self.visits[used],
            "ids": self.ids[used],
            "weights": self.weights[used],
            "vocab_size": np.array([self.vocab_size], np.int64),
        }

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore what `state_dict` returned; a smaller table keeps the latest rows.

        Raises:
            StateError: the arrays are not such a state. Nothing is changed.
        """
        self._check(state)
        self.vocab_size = int(state["vocab_size"][0])
        self._allocate(_rows_for(len(state["keys"])))
        self._restore(state)

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Fill the empty table with the rows of a state."""
        self.clock = len(state["keys"])
        if not self.clock:
            return  # to copy an empty table, no kernel is compiled
        successors.restore(
            *self.arrays,
            *(np.ascontiguousarray(state[key]) for key in ("keys", "visits", "ids", "weights")),
        )

    def _check(self, state: dict[str, NDArray[Any]]) -> None:
        rows = len(state["keys"]) if "keys" in state and state["keys"].ndim else 0
        expected = {
            "keys": (np.uint64, (rows,)),
            "visits": (np.int32, (rows,)),
            "ids": (np.int32, (rows, self._width)),
            "weights": (np.float32, (rows, self._width)),
            "vocab_size": (np.int64, (1,)),
        }
        if set(state) != set(expected):
            raise StateError(f"a table has the arrays {sorted(expected)}, not {sorted(state)}")
        for key, (dtype, shape) in expected.items():
            array = state[key]
            if array.dtype != dtype or array.shape != shape:
                raise StateError(
                    f"{key} must be {np.dtype(dtype)}{list(shape)}, "
                    f"not {array.dtype}{list(array.shape)}"
                )
        keys, ids, weights = state["keys"], state["ids"], state["weights"]
        vocab_size = int(state["vocab_size"][0])
        if not 0 <= vocab_size <= _LAST_STAMP or rows > _LAST_STAMP:
            raise StateError(f"no table has {rows} rows for a vocabulary of {vocab_size} tokens")
        if not keys.all() or len(np.unique(keys)) < rows:
            raise StateError("keys must be distinct and not 0")
        if rows and (ids.min() < -1 or ids.max() >= vocab_size):
            raise StateError(f"ids must lie in [-1, {vocab_size}), not {ids.min()} to {ids.max()}")
        ordered = np.sort(ids, axis=1)
        if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
            raise StateError("the ids of a row must be distinct")
        usual = (weights >= 0) & (weights <= 1.001 * self._most)
        if not usual.all() or (weights[:, 1:] > weights[:, :-1]).any():
            raise StateError(f"weights must lie in [0, {self._most:g}], descending in each row")
        if (weights[ids < 0] > 0).any() or (state["visits"] < 1).any():
            raise StateError(
                "empty places must have no weight, and rows in use must have been visited"
            )


def _rows_for(used: int) -> int:
    """Rows of which so many are less than a quarter."""
    return max(_FIRST_ROWS, 1 << (4 * used).bit_length())
