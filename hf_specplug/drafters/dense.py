"""Dense retrieval: continuations of similar hidden states.

DReSD (Gritta et al. 2025, arXiv 2502.15572, section 3) retrieves by the target's hidden state at
the last verified token, and drops neighbours that are not followed by the token just picked. The
paper verifies the next tokens of ten neighbours as ten rows. Here the neighbours vote at every node
of the tree whose path they agree with, and those that agree with the text stay in use for as long
as they do, as in a retrieval automaton (Alon et al. 2022, arXiv 2201.12431, section 3).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Context, Float32, Frontier, Int32, Step
from hf_specplug.drafters.priors import learned
from hf_specplug.drafters.registry import register
from hf_specplug.drafters.store_drafter import StoreDrafter, plain_arrays
from hf_specplug.errors import OptionError, StoreError
from hf_specplug.kernels import dense as kernels

NEIGHBOURS = 256
"""Neighbours of a hidden state that are retrieved from each shard. (The paper's 50 are less
accurate in a vote.)"""

PATIENCE = 500e-6
"""Seconds for one search of all shards; if searches keep taking longer, nprobe is reduced."""

_SLOW = 16  # slow searches, less quick ones, after which nprobe changes


@register
class DenseDrafter(StoreDrafter):
    """Proposes what followed similar hidden states in the stores, by votes.

    Evidence: the tokens for which the voters agree with the path, their share of all votes, their
    highest cosine and their number (see `hf_specplug.kernels.dense`).

    Args:
        stores, tokenizer: see `StoreDrafter`.

    Attributes:
        layer: the layer whose hidden states the stores hold.

    Example:
        >>> DenseDrafter().stores
        []
    """

    name: ClassVar[str] = "dense"
    kinds: ClassVar[frozenset[str]] = frozenset({"dense"})
    needs: ClassVar[frozenset[str]] = frozenset({"hidden"})
    rows_per_node: ClassVar[int] = 12

    def __init__(
        self, stores: Iterable[str | os.PathLike[str] | Datastore] = (), tokenizer: Any = None
    ) -> None:
        self.priors = np.array(learned(self.name), np.float32)
        self._shards: list[Any] = []
        self._vocabs: list[int] = []
        self._reset()
        super().__init__(stores, tokenizer)

    def _reset(self) -> None:
        """Forget the text."""
        self._pointers = np.empty((kernels.MAX_POINTERS, kernels.POINTER_COLUMNS), np.int64)
        self._cosines = np.empty(kernels.MAX_POINTERS, np.float32)
        self._count = 0
        self._ahead = np.empty((kernels.MAX_POINTERS, kernels.LOOKAHEAD), np.int32)
        self._alive = np.empty(0, np.uint64)
        self._out = np.empty((0, 3), np.int32)
        self._state: Float32 | None = None
        self._slow = 0

    def add(self, store: Datastore) -> None:
        """Read this store as well; it must be of the same model and layer as the others.

        Raises:
            OptionError: the store is of another kind, model or layer.
        """
        made_of = store.manifest.settings
        for other in self.stores if store.manifest.kind in self.kinds else ():
            known = other.manifest.settings
            if (made_of["model"]["hash"], made_of["layer"]) != (
                known["model"]["hash"],
                known["layer"],
            ):
                raise OptionError(
                    f"{store.path} holds states of layer {made_of['layer']} of "
                    f"{made_of['model']['name']}, {other.path} of layer {known['layer']} of "
                    f"{known['model']['name']}: draft from one of them at a time"
                )
        super().add(store)
        self.layer = made_of["layer"]

    def _opened(self, store: Datastore) -> None:
        for shard in store.shards:
            (tokens,) = plain_arrays(shard, "tokens")
            if len(tokens):
                self._shards.append((shard, tokens))
                self._vocabs.append(store.manifest.vocab_size)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_shards": [], "_vocabs": [], "_alive": self._alive[:0]}

    def begin(self, context: Context) -> None:
        """Start a new request.

        Raises:
            StoreError: a store holds hidden states of another model.
        """
        super().begin(context)
        for store in self.stores:
            model = store.manifest.settings["model"]
            if context.model and model["hash"] != context.model:
                raise StoreError(
                    f"{store.path} holds states of another model, {model['name']}: build it again "
                    "with this one (specplug build --kind dense --model ...)"
                )
        self._reset()

    def for_another_call(self) -> DenseDrafter:
        twin = self._sharing()
        twin.stores, twin._shards, twin._vocabs = [*self.stores], [*self._shards], [*self._vocabs]
        twin._reset()
        return twin

    def observe(self, step: Step) -> None:
        for number, (_, tokens) in enumerate(self._shards):
            kernels.follow(tokens, number, self._pointers, self._count, step.emitted)
        self._count = kernels.compact(self._pointers, self._cosines, self._count)
        self._state = step.hidden

    def expand(self, frontier: Frontier) -> Int32:
        nodes, limit = frontier.nodes, self.rows_per_node
        if len(self._alive) < len(frontier.pool):
            self._alive = np.empty(len(frontier.pool), np.uint64)
        if len(self._out) < len(nodes) * limit:
            self._out = np.empty((2 * len(nodes) * limit, 3), np.int32)
        if nodes[0] == 0:
            self._retrieve(frontier.root)
        if not self._count:
            return self._out[:0]
        rows = kernels.expand(
            self._pointers,
            self._cosines,
            self._count,
            self._ahead,
            self._alive,
            frontier.pool,
            nodes,
            limit,
            self._out,
        )
        return self._out[:rows]

    def nearest(self, neighbours: int, length: int) -> list[Int32]:
        """What followed the stored states that are closest to the target's last one.

        Args:
            neighbours: states to retrieve, from all shards together.
            length: tokens to read after each, fewer where its document ends.

        Returns:
            int32[<= length] per neighbour, the closest first; none if no state is known.

        Raises:
            StoreError: the states have another width than those of a datastore.
        """
        found: list[tuple[float, Int32]] = []
        for (shard, tokens), vocab in zip(self._shards, self._vocabs, strict=True):
            vector = None if self._state is None else self._vector(shard, self._state)
            if vector is None:
                continue
            near, places = shard.search(vector, neighbours)
            for cosine, place in zip(near.tolist(), places.tolist(), strict=True):
                if place >= 0 and cosine > -2.0:
                    row = tokens[place + 1 : place + 1 + length].astype(np.int64)
                    ends = np.flatnonzero(row >= vocab)
                    row = row[: ends[0]] if len(ends) else row
                    found.append((cosine, row.astype(np.int32)))
        found.sort(key=lambda one: -one[0])
        return [row for _, row in found[:neighbours]]

    def _retrieve(self, root: int) -> None:
        """Search for the last hidden state, once, and read what follows all pointers."""
        if self._state is not None:
            start = time.perf_counter()
            for number, (shard, tokens) in enumerate(self._shards):
                vector = self._vector(shard, self._state)
                if vector is not None:
                    near, places = shard.search(vector, NEIGHBOURS)
                    self._count = kernels.arrive(
                        tokens,
                        number,
                        places,
                        near,
                        root,
                        self._pointers,
                        self._cosines,
                        self._count,
                    )
            self._adapt_nprobe(time.perf_counter() - start)
            self._state = None
        for number, (_, tokens) in enumerate(self._shards):
            vocab = self._vocabs[number]
            kernels.look(tokens, vocab, number, self._pointers, self._count, self._ahead)

    @staticmethod
    def _vector(shard: Any, state: Float32) -> Float32 | None:
        """float32[dims], the vector to search a shard for; None if the state is not finite."""
        if len(state) != shard.width:
            raise StoreError(
                f"the model's states have {len(state)} numbers, those of a datastore "
                f"{shard.width}: it was built with another model"
            )
        vector = np.empty(shard.transform.shape[1], np.float32)
        return vector if kernels.project(state, shard.transform, vector) else None

    def _adapt_nprobe(self, seconds: float) -> None:
        """Halve nprobe if searches keep taking too long, and double it again if they do not."""
        if PATIENCE / 4 < seconds <= PATIENCE:
            return
        self._slow += 1 if seconds > PATIENCE else -1
        if abs(self._slow) >= _SLOW:
            for shard, _ in self._shards:
                shard.adjust_nprobe(faster=self._slow > 0)
            self._slow = 0
