"""The best-first search that grows one draft tree from the candidates of all drafters."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from hf_specplug.drafters.contract import NO_NOISE, Drafter, Float32, Frontier, Int32, Noise
from hf_specplug.drafting.experts import REFUSALS, Experts, checked_rows
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.errors import DraftError
from hf_specplug.kernels import mixer as mixing
from hf_specplug.kernels import tree as kernels
from hf_specplug.tree import EMPTY, DraftTree


class TreeSearch(Experts):
    """Grows one tree per step: best-first on path probability (OPT-Tree, DySpec), no depth decay.

    In each round, every drafter expands all nodes that could still have children in the tree, in
    one call per drafter. A path may thus mix drafters: a copied span can continue a recycled token.

    Args:
        drafters: the drafters, in the order of their bits in `DraftTree.sources`.
        mixer: turns their evidence into probabilities; made for these drafters in this order.
        vocab_size: a drafter that proposes a token id outside [0, vocab_size) is dropped.
        on_error: called once with a drafter that broke its contract, and the exception.
    """

    uses: ClassVar[tuple[str, ...]] = ()  # names of the drafters used; (): all
    stochastic: ClassVar[bool] = True  # whether `grow` can draw children from a `generator`

    def __init__(
        self,
        drafters: Sequence[Drafter],
        mixer: Mixer,
        vocab_size: int,
        on_error: Callable[[Drafter, Exception], None],
    ) -> None:
        super().__init__(drafters, on_error)
        self._mixer = mixer
        self._vocab = vocab_size
        self._grown = False
        self._room = np.empty((2, mixer.weights.shape[1]))
        self._allocate(64)
        self._prepare()

    def _prepare(self) -> None:
        """Hook for subclasses that need further state."""

    def _published(
        self,
        root: int,
        limit: int,
        depth: int,
        chain: bool,
        generator: np.random.Generator | None,
    ) -> DraftTree | None:
        """Hook for subclasses that grow the tree of a paper; None: best-first search."""
        return None

    def _admitted(self, rows: Int32) -> Int32:
        """The rows of a drafter that may be drafted."""
        for token in self._suppressed:
            rows = rows[rows[:, 1] != token]
        return rows

    def _allocate(self, limit: int) -> None:
        capacity = 512 + 64 * limit
        self._pool = np.zeros((capacity, kernels.COLUMNS), np.int32)
        self._probs = np.ones((capacity, kernels.PROB_COLUMNS), np.float32)
        self._evidence = np.zeros((capacity, len(self.names)), np.int32)
        self._chosen = np.empty(limit, np.int32)
        self._frontier = np.empty(limit, np.int32)
        self._top = np.empty(limit, np.float32)

    def grow(
        self,
        root: int,
        limit: int,
        depth: int,
        chain: bool = False,
        ask: Sequence[bool] | None = None,
        noise: Noise = NO_NOISE,
        generator: np.random.Generator | None = None,
    ) -> DraftTree:
        """Grow the tree of one step.

        Args:
            root: the last accepted token.
            limit: maximum number of nodes.
            depth: maximum depth of the tree, in tokens.
            chain: grow a single path, for models that cannot verify a tree.
            ask: which drafters to ask, one bool per drafter; all by default.
            noise: the known sampling noise of the next picks; see `Frontier.noise`.
            generator: if given, children are drawn by probability instead of ranked by it.
        """
        self._grown = False
        silent = frozenset() if len(noise[0]) else frozenset({"noise"})
        self._asked = [
            expert
            for expert in self._active
            if (ask is None or ask[expert.column]) and silent.isdisjoint(expert.drafter.needs)
        ]
        self.seconds = [0.0] * len(self.names)
        published = self._published(root, limit, depth, chain, generator)
        if published is not None:
            return published
        if limit < 1 or depth < 1 or not self._asked:
            return EMPTY
        if len(self._chosen) < limit:
            self._allocate(limit)
        pool, probs = self._pool, self._probs
        pool[0, kernels.FIRST] = 0
        pool[0, kernels.ROUND] = 1
        self._frontier[0] = 0
        size, waiting, round_number = 1, 1, 1
        while waiting:
            frontier = Frontier(_read_only(self._frontier[:waiting]), _read_only(pool), root, noise)
            size = self._expand(frontier, size, round_number)
            self._mix(frontier.nodes, noise)
            if generator is not None:
                kernels.draw(pool, probs, frontier.nodes, generator)
            round_number += 1
            if chain:
                number, waiting = self._follow(round_number, limit, depth)
            else:
                room = self._chosen, self._frontier, self._top
                number, waiting = kernels.best(pool, probs, size, limit, depth, round_number, *room)
        self._grown = True
        self._size = number
        return self._read(self._chosen[:number])

    def proposal(self, node: int) -> tuple[Int32, Float32, list[int]]:
        """The distribution from which the last tree drew the children of a node.

        Args:
            node: index in the tree + 1; 0 is the root.

        Returns:
            (int32[n] token ids, float32[n] their probabilities, the node's children in the tree in
            the order in which they were drawn, numbered like `node`)
        """
        chosen = self._chosen[: self._size]
        place = int(chosen[node - 1]) if node else 0
        child = int(self._pool[place, kernels.FIRST]) if self._pool[place, kernels.ROUND] else 0
        proposed: list[int] = []
        while child:
            proposed.append(child)
            child = int(self._pool[child, kernels.NEXT])
        proposed.sort(key=lambda child: -float(self._probs[child, kernels.PATH]))
        tokens, probs = self._pool[proposed, kernels.TOKEN], self._probs[proposed, kernels.PROB]
        places = np.searchsorted(chosen, np.array(proposed, np.int32))
        inside = (places < len(chosen)) & (chosen[np.minimum(places, len(chosen) - 1)] == proposed)
        return tokens, probs, (places[inside] + 1).tolist()

    def learn(self, emitted: Int32) -> None:
        """Train the mixer on the target's picks.

        Args:
            emitted: int32[k], the emitted tokens; the first follows the root of the last tree.
        """
        if self._grown:
            mixing.learn(
                self._pool,
                self._probs,
                self._evidence,
                _read_only(emitted),
                self._table,
                self._mixer.weights,
                self._mixer.apm,
                self._mixer.rates,
                self._room,
            )

    def _expand(self, frontier: Frontier, size: int, round_number: int) -> int:
        """Ask every drafter to expand the frontier; add its proposals to the pool.

        Returns:
            The new number of nodes in the pool.
        """
        for expert in list(self._asked):
            drafter = expert.drafter
            if drafter.rounds is not None and round_number > drafter.rounds:
                continue
            try:
                start = time.perf_counter()
                rows = drafter.expand(frontier)
                self.seconds[expert.column] += time.perf_counter() - start
                rows = self._admitted(checked_rows(rows, len(frontier.nodes)))
                if not len(rows):
                    continue
                grown = kernels.insert(
                    self._pool,
                    self._probs,
                    self._evidence,
                    size,
                    rows,
                    expert.column,
                    expert.begin,
                    expert.end,
                    self._vocab,
                    round_number,
                )
                if grown < 0:
                    raise DraftError(f"drafter {drafter.name!r} {REFUSALS[grown]}")
                size = grown
            except Exception as error:
                self.drop(drafter, error)
        return size

    def _mix(self, nodes: Int32, noise: Noise) -> None:
        """Turn the evidence for the children of `nodes` into probabilities."""
        mixer = self._mixer
        state = self._table, mixer.weights, mixer.apm
        mixing.mix(self._pool, self._probs, self._evidence, nodes, *state, *noise, self._room)

    def _follow(self, round_number: int, limit: int, depth: int) -> tuple[int, int]:
        """Chain search: continue with the most likely child of the last node.

        Returns:
            (number of chosen nodes, 1 if the chain continues else 0)
        """
        pool, probs = self._pool, self._probs
        number = round_number - 2
        node = int(pool[self._frontier[0], kernels.FIRST])
        likeliest, path = 0, 0.0
        while node:
            if probs[node, kernels.PATH] > path:
                likeliest, path = node, float(probs[node, kernels.PATH])
            node = int(pool[node, kernels.NEXT])
        if not likeliest:
            return number, 0
        self._chosen[number] = self._frontier[0] = likeliest
        pool[likeliest, kernels.ROUND] = round_number
        number += 1
        return number, int(number < min(limit, depth))

    def _read(self, chosen: Int32) -> DraftTree:
        """The chosen search nodes as a `DraftTree`."""
        count = len(chosen)
        tree = DraftTree(
            tokens=np.empty(count, np.int32),
            parents=np.empty(count, np.int32),
            probs=np.empty(count, np.float32),
            sources=np.empty(count, np.uint16),
        )
        kernels.read(
            self._pool, self._probs, chosen, tree.tokens, tree.parents, tree.probs, tree.sources
        )
        return tree


def _read_only(array: Int32) -> Int32:
    view = array.view()
    view.flags.writeable = False
    return view
