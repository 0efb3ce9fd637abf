"""A suffix-count trie over a growing text: every n-gram up to a maximum order, with its count.

Node 0 is the empty n-gram. Each other node is one n-gram; its children are the tokens seen after
it, the latest first. Suffix links lead from an n-gram to the one without its first token, so that
the longest known suffix of a path is updated token by token instead of searched again (the
structure of PPM compression: Cleary and Witten 1984, "Data Compression Using Adaptive Coding and
Partial String Matching"). Adding a token takes `order` steps, however long the text is.

Layout:

    nodes   int32[capacity, GRAM_COLUMNS]  one row per n-gram
    table   int32[power of two]            see `kernels.trie`
    active  int32[order + 1]               at [d] the node of the last d tokens of the text
"""

from __future__ import annotations

import numpy as np

from hf_specplug.kernels._njit import njit
from hf_specplug.kernels.buckets import bucket
from hf_specplug.kernels.proposals import is_proposed, propose
from hf_specplug.kernels.tree import PARENT, TOKEN
from hf_specplug.kernels.trie import TRIE_PARENT, TRIE_TOKEN, slot_of

GRAM_LINK, GRAM_FIRST, GRAM_NEXT, GRAM_PREV, GRAM_COUNT, GRAM_TOTAL = range(2, 8)
"""Columns of `nodes` after TRIE_TOKEN and TRIE_PARENT: the suffix link; the first child; the next
and the previous sibling; occurrences; occurrences of all children."""
GRAM_COLUMNS = 8

PROPOSED = 24
"""Proposals per node at most, in a search."""

_LENGTH_EDGES = (2, 3, 4, 5, 7, 10, 16)  # tokens of a match
_SHARE_EDGES = (0.1, 0.25, 0.5)  # of a continuation in all occurrences of a match
_NEARLY_ALL = 0.8
_COUNT_EDGES = (2, 4)
LENGTHS = len(_LENGTH_EDGES) + 1
SHORTER_BUCKETS = 2 * (len(_SHARE_EDGES) + 1)
LONGEST_BUCKETS = SHORTER_BUCKETS + len(_COUNT_EDGES) + 1
BUCKETS = LENGTHS * (LONGEST_BUCKETS + SHORTER_BUCKETS)


@njit
def extend(nodes, table, active, size, tokens):
    """Append tokens to the text.

    Args:
        nodes, table, active: the trie, changed in place.
        size: the number of nodes.
        tokens: int32[n].

    Returns:
        The new number of nodes, or -1 (and nothing changed) unless `nodes` has room for
        `n * order` more.
    """
    order = active.shape[0] - 1
    if size + tokens.shape[0] * order > nodes.shape[0]:
        return -1
    for token in tokens:
        link = 0  # the node of the last d tokens, this one included
        parent = 0
        for depth in range(order):
            following = active[depth + 1]
            slot = slot_of(table, nodes, np.int64(parent), np.int64(token))
            node = table[slot]
            if node == 0:
                node = size
                size += 1
                table[slot] = node
                nodes[node, TRIE_TOKEN] = token
                nodes[node, TRIE_PARENT] = parent
                nodes[node, GRAM_LINK] = link
                nodes[node, GRAM_FIRST] = 0
                nodes[node, GRAM_COUNT] = 0
                nodes[node, GRAM_TOTAL] = 0
            elif nodes[parent, GRAM_FIRST] != node:  # unlink it: it goes to the front below
                before = nodes[node, GRAM_PREV]
                after = nodes[node, GRAM_NEXT]
                nodes[before, GRAM_NEXT] = after
                if after != 0:
                    nodes[after, GRAM_PREV] = before
            first = nodes[parent, GRAM_FIRST]
            if first != node:
                nodes[node, GRAM_NEXT] = first
                nodes[node, GRAM_PREV] = 0
                if first != 0:
                    nodes[first, GRAM_PREV] = node
                nodes[parent, GRAM_FIRST] = node
            nodes[node, GRAM_COUNT] += 1
            nodes[parent, GRAM_TOTAL] += 1
            active[depth + 1] = node
            link = node
            parent = following
            if parent == 0:  # the text is still shorter than the order
                break
    return size


@njit
def longest_suffix(nodes, active):
    """The node of the longest suffix of the text that has a continuation; 0 if there is none."""
    for depth in range(active.shape[0] - 1, 0, -1):
        node = active[depth]
        if node != 0 and nodes[node, GRAM_TOTAL] > 0:
            return node
    return 0


@njit
def expand(nodes, table, root, matches, pool, frontier, limit, out):
    """Propose to every frontier node what followed its path's longest suffixes in the text.

    Args:
        root: the match of the root (see `longest_suffix`).
        matches: int32[capacity], the match of each search node; written for the frontier.
        pool, frontier: see `hf_specplug.kernels`.
        limit: proposals per node at most: longer matches first, of each the latest continuations.
        out: int32[n * limit, 3], receives the proposals.

    Returns:
        The number of rows. A token is proposed once per node, at the longest match that it follows.
    """
    rows = 0
    for node in frontier:
        match = root
        if node != 0:
            token = pool[node, TOKEN]
            match = matches[pool[node, PARENT]]
            while True:
                child = table[slot_of(table, nodes, np.int64(match), np.int64(token))]
                if child != 0 or match == 0:
                    match = child
                    break
                match = nodes[match, GRAM_LINK]
            while match != 0 and nodes[match, GRAM_TOTAL] == 0:
                match = nodes[match, GRAM_LINK]
        matches[node] = match

        length = 0
        level = match
        while level != 0:
            length += 1
            level = nodes[level, GRAM_LINK]
        begin = rows
        level = match
        while level != 0 and rows - begin < limit:
            child = nodes[level, GRAM_FIRST]
            for _ in range(2 * limit):
                if child == 0 or rows - begin >= limit:
                    break
                token = nodes[child, TRIE_TOKEN]
                if token >= 0 and not is_proposed(out, begin, rows, token):
                    evidence = _evidence(
                        length,
                        nodes[child, GRAM_COUNT],
                        nodes[level, GRAM_TOTAL],
                        child == nodes[level, GRAM_FIRST],
                        level == match,
                    )
                    rows = propose(out, rows, node, token, evidence)
                child = nodes[child, GRAM_NEXT]
            level = nodes[level, GRAM_LINK]
            length -= 1
    return rows


@njit
def _evidence(length, count, total, latest, longest):
    """The evidence bucket: by match length, share, and whether it is the longest match.

    Of the longest match, shares of 0.8 and more are divided by count, smaller ones by whether the
    continuation is the latest one.
    """
    row = bucket(length, _LENGTH_EDGES)
    share = count / total
    if longest and share >= _NEARLY_ALL:
        return row * LONGEST_BUCKETS + SHORTER_BUCKETS + bucket(count, _COUNT_EDGES)
    column = 2 * bucket(share, _SHARE_EDGES) + (1 if latest else 0)
    if longest:
        return row * LONGEST_BUCKETS + column
    return LENGTHS * LONGEST_BUCKETS + row * SHORTER_BUCKETS + column
