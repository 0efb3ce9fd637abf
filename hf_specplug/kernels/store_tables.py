"""What the drafters of datastores with a kernel read, and the call of each kernel.

Where no such drafter is asked, `kernels.rounds` is compiled without them, and given no arrays of
theirs: both take their time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from hf_specplug.kernels import phrases, retrieval, trigram
from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.placeholders import read_only, writable

DRAFTERS = ("rest", "trigram", "phrases")
"""The drafters, in the order of `StoreTables`."""
_REST, _TRIGRAM = range(2)

MOST_ROWS = max(retrieval.PROPOSED, trigram.PROPOSED, phrases.PROPOSED)
"""Proposals per node that one drafter makes at most."""


class StoreTables(NamedTuple):
    """What the drafters read. Those that are not asked have the tables of `NO_STORES`.

    Attributes:
        rest: one shard, its vocabulary size, its matches, and room for the rows of
            `kernels.retrieval.expand`.
        trigram: one shard, its vocabulary size, the table, and scratch of `kernels.trigram`.
        phrases: nodes, table, root and states of `kernels.phrases`.
    """

    rest: Any
    trigram: Any
    phrases: Any


NO_STORES = StoreTables(
    (
        (read_only(np.uint16), read_only(np.int32)),
        0,
        writable(np.int32, 2),
        writable(np.int32, 2),
        writable(np.int32),
        writable(np.int32, 3),
        writable(np.int32, 2),
    ),
    (
        *trigram.NO_SHARD,
        writable(np.uint64),
        writable(np.int32, 2),
        writable(np.float32, 2),
        writable(np.int32),
        writable(np.int32, 2),
        writable(np.int64),
        writable(np.int64),
        writable(np.int32, 2),
        writable(np.int64, 2),
    ),
    (writable(np.int32, 2), writable(np.int32), 0, writable(np.int32)),
)
"""Arrays of the types of stores whose token ids fit into 16 bits: one signature serves all sets of
drafters of such stores."""


@njit
def _rest_rows(tables, pool, nodes, out):
    """Let `rest` expand some nodes; returns the number of rows in `out`."""
    (tokens, suffixes), vocab, low, high, longest, raw, ends = tables
    limit = retrieval.PROPOSED
    retrieval.expand(
        tokens, suffixes, vocab, low, high, longest, pool, nodes, limit, ends[0], raw[0]
    )
    return retrieval.combine(raw, ends, nodes, limit, out)


@njit
def _trigram_rows(tables, root, pool, nodes, out):
    """Let `trigram` expand some nodes; returns the number of rows in `out`."""
    shard, vocab, keys, ids, weights, tail, pairs, known, totals, tokens, counts = tables
    pairs = pairs[: nodes.shape[0]]
    known[: nodes.shape[0]] = 0
    totals[: nodes.shape[0]] = 0
    trigram.last_pairs(tail[0], root, pool, nodes, pairs)
    trigram.gather(shard, vocab, pairs, known, totals, tokens, counts)
    limit = trigram.PROPOSED
    return trigram.expand(
        keys, ids, weights, pairs, known, totals, tokens, counts, nodes, limit, out
    )


@njit
def _rows(drafter, stores, root, pool, nodes, out):
    if drafter == _REST:
        return _rest_rows(stores.rest, pool, nodes, out)
    if drafter == _TRIGRAM:
        return _trigram_rows(stores.trigram, root, pool, nodes, out)
    states, table, begin, reached = stores.phrases
    return phrases.expand(states, table, begin, reached, pool, nodes, phrases.PROPOSED, out)


def store_rows(drafter: Any, stores: Any, root: Any, pool: Any, nodes: Any, out: Any) -> Any:
    """Let one drafter expand some nodes; returns the number of rows in `out`.

    Args:
        drafter: its place in `DRAFTERS`.
        stores: `StoreTables`, or () if no drafter of stores is asked.
    """
    return _rows(drafter, stores, root, pool, nodes, out) if stores else 0


@overload(store_rows, jit_options={"error_model": "numpy"})
def _compiled_store_rows(drafter, stores, root, pool, nodes, out):  # type: ignore[no-untyped-def]
    if isinstance(stores, types.BaseNamedTuple):
        return lambda drafter, stores, root, pool, nodes, out: _rows(
            drafter, stores, root, pool, nodes, out
        )
    return lambda drafter, stores, root, pool, nodes, out: 0
