"""The contract of a drafter: for many paths of a draft tree at once, it proposes next tokens."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.errors import OptionError, StateError
from hf_specplug.kernels.tree import PARENT, TOKEN, with_root
from hf_specplug.tree import DraftTree
from hf_specplug.tree import Float32 as Float32
from hf_specplug.tree import Int32 as Int32


class Context:
    """The tokens of one request: prompt and accepted output, in one growing int32 buffer.

    Args:
        tokens: the prompt, int[n]. Negative ids stand for "no token" and are never proposed.
        vocab_size: token ids are in [0, vocab_size).
        model: a signature of the target, whose hidden states fit no other model; "" if unknown.
        suppressed: token ids that are never drafted, whichever drafter proposes them.

    Example:
        >>> context = Context([5, 6], vocab_size=10)
        >>> context.append([7])
        >>> context.tokens.tolist(), context.last
        ([5, 6, 7], 7)
    """

    def __init__(
        self,
        tokens: Iterable[int] | NDArray[Any],
        vocab_size: int,
        model: str = "",
        suppressed: Iterable[int] = (),
    ) -> None:
        prompt = np.ascontiguousarray(tokens, dtype=np.int32)
        self.vocab_size = vocab_size
        self.model = model
        self.suppressed = tuple(suppressed)
        self.prompt_length = len(prompt)
        self._buffer = np.empty(max(256, 2 * len(prompt)), np.int32)
        self._buffer[: len(prompt)] = prompt
        self._length = len(prompt)

    def __len__(self) -> int:
        return self._length

    @property
    def tokens(self) -> Int32:
        """int32[len(self)], all tokens so far: a read-only view, valid until the next `append`."""
        view = self._buffer[: self._length]
        view.flags.writeable = False
        return view

    @property
    def unbroken(self) -> int:
        """The number of tokens after the last "no token"."""
        gaps = np.flatnonzero(self.tokens < 0)
        return self._length - 1 - int(gaps[-1]) if len(gaps) else self._length

    @property
    def last(self) -> int:
        """The last token; -1 if there is none."""
        return int(self._buffer[self._length - 1]) if self._length else -1

    def append(self, tokens: Iterable[int] | NDArray[Any]) -> None:
        """Append accepted tokens, int[n]; the buffer grows by doubling."""
        new = np.ascontiguousarray(tokens, dtype=np.int32)
        end = self._length + len(new)
        if end > len(self._buffer):
            grown = np.empty(2 * end, np.int32)
            grown[: self._length] = self.tokens
            self._buffer = grown
        self._buffer[self._length : end] = new
        self._length = end


def as_text(tokens: NDArray[np.int64], vocab_size: int, suppressed: Iterable[int]) -> Int32:
    """Token ids int64[n] as drafters see them: -1 if suppressed or not in [0, vocab_size)."""
    excluded = (tokens < 0) | (tokens >= vocab_size) | np.isin(tokens, list(suppressed))
    return np.where(excluded, -1, tokens).astype(np.int32)


Noise = tuple[NDArray[np.float64], int]
"""Known sampling noise: see `Frontier.noise`."""

NO_NOISE: Noise = (np.empty((0, 0)), 0)


@dataclass(frozen=True, slots=True)
class Frontier:
    """The search nodes to expand now. The arrays are read-only.

    Attributes:
        nodes: int32[n], their ids; 0 is the root, the end of the accepted text. A node is expanded
            at most once in a step, and after its parent, so that a drafter can keep state by id.
        pool: int32[capacity, k], all search nodes: column 0 is the token, 1 the parent's id, 2 the
            depth (0 at the root).
        root: the last accepted token, that of node 0.
        noise: the random numbers of the next picks, as far as they are known: float64[positions, V]
            in [0, 1), a ring buffer, and its row for the pick at the root. The target picks the
            token of highest p / -ln(1 - u). No rows if nothing is known, or decoding is greedy.

    Example:
        nodes [3] and pool rows 3: (9, 1, 2), 1: (7, 0, 1): propose what follows the text + 7 9.
    """

    nodes: Int32
    pool: Int32
    root: int
    noise: Noise = NO_NOISE

    def path(self, node: int) -> list[int]:
        """The tokens from the root (not included) to `node` (included)."""
        tokens = []
        while node != 0:
            tokens.append(int(self.pool[node, TOKEN]))
            node = int(self.pool[node, PARENT])
        return tokens[::-1]


TOP_K = 8
"""How many of the target's likeliest next tokens drafters with `needs = {"topk"}` receive."""


@dataclass(frozen=True, slots=True)
class TopK:
    """The target's likeliest next tokens after each token of a forward pass.

    Attributes:
        ids: int32[n, TOP_K], likeliest first; -1 where the vocabulary is smaller.
        probs: float32[n, TOP_K], their probabilities: softmax of the unprocessed logits.
    """

    ids: Int32
    probs: Float32


@dataclass(frozen=True, slots=True)
class Step:
    """The results of one forward pass. The arrays are read-only, because all drafters share them.

    Attributes:
        tokens: int32[n], the processed tokens: the root and the tree, or tokens of the prompt.
        parents: int32[n], the index of the token before each of them, which is lower; -1 at the
            first, which follows the text `context.tokens[:before]`.
        before: the number of tokens of the text before the first of them.
        sources: uint16[n], the drafters that proposed each of them, as bits; 0 at the root.
        visited: int32[m], indices into `tokens` of the accepted path, in order.
        emitted: int32[k], the tokens that were appended to the text.
        topk: rows for `tokens`; None if unavailable, or if no drafter `needs` "topk".
        hidden: float32[width], the target's hidden state at the last visited token (of a prompt: at
            its last token), from which the last emitted token was picked; None if unavailable, or
            if no drafter `needs` "hidden".
    """

    tokens: Int32
    parents: Int32
    before: int
    sources: NDArray[np.uint16]
    visited: Int32
    emitted: Int32
    topk: TopK | None
    hidden: Float32 | None = None

    def __post_init__(self) -> None:
        for array in (self.tokens, self.parents, self.sources, self.visited, self.emitted):
            array.flags.writeable = False
        if self.topk is not None:
            self.topk.ids.flags.writeable = self.topk.probs.flags.writeable = False
        if self.hidden is not None:
            self.hidden.flags.writeable = False

    @classmethod
    def of_tree(
        cls,
        root: int,
        tree: DraftTree,
        before: int,
        visited: Sequence[int],
        emitted: Sequence[int] | Int32,
        topk: TopK | None,
        hidden: Float32 | None = None,
    ) -> Step:
        """The step of a verified tree; in `visited` and `topk`, 0 is the root, i + 1 is node i."""
        count = len(tree) + 1
        tokens, parents = np.empty(count, np.int32), np.empty(count, np.int32)
        sources = np.empty(count, np.uint16)
        with_root(root, tree.tokens, tree.parents, tree.sources, tokens, parents, sources)
        path, new = np.array(visited, np.int32), np.asarray(emitted, np.int32)
        return cls(tokens, parents, before, sources, path, new, topk, hidden)

    @classmethod
    def of_text(
        cls,
        tokens: Int32,
        before: int,
        visited: Sequence[int],
        emitted: Sequence[int] | Int32,
        topk: TopK | None,
        hidden: Float32 | None = None,
    ) -> Step:
        """The step of consecutive tokens that were not drafted, such as a prompt."""
        parents = np.arange(-1, len(tokens) - 1, dtype=np.int32)
        sources = np.zeros(len(tokens), np.uint16)
        path, new = np.array(visited, np.int32), np.array(emitted, np.int32)
        return cls(np.array(tokens, np.int32), parents, before, sources, path, new, topk, hidden)


T = TypeVar("T", bound="Drafter")


class Drafter(ABC):
    """Base class of all drafters.

    A subclass sets `name` and `priors` and implements `expand`. A drafter changes the speed, never
    the output. One that breaks its contract is dropped for the rest of the call.

    Attributes:
        name: short and unique, as users write it in `attach(model, drafters=[...])`.
        needs: "topk", "hidden": outputs of the target that `observe` uses; "noise": it proposes
            nothing if the sampling noise is unknown, and is then not asked.
        layer: that of the hidden states, counted from 0; -1: those that the output embedding reads.
        kinds: the kinds of datastore that it reads; stores of these kinds are passed to `add`.
        rounds: in how many rounds of a search it is asked, 1 for the root only; None: in all.
        patient: whether `observe` may be called after the next draft, while the device computes.
        priors: float32[buckets] in (0, 1], for each evidence bucket the probability that a token
            proposed with it is accepted, given that its parent is.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    kinds: ClassVar[frozenset[str]] = frozenset()
    rounds: ClassVar[int | None] = None
    patient: ClassVar[bool] = False
    layer: int = -1
    priors: Float32

    def begin(self, context: Context) -> None:  # noqa: B027
        """Start a new request; `context` holds its prompt and grows with the output."""

    def for_another_call(self) -> Drafter:
        """A drafter for one more call at the same time: another request, the same knowledge.

        By default this is a deep copy, which learns on its own. Override it to share what is
        learned across requests, or large (see `_sharing`). Drafters of a plug are called by one
        thread at a time, so that no lock is needed. Never share state of a request, and never
        clear what is shared: a `begin` with another vocabulary replaces it.
        """
        return copy.deepcopy(self)

    def _sharing(self: T) -> T:
        """A drafter with the same attribute values; the caller replaces those of the request."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def reads(self, store: Any) -> bool:
        """Whether it can draft from a datastore: by default, from those of its `kinds`."""
        return store.manifest.kind in self.kinds

    def add(self, store: Any) -> None:
        """Read this datastore as well. Raises OptionError if it is of another kind."""
        raise OptionError(f"drafter {self.name!r} reads no datastores")

    @abstractmethod
    def expand(self, frontier: Frontier) -> Int32:
        """Propose next tokens for each frontier node.

        Returns:
            int32[rows, 3], C-contiguous: (node id, token id, evidence bucket), at most
            `MAX_CHILDREN` rows per node, each token once. Valid until the next call.
        """

    def observe(self, step: Step) -> None:  # noqa: B027
        """Learn from a forward pass. `context` already holds the emitted tokens."""

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """What the drafter has learned across requests, as arrays by name; empty by default."""
        return {}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore what `state_dict` returned. Raises StateError if the arrays do not fit."""
        if state:
            raise StateError(f"drafter {self.name!r} keeps no state, but was given {sorted(state)}")


MAX_CHILDREN = 64
"""Rows that `expand` may return per frontier node; a drafter that returns more is dropped."""
