"""What is kept of checked trees, and how their nodes read."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hf_specplug.errors import OptionError
from hf_specplug.tree import DraftTree

KEPT = 4096
"""Steps that a history holds at most: a few megabytes."""


class CheckedStep(NamedTuple):
    """One forward pass.

    Attributes:
        root: the last token before it.
        tree: the draft that it checked, without the root; may be empty.
        visited: indices of the accepted nodes, 0 = root, i + 1 = node i of the tree.
        emitted: the tokens that it gave, one for each visited node; the last is the model's own.
    """

    root: int
    tree: DraftTree
    visited: Sequence[int]
    emitted: Sequence[int]


class History:
    """The last steps of one call, as they happen.

    Args:
        names: of the drafters, by source bit.

    Attributes:
        count: steps so far, those that are no longer kept included.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.steps: deque[CheckedStep] = deque(maxlen=KEPT)
        self.count = 0

    def append(self, step: CheckedStep) -> None:
        self.steps.append(step)
        self.count += 1


ROOT, ACCEPTED, REJECTED, OWN = "root", "accepted", "rejected", "own"


@dataclass(slots=True)
class Node:
    """A token of a step, with those that may follow: the model's choice first, then by probability.

    Attributes:
        kind: ROOT, ACCEPTED, REJECTED, or OWN: what the model said where the draft ended.
        prob: P(accepted | parent accepted) as it was predicted; 1 if it was not drafted.
        drafters: who named it.
    """

    token: int
    kind: str
    prob: float = 1.0
    drafters: tuple[str, ...] = ()
    children: list[Node] = field(default_factory=list)


def read(step: CheckedStep, names: Sequence[str]) -> Node:
    """The root of a step's tree, the model's own token included."""
    tree, accepted = step.tree, set(step.visited)
    nodes = [Node(step.root, ROOT)]
    columns = (tree.tokens, tree.parents, tree.probs, tree.sources)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for index, (token, parent, prob, sources) in enumerate(rows, start=1):
        kind = ACCEPTED if index in accepted else REJECTED
        drafters = tuple(name for bit, name in enumerate(names) if sources >> bit & 1)
        nodes.append(Node(token, kind, prob, drafters))
        nodes[parent + 1].children.append(nodes[-1])
    last, own = nodes[step.visited[-1]], step.emitted[-1]
    for child in last.children:
        if child.token == own:  # drafted, too, but generation had ended with it
            child.kind = OWN
            break
    else:
        last.children.append(Node(own, OWN))
    for node in nodes:
        node.children.sort(key=lambda child: (child.kind == REJECTED, -child.prob))
    return nodes[0]


class TokenText:
    """Tokens as text; as numbers without a tokenizer.

    Args:
        tokenizer: the model's, or None.

    Raises:
        OptionError: it is no tokenizer.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        if tokenizer is not None and not callable(getattr(tokenizer, "decode", None)):
            raise OptionError(
                "tokenizer must be the model's tokenizer, or None to show ids, "
                f"not {type(tokenizer).__name__}"
            )
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        """A token's text with white space and control characters made visible."""
        if token not in self._known:
            self._known[token] = visible(self._decode(token)) or f"<{token}>"
        return self._known[token]

    def _decode(self, token: int) -> str:
        if self._tokenizer is None:
            return str(token)
        if not 0 <= token < len(self._tokenizer):  # models have more rows than there are tokens
            return ""
        once = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        twice = self._tokenizer.decode([token, token], clean_up_tokenization_spaces=False)
        # at the start of a text tokenizers drop the space that belongs to a word
        return str(twice[len(once) :] if twice.startswith(once) else once)


_SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def visible(text: str) -> str:
    """White space as signs, what cannot be printed as escapes.

    Example:
        >>> visible(" a\\n\\x00")
        '␣a⏎\\\\x00'
    """
    return "".join(
        _SIGNS.get(char) or (char if char.isprintable() else ascii(char)[1:-1]) for char in text
    )
