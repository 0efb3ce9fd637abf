"""The best-first search that grows one draft tree from the candidates of all drafters."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from hf_specplug.drafters.contract import NO_NOISE, Drafter, Float32, Frontier, Int32, Noise
from hf_specplug.drafting.asked import Asked, in_kernel
from hf_specplug.drafting.experts import Expert, Experts, checked_rows, refusal
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.kernels import mixer as mixing
from hf_specplug.kernels import rounds, tables
from hf_specplug.kernels import tree as kernels
from hf_specplug.tree import EMPTY, DraftTree

_ALL = 1 << 31  # rounds


class TreeSearch(Experts):
    """Grows one tree per step: best-first on path probability (OPT-Tree, DySpec), no depth decay.

    In each round, every drafter expands all nodes that could still have children in the tree. A
    path may thus mix drafters: a copied span can continue a recycled token. Most built-in
    drafters are asked in a kernel (see `asked`), which runs all rounds if there are no others.

    Args:
        drafters: the drafters, in the order of their bits in `DraftTree.sources`.
        mixer: turns their evidence into probabilities; made for these drafters in this order.
        vocab_size: a drafter that proposes a token id outside [0, vocab_size) is dropped.
        on_error: called once with a drafter that broke its contract, and the exception.
    """

    uses: ClassVar[tuple[str, ...]] = ()  # names of the drafters used; (): all
    in_kernel: ClassVar[bool] = True  # whether `kernels.rounds` may ask drafters
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
        self._state = np.zeros(rounds.STATE_COLUMNS, np.int64)
        self._in_kernel = Asked([])
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
        """Hook for subclasses: the rows of a drafter, asked from Python, that may be drafted."""
        return rows

    def _allocate(self, limit: int) -> None:
        capacity = 512 + 64 * limit
        self._pool = np.zeros((capacity, kernels.COLUMNS), np.int32)
        self._probs = np.ones((capacity, kernels.PROB_COLUMNS), np.float32)
        self._evidence = np.zeros((capacity, len(self.names)), np.int32)
        self._arrays = self._pool, self._probs, self._evidence
        self._chosen = np.empty(limit, np.int32)
        self._frontier = np.empty(limit, np.int32)
        self._top = np.empty(limit, np.float32)
        self._pool_view, self._frontier_view = _read_only(self._pool), _read_only(self._frontier)
        self._matches = np.zeros(capacity, np.int32)
        self._out = np.empty((limit * tables.MOST_ROWS, 3), np.int32)

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
        if self._asked and limit > 0:
            self.catch_up()
        published = self._published(root, limit, depth, chain, generator)
        if published is not None:
            return published
        if limit < 1 or depth < 1 or not self._asked:
            return EMPTY
        if len(self._chosen) < limit:
            self._allocate(limit)
        called = self._called(generator)
        state = self._state
        state[:] = 1, 1, 1, 0
        self._pool[0, kernels.FIRST] = 0
        self._pool[0, kernels.ROUND] = 1
        self._frontier[0] = 0
        while state[rounds.WAITING]:
            nodes = self._frontier_view[: state[rounds.WAITING]]
            if called:
                self._expand(called, Frontier(nodes, self._pool_view, root, noise))
            if generator is not None:
                self._mix(nodes, noise)
                kernels.draw(self._pool, self._probs, nodes, generator)
                self._choose(limit, depth, chain)
            elif not self._run(root, limit, depth, chain, noise, once=bool(called)):
                return self.grow(root, limit, depth, chain, ask, noise)  # one drafter fewer
        self._grown = True
        return self._read(self._chosen[: state[rounds.NUMBER]])

    def _called(self, generator: np.random.Generator | None) -> list[Expert]:
        """The drafters to ask from Python; `_in_kernel` asks all others."""
        allowed = generator is None and self.in_kernel
        asked: list[Expert] = []
        called: list[Expert] = []
        for expert in self._asked:
            (asked if allowed and in_kernel(expert.drafter) else called).append(expert)
        if asked != self._in_kernel.experts:
            self._in_kernel = Asked(asked)
        return called

    def proposal(self, node: int) -> tuple[Int32, Float32, list[int]]:
        """The distribution from which the last tree drew the children of a node.

        Args:
            node: index in the tree + 1; 0 is the root.

        Returns:
            (int32[n] token ids, float32[n] their probabilities, the node's children in the tree in
            the order in which they were drawn, numbered like `node`)
        """
        chosen = self._chosen[: self._state[rounds.NUMBER]]
        place = int(chosen[node - 1]) if node else 0
        child = int(self._pool[place, kernels.FIRST]) if self._pool[place, kernels.ROUND] else 0
        proposed: list[int] = []
        while child:
            proposed.append(child)
            child = int(self._pool[child, kernels.NEXT])
        proposed.sort(key=lambda child: -float(self._probs[child, kernels.PATH]))
        tokens, probs = self._pool[proposed, kernels.TOKEN], self._probs[proposed, kernels.PROB]
        places = {child: number for number, child in enumerate(chosen.tolist(), start=1)}
        return tokens, probs, [places[child] for child in proposed if child in places]

    def learn(self, emitted: Int32) -> None:
        """Train the mixer on the target's picks.

        Args:
            emitted: int32[k], the emitted tokens; the first follows the root of the last tree.
        """
        if self._grown:
            mixing.learn(
                *self._arrays,
                _read_only(emitted),
                self._table,
                self._mixer.weights,
                self._mixer.apm,
                self._mixer.rates,
                self._room,
            )

    def _expand(self, called: list[Expert], frontier: Frontier) -> None:
        """Let some drafters expand the frontier; add their proposals to the pool."""
        size, _, round_number, _ = self._state.tolist()
        for expert in list(called):
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
                    *self._arrays,
                    size,
                    rows,
                    expert.column,
                    expert.begin,
                    expert.end,
                    self._suppressed,
                    self._vocab,
                    round_number,
                )
                if grown < 0:
                    raise refusal(drafter, grown)
                size = grown
            except Exception as error:
                called.remove(expert)
                self.drop(drafter, error)
        self._state[rounds.SIZE] = size

    def _run(
        self, root: int, limit: int, depth: int, chain: bool, noise: Noise, once: bool
    ) -> bool:
        """Run one round, or all that are left; returns False if a drafter had to be dropped."""
        asked, mixer = self._in_kernel, self._mixer
        start = time.perf_counter()
        refused = rounds.run(
            1 if once else _ALL,
            asked.rows,
            asked.tables(noise, len(self._pool), len(self._frontier)),
            (self._suppressed, self._vocab),
            root,
            noise,
            (*self._arrays, self._pool_view),
            (self._table, mixer.weights, mixer.apm, self._room),
            (limit, depth, chain),
            (self._chosen, self._frontier, self._top, self._frontier_view),
            (self._matches, self._out),
            self._state,
        )
        took = time.perf_counter() - start
        for expert in asked.experts:
            self.seconds[expert.column] += took / len(asked.experts)
        if refused >= 0:
            drafter = asked.experts[refused].drafter
            self.drop(drafter, refusal(drafter, int(self._state[rounds.SIZE])))
        return bool(refused < 0)

    def _mix(self, nodes: Int32, noise: Noise) -> None:
        """Turn the evidence for the children of `nodes` into probabilities."""
        state = self._table, self._mixer.weights, self._mixer.apm
        mixing.mix(*self._arrays, nodes, *state, *noise, self._room)

    def _choose(self, limit: int, depth: int, chain: bool) -> None:
        """Choose the nodes of the tree so far, and those to expand next."""
        state, pool = self._state, (self._pool, self._probs)
        state[rounds.ROUND] += 1
        rest = limit, depth, int(state[rounds.ROUND]), self._chosen, self._frontier
        if chain:
            number, waiting = rounds.follow(*pool, *rest)
        else:
            number, waiting = kernels.best(*pool, int(state[rounds.SIZE]), *rest, self._top)
        state[rounds.NUMBER], state[rounds.WAITING] = number, waiting

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
