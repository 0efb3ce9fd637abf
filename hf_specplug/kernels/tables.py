"""What the drafters with a kernel read, and the call of each kernel.

One signature serves all sets of drafters: those that are absent have empty tables.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hf_specplug.kernels import adjacency, frequency, gumbel, ngram, sparse, stand, store_tables
from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.placeholders import read_only, writable
from hf_specplug.kernels.store_tables import store_rows

DRAFTERS = ("context", "recycling", "stand", "frequency", "sparse", "gumbel")
"""The drafters that need no store, in the order of `Tables`."""
ALL = (*DRAFTERS, *store_tables.DRAFTERS)
"""All drafters with a kernel; `asked` of `kernels.rounds` names them by place."""
_CONTEXT, _RECYCLING, _STAND, _FREQUENCY, _SPARSE, _GUMBEL, _FIRST_OF_STORES = range(7)

MOST_ROWS = max(ngram.PROPOSED, store_tables.MOST_ROWS)
"""Proposals per node that one drafter makes at most."""


class Tables(NamedTuple):
    """What the drafters read. Those that are not asked have the tables of `NOTHING`.

    Attributes:
        context: nodes and hash table of `kernels.ngram`, and the match of the root.
        recycling: ids and probabilities of `kernels.adjacency`.
        stand: keys, visits, ids and weights of `kernels.successors`, the text, and scratch.
        frequency: weights, scale and top of `kernels.frequency`.
        sparse: keys, ids and weights of `kernels.successors`, and the text.
        gumbel: weights and their sum, marks, tokens and buckets of `kernels.gumbel`.
        stores: `StoreTables`, or () if no drafter of stores is asked.
    """

    context: Any
    recycling: Any
    stand: Any
    frequency: Any
    sparse: Any
    gumbel: Any
    stores: Any


NOTHING = Tables(
    (writable(np.int32, 2), writable(np.int32), 0),
    (writable(np.int32, 2), writable(np.uint16, 2)),
    (
        writable(np.uint64),
        writable(np.int32),
        writable(np.int32, 2),
        writable(np.float32, 2),
        read_only(np.int32),
        writable(np.uint64),
    ),
    (writable(np.float64), writable(np.float64), writable(np.int32)),
    (writable(np.uint64), writable(np.int32, 2), writable(np.float32, 2), read_only(np.int32)),
    (
        writable(np.float64),
        writable(np.float64),
        writable(np.float64),
        writable(np.int32, 2),
        writable(np.int32, 2),
    ),
    (),
)
"""Arrays of the right types: one signature of `run` serves all sets of drafters without stores."""


@njit
def rows(drafter, tables, root, noise, start, matches, pool, nodes, out):
    """Let one drafter expand some nodes; returns the number of rows in `out`."""
    if drafter == _CONTEXT:
        grams, table, match = tables.context
        return ngram.expand(grams, table, match, matches, pool, nodes, ngram.PROPOSED, out)
    if drafter == _RECYCLING:
        ids, probs = tables.recycling
        return adjacency.expand(ids, probs, root, pool, nodes, out)
    if drafter == _STAND:
        keys, visits, ids, weights, text, grams = tables.stand
        return stand.expand(keys, visits, ids, weights, pool, nodes, text, grams, out)
    if drafter == _FREQUENCY:
        weights, scale, top = tables.frequency
        return frequency.expand(weights, scale, top, out)
    if drafter == _SPARSE:
        keys, ids, weights, text = tables.sparse
        return sparse.expand(keys, ids, weights, pool, nodes, text, out)
    if drafter == _GUMBEL:
        weights, total, marks, tokens, buckets = tables.gumbel
        return gumbel.expand(
            weights, total[0], noise, start, pool, nodes, marks, tokens, buckets, out
        )
    return store_rows(drafter - _FIRST_OF_STORES, tables.stores, root, pool, nodes, out)
