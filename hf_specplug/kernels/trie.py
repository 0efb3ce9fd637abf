"""The hash table of a trie over tokens: from (parent, token) to a child.

A trie keeps its nodes as rows of `nodes` int32[capacity, columns], of which this module reads the
first two. `table` int32[power of two] is open-addressed, 0 = free; node 0 is the root.
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels._njit import njit

TRIE_TOKEN, TRIE_PARENT = range(2)


@njit
def slot_of(table, nodes, parent, token):
    """The slot that holds the child of `parent` by `token`, or the free slot where it would go."""
    mask = table.shape[0] - 1
    key = np.uint64(parent) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(token + 1)
    key = (key ^ (key >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    slot = np.int64((key >> np.uint64(32)) & np.uint64(mask))
    while table[slot] != 0:
        node = table[slot]
        if nodes[node, TRIE_PARENT] == parent and nodes[node, TRIE_TOKEN] == token:
            break
        slot = (slot + 1) & mask
    return slot


@njit
def rehash(nodes, table, size):
    """Fill an empty `table` with the nodes 1 to `size` - 1."""
    for node in range(1, size):
        parent, token = np.int64(nodes[node, TRIE_PARENT]), np.int64(nodes[node, TRIE_TOKEN])
        table[slot_of(table, nodes, parent, token)] = node
