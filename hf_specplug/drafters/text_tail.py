"""The end of a text as characters: a tokenizer of one's own, and decoding token by token."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers return for bytes that are not a character (yet)."""

ANCHOR = 6
"""Tokens before new ones that are decoded with them: spaces and bytes depend on neighbours."""

_LONGEST_ANCHOR = 24  # so that it need not be decoded again in each step

MAX_WAITING = 8
"""Tokens that may wait for the rest of their character, which has at most four bytes."""


class TextCodec:
    """A tokenizer for one drafter: a copy, since tokenizers change their settings in a call.

    Copies of this object share it.

    Args:
        tokenizer: the model's tokenizer.

    Example:
        >>> codec = TextCodec(tokenizer)  # doctest: +SKIP
        >>> codec.decode(codec.encode("def f"))  # doctest: +SKIP
        'def f'
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)

    def __deepcopy__(self, memo: Any) -> TextCodec:
        return self

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without special tokens."""
        ids = self._tokenizer([text], add_special_tokens=False, verbose=False)["input_ids"][0]
        return [int(token) for token in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(
            self._tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def encode_after(self, before: Sequence[int], texts: Iterable[str]) -> Iterator[list[int]]:
        """The ids of each text as they follow the tokens `before`.

        Tokens are cut as in one text of both, if a token ends where the text begins; otherwise the
        text is cut alone.

        Yields:
            No ids for a text that the tokenizer does not give back.
        """
        start = self.decode(before)
        head = self.encode(start)
        for text in texts:
            whole = self.encode(start + text)
            ids = whole[len(head) :] if whole[: len(head)] == head else self.encode(text)
            yield ids if self.decode([*before, *ids]) == start + text else []


class TextTail:
    """Follows a text token by token and decodes what is new.

    Args:
        codec: decodes.
        tokens: the end of the text.

    Attributes:
        text: what `tokens` decode to, without those that wait.
        waiting: tokens after them that are not yet whole characters.

    Example:
        >>> tail = TextTail(codec, [5, 6])  # doctest: +SKIP
        >>> tail.append([7, 8])  # doctest: +SKIP
        ' return'
    """

    def __init__(self, codec: TextCodec, tokens: Sequence[int]) -> None:
        self._codec = codec
        ends = range(len(tokens), max(-1, len(tokens) - 1 - MAX_WAITING), -1)
        whole = (end for end in ends if not codec.decode(tokens[:end]).endswith(REPLACEMENT))
        end = next(whole, len(tokens))
        self.text = codec.decode(tokens[:end])
        self.waiting = list(tokens[end:])
        self._decoded = list(tokens[:end])[-ANCHOR:]
        self._before = codec.decode(self._decoded)

    @property
    def anchor(self) -> list[int]:
        """The last decoded tokens, at most `ANCHOR`."""
        return self._decoded[-ANCHOR:]

    def append(self, tokens: Sequence[int]) -> str | None:
        """The text that tokens add, together with those that waited; "" if all of them wait.

        Returns:
            None if decoding them changes the text before them, so that the text must be read anew.
        """
        new = [*self.waiting, *tokens]
        decoded = [*self._decoded, *new]
        text = self._codec.decode(decoded)
        if text.endswith(REPLACEMENT) and len(new) <= MAX_WAITING:
            self.waiting = new
            return ""
        if not text.startswith(self._before):
            return None
        added = text[len(self._before) :]
        self._decoded, self._before, self.waiting = decoded, text, []
        if len(decoded) > _LONGEST_ANCHOR:
            self._decoded = self.anchor
            self._before = self._codec.decode(self._decoded)
        return added
