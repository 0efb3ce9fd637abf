"""The base class of engines that verify several rows, each with a tree or a chain of its own.

Trees are padded to the widest one. Padding sees itself and the text, and is never kept.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from hf_specplug.hf import batches
from hf_specplug.tree import DraftTree
from hf_specplug.verify.engine import Engine
from hf_specplug.verify.outputs import Outputs


class RowEngine(Engine):
    """Verifies one tree per row; `step` and `keep` serve a batch of one.

    Attributes:
        chains: whether only chains are verified.
        parks: whether rows that leave may come back by `restore`; those of a cache that outlives
            the call always may.
    """

    chains = False
    parks = False

    @property
    def outlives(self) -> bool:
        """Whether `generate` or its caller uses the cache after the call."""
        return batches.outlives(self._config, self.cache)

    def prefill_rows(self, input_ids: torch.Tensor) -> list[Outputs]:
        """Run the prompts; returns each row's outputs at its last token."""
        logits = self._run_prompt(input_ids)
        rows = range(len(logits))
        return [
            self._with_states(Outputs(logits[row], states=self._states(1, row))) for row in rows
        ]

    def step_rows(self, roots: Sequence[int], trees: Sequence[DraftTree]) -> list[Outputs]:
        """Run one forward pass over a tree per row; returns the outputs of each row.

        Args:
            roots: the last accepted token of each row.
            trees: one tree per row; may be empty.
        """
        if self._packed is not None:
            self._packed.step()
        rows, counts = len(trees), [len(tree) + 1 for tree in trees]
        width = max(counts)
        tokens = np.repeat(np.array(roots, np.int64)[:, None], width, axis=1)
        depths = np.zeros((rows, width), np.int64)
        seen = np.zeros((rows, width, width), np.bool_)
        seen[:, range(width), range(width)] = True
        for row, (tree, count) in enumerate(zip(trees, counts, strict=True)):
            tokens[row, 1:count] = tree.tokens
            seen[row, :count, :count], depths[row, :count] = tree.ancestors()
        with self._packed or nullcontext():
            outputs = self._verify_rows(tokens, depths, seen, counts)
        return [self._with_states(each) for each in outputs]

    @abstractmethod
    def _verify_rows(
        self,
        tokens: NDArray[np.int64],
        depths: NDArray[np.int64],
        seen: NDArray[np.bool_],
        counts: Sequence[int],
    ) -> list[Outputs]:
        """Run one forward pass over N rows of T tokens.

        Args:
            tokens, depths: int64[N, T].
            seen: bool[N, T, T].
            counts: number of tokens of each row without padding.
        """

    @abstractmethod
    def keep_rows(self, visited: Sequence[Sequence[int]]) -> None:
        """Keep these slots of each row's last tree (ascending, root first); drop the others."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> None:
        """Continue with these rows only, in this order."""

    @abstractmethod
    def restore(self) -> None:
        """Continue with all rows of the call, in its order; see `parks`."""

    @abstractmethod
    def cut(self, lengths: Sequence[int]) -> None:
        """Keep the first slots of each row, these numbers of them; drop the others."""

    @abstractmethod
    def hand_back(self) -> None:
        """Append to the call's cache what has been generated; all rows are equally long."""

    def _verify(
        self, tokens: NDArray[np.int64], depths: NDArray[np.int64], seen: NDArray[np.bool_]
    ) -> Outputs:
        return self._verify_rows(tokens[None], depths[None], seen[None], [len(tokens)])[0]

    def keep(self, visited: Sequence[int]) -> None:
        self.keep_rows([visited])
