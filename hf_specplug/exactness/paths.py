"""The trees of a trial, and the paths of tokens that lead to their nodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_specplug.tree import DraftTree

Path = tuple[int, ...]
"""The tokens after the prompt; the logits of a path are those at its last token."""


def made_tree(parents: Sequence[int], tokens: Sequence[int]) -> DraftTree:
    """A draft tree whose nodes have probability 1 and no source."""
    count = len(tokens)
    ones, no_sources = np.ones(count, np.float32), np.zeros(count, np.uint16)
    return DraftTree(np.array(tokens, np.int32), np.array(parents, np.int32), ones, no_sources)


def paths_of(text: Path, root: int, tree: DraftTree) -> list[Path]:
    """The paths to the root and to the nodes of a tree after `text`.

    Example:
        >>> paths_of((), 5, made_tree([-1, 0], [6, 7]))
        [(5,), (5, 6), (5, 6, 7)]
    """
    paths = [(*text, root)]
    for parent, token in zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True):
        paths.append((*paths[parent + 1], token))
    return paths
