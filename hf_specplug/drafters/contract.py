"""What a drafter is: an expert, asked for many paths at once which tokens may come next."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from hf_specplug.errors import OptionError, StateError
from hf_specplug.tree import DraftTree
from hf_specplug.tree import Float32 as Float32
from hf_specplug.tree import Int32 as Int32


class Context:
    """The text of one request: prompt and accepted output, as one growing int32 buffer.

    Args:
        tokens: the prompt, int[n]. Negative ids stand for "no token" and are never proposed.
        vocab_size: ids are in [0, vocab_size).
        model: tells the target from others whose hidden states mean something else; "" if unknown.
        suppressed: ids that are never drafted, whoever proposes them.

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
        """All tokens so far, int32[len(self)]: a read-only view, valid until the next `append`."""
        view = self._buffer[: self._length]
        view.flags.writeable = False
        return view

    @property
    def unbroken(self) -> int:
        """How many tokens there are since the last place that holds none."""
        gaps = np.flatnonzero(self.tokens < 0)
        return self._length - 1 - int(gaps[-1]) if len(gaps) else self._length

    @property
    def last(self) -> int:
        """The last token, -1 if there is none."""
        return int(self._buffer[self._length - 1]) if self._length else -1

    def append(self, tokens: Iterable[int] | NDArray[Any]) -> None:
        """Add accepted tokens; the buffer grows by doubling."""
        new = np.ascontiguousarray(tokens, dtype=np.int32)
        end = self._length + len(new)
        if end > len(self._buffer):
            grown = np.empty(2 * end, np.int32)
            grown[: self._length] = self.tokens
            self._buffer = grown
        self._buffer[self._length : end] = new
        self._length = end


Noise = tuple[NDArray[np.float64], int]
NO_NOISE: Noise = (np.empty((0, 0)), 0)


@dataclass(frozen=True, slots=True)
class Frontier:
    """The search nodes to expand now. The arrays are read-only.

    Attributes:
        nodes: int32[n], their ids; 0 is the end of the accepted text. A node is expanded at most
            once in a step, after its parent, so that a drafter can keep state per id.
        pool: int32[capacity, k], all search nodes: column 0 token, 1 parent id, 2 depth (root 0).
        root: the last accepted token, the one at node 0.
        noise: what is known of the next picks' random numbers u: float64[positions, V] in [0, 1),
            to be read in a circle, and the row of the first. The target picks the token of highest
            p / -ln(1 - u). No rows: nothing is known, or it picks the likeliest.
    """

    nodes: Int32
    pool: Int32
    root: int
    noise: Noise = NO_NOISE

    def path(self, node: int) -> list[int]:
        """The tokens from the root (not included) to `node` (included)."""
        tokens = []
        while node != 0:
            tokens.append(int(self.pool[node, 0]))
            node = int(self.pool[node, 1])
        return tokens[::-1]


TOP_K = 8
"""How many of the target's next tokens drafters with `needs = {"topk"}` are shown."""


@dataclass(frozen=True, slots=True)
class TopK:
    """The target's most likely next tokens after each fed token.

    Attributes:
        ids: int32[n, TOP_K], most likely first, -1 where the vocabulary is smaller.
        probs: float32[n, TOP_K], their probabilities under the unprocessed logits at temperature 1.
    """

    ids: Int32
    probs: Float32


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward pass showed. The arrays are read-only: all drafters see the same.

    Attributes:
        tokens: int32[n], the tokens whose outputs are known: the root and the tree, or prompt
            tokens.
        parents: int32[n], for each of them the index of the token before it, which comes earlier;
            -1 at the first, which follows the text `context.tokens[:before]`.
        before: tokens of the text before the first of them.
        sources: uint16[n], for each of them the bits of the drafters that named it; 0 at the root.
        visited: int32[m], indices into `tokens` on the accepted path, in order.
        emitted: int32[k], the tokens that were added to the text.
        topk: rows for `tokens`, if a drafter `needs` them and they could be had.
        hidden: float32[width], the target's state at the last visited token (of a prompt, at its
            last one), which it picked the last emitted token from; if a drafter `needs` it.
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
        """A checked tree: `visited` counts the root as 0."""
        first = np.array([root], np.int32)
        return cls(
            np.concatenate([first, tree.tokens]),
            np.concatenate([np.full(1, -1, np.int32), tree.parents + 1]),
            before,
            np.concatenate([np.zeros(1, np.uint16), tree.sources]),
            np.array(visited, np.int32),
            np.array(emitted, np.int32),
            topk,
            hidden,
        )

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
        """Consecutive tokens, such as a prompt's, of which nothing was drafted."""
        return cls(
            np.array(tokens, np.int32),
            np.arange(-1, len(tokens) - 1, dtype=np.int32),
            before,
            np.zeros(len(tokens), np.uint16),
            np.array(visited, np.int32),
            np.array(emitted, np.int32),
            topk,
            hidden,
        )


T = TypeVar("T", bound="Drafter")


class Drafter(ABC):
    """Base class of all drafters.

    A subclass names itself, says what evidence its candidates come with (`priors`, one probability
    per bucket) and answers `expand`. It can only change speed: whatever it does wrong, the output
    stays that of the target, and the drafter is dropped for the rest of the call.

    Attributes:
        name: short, unique, as users write it in `attach(model, drafters=[...])`.
        needs: outputs of the target that `observe` wants: "topk", "hidden".
        layer: whose states `needs = {"hidden"}` wants, from 0; -1: those that the output embedding
            reads.
        kinds: of the datastores that it reads; given to `add`.
        priors: float32[buckets] in (0, 1], P(token accepted | its bucket, parent accepted).
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    kinds: ClassVar[frozenset[str]] = frozenset()
    layer: int = -1
    priors: Float32

    def begin(self, context: Context) -> None:  # noqa: B027
        """A new request starts; `context` holds its prompt and grows with the output."""

    def for_another_call(self) -> Drafter:
        """A drafter for one more call while this one drafts: another request, the same knowledge.

        By default a deep copy, which learns for itself from then on. Override it to share what is
        learned, or large: drafters of a plug are asked and told by one thread at a time, so nothing
        needs a lock. State of a request must not be shared (see `_sharing`).
        """
        return copy.deepcopy(self)

    def _sharing(self: T) -> T:
        """A drafter whose attributes are those of this one: replace what belongs to a request."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def add(self, store: Any) -> None:
        """Draft from this datastore, too. Raises OptionError if it does not read its kind."""
        raise OptionError(f"drafter {self.name!r} reads no datastores")

    @abstractmethod
    def expand(self, frontier: Frontier) -> Int32:
        """Name possible next tokens for each frontier node.

        Returns:
            int32[rows, 3], C-contiguous: (node id, token id, evidence bucket), at most
            `MAX_CHILDREN` rows per node. Valid until the next call.
        """

    def observe(self, step: Step) -> None:  # noqa: B027
        """Learn from a forward pass. The context has grown already."""

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """What the drafter has learned across requests, as arrays; empty if nothing."""
        return {}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Take back what `state_dict` gave. Raises StateError if it does not fit."""
        if state:
            raise StateError(f"drafter {self.name!r} keeps no state, but was given {sorted(state)}")


MAX_CHILDREN = 64
"""Rows that a drafter may return per frontier node; more is an error and drops it."""
