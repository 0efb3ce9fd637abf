"""The history of a call: its verified trees, and how to read and show their nodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from hf_specplug.errors import OptionError
from hf_specplug.tree import DraftTree

MAX_STEPS = 4096
"""The maximum number of steps in a history: a few megabytes."""


class CheckedStep(NamedTuple):
    """One forward pass and what it verified.

    Attributes:
        root: the last token before the draft.
        tree: the draft, without the root; may be empty.
        visited: indices of the accepted nodes; 0 = root, i + 1 = node i of the tree.
        emitted: token ids, one for each visited node; the last is the bonus token, the model's own.
    """

    root: int
    tree: DraftTree
    visited: Sequence[int]
    emitted: Sequence[int]


class History:
    """The last steps of one call.

    Args:
        names: of the drafters, by source bit.

    Attributes:
        steps: the last `MAX_STEPS` steps.
        count: the number of all steps, including those that are no longer kept.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.steps: deque[CheckedStep] = deque(maxlen=MAX_STEPS)
        self.count = 0
        self._taken = 0

    def append(self, step: CheckedStep) -> None:
        self.steps.append(step)
        self.count += 1

    def take(self, least: int = 1) -> list[CheckedStep]:
        """The steps since this last returned some; none if they are fewer than `least`."""
        fresh = self.count - self._taken
        if fresh < least:
            return []
        self._taken = self.count
        return list(islice(reversed(self.steps), fresh))[::-1]


ROOT, ACCEPTED, REJECTED, BONUS = "root", "accepted", "rejected", "bonus"
"""Kinds of nodes. BONUS: the model's own token, where the accepted path ends."""


@dataclass(slots=True)
class Node:
    """A token of a step.

    Attributes:
        token: its id.
        kind: ROOT, ACCEPTED, REJECTED or BONUS.
        prob: the predicted P(accepted | parent accepted); 1 if the token was not drafted.
        drafters: names of the drafters that proposed it.
        children: what may follow; the model's choice first, then by descending probability.
    """

    token: int
    kind: str
    prob: float = 1.0
    drafters: tuple[str, ...] = ()
    children: list[Node] = field(default_factory=list)


def node_tree(step: CheckedStep, names: Sequence[str]) -> Node:
    """The root of a step's tree, with the bonus token as a node.

    Args:
        step: a verified tree.
        names: of the drafters, by source bit.
    """
    tree, accepted = step.tree, set(step.visited)
    nodes = [Node(step.root, ROOT)]
    columns = (tree.tokens, tree.parents, tree.probs, tree.sources)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for index, (token, parent, prob, sources) in enumerate(rows, start=1):
        kind = ACCEPTED if index in accepted else REJECTED
        drafters = tuple(name for bit, name in enumerate(names) if sources >> bit & 1)
        nodes.append(Node(token, kind, prob, drafters))
        nodes[parent + 1].children.append(nodes[-1])
    last, bonus = nodes[step.visited[-1]], step.emitted[-1]
    for child in last.children:
        if child.token == bonus:  # drafted, too, but generation ended with it
            child.kind = BONUS
            break
    else:
        last.children.append(Node(bonus, BONUS))
    for node in nodes:
        node.children.sort(key=lambda child: (child.kind == REJECTED, -child.prob))
    return nodes[0]


class TokenText:
    """Shows tokens as text, or as ids without a tokenizer.

    Args:
        tokenizer: the model's, or None.

    Raises:
        OptionError: `tokenizer` has no `decode` method.

    Example:
        >>> TokenText()(42)
        '42'
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
        """The text of a token id, with white space and control characters made visible."""
        if token not in self._known:
            self._known[token] = visible(self._decode(token)) or f"<{token}>"
        return self._known[token]

    def _decode(self, token: int) -> str:
        if self._tokenizer is None:
            return str(token)
        if not 0 <= token < len(self._tokenizer):  # the model's vocabulary is padded
            return ""
        once = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        twice = self._tokenizer.decode([token, token], clean_up_tokenization_spaces=False)
        # tokenizers drop the space before a word at the start of a text
        return str(twice[len(once) :] if twice.startswith(once) else once)


_SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def visible(text: str) -> str:
    """Text with white space as signs, and characters that cannot be printed as escapes.

    Example:
        >>> visible(" a\\n\\x00")
        '␣a⏎\\\\x00'
    """
    return "".join(
        _SIGNS.get(char) or (char if char.isprintable() else ascii(char)[1:-1]) for char in text
    )
