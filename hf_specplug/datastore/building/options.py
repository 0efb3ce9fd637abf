"""What a user can ask of a build, validated in one place."""

from __future__ import annotations

from dataclasses import dataclass

from hf_specplug.datastore.building.executors import EXECUTORS, LOCAL
from hf_specplug.datastore.kinds.contract import Index
from hf_specplug.datastore.kinds.faiss_index import AUTO
from hf_specplug.datastore.kinds.registry import DEFAULT_KIND, index_class, registry
from hf_specplug.datastore.kinds.suffix import MAX_SHARD_TOKENS
from hf_specplug.errors import OptionError, StoreError

DEFAULT_SHARD_TOKENS = 1 << 25
"""Tokens of a shard, unless memory or the user asks for fewer."""

LAST_LAYER = -1
_BYTES_PER_TOKEN = 28  # of memory while a shard is built


@dataclass(frozen=True)
class BuildOptions:
    """How a datastore is built. The defaults are those of `specplug build`.

    Attributes:
        kind: kind of the datastore; None: that of the recipe, or "suffix".
        tokenizer: folder or Hub name; None: that of the recipe, the model or the source datastore.
        text_field: field of .jsonl, .parquet and dataset rows that holds the text.
        dedup: whether repeated documents are left out.
        max_tokens: tokens of the corpus to use; 0: all.
        shard_tokens: tokens of a shard at most, from 1 to 2^27.
        given: whether each document is kept whole, as one phrase (kind "phrases").
        append: whether to add shards to an existing datastore.
        engine: where to tokenize and index: a name of `EXECUTORS`.
        workers: threads that tokenize; 0: all cores.
        from_model_outputs: name of a model whose greedy answers to the corpus are stored.
        model: name of the model whose hidden states are indexed (kind "dense").
        layer: decoder layer of these states, from 0; -1: the last one.
        index: FAISS factory string, or "auto" (kind "dense").
        leave_out: file of strings; documents that contain one of them are left out.

    Raises:
        StoreError: an unknown kind, or a value that is out of range or does not fit the kind.
        OptionError: options that exclude each other.

    Example:
        >>> BuildOptions(kind="trigram", max_tokens=1_000_000).index_class.kind
        'trigram'
    """

    kind: str | None = None
    tokenizer: str | None = None
    text_field: str = "text"
    dedup: bool = False
    max_tokens: int = 0
    shard_tokens: int = DEFAULT_SHARD_TOKENS
    given: bool = False
    append: bool = False
    engine: str = LOCAL
    workers: int = 0
    from_model_outputs: str | None = None
    model: str | None = None
    layer: int = LAST_LAYER
    index: str = AUTO
    leave_out: str | None = None

    def __post_init__(self) -> None:
        index = self.index_class
        if self.given and self.kind is not None and not index.accepts_given:
            kinds = [name for name, kind in registry().items() if kind.accepts_given]
            raise StoreError(f"--given is for datastores of kind {', '.join(kinds)}")
        if not 1 <= self.shard_tokens <= MAX_SHARD_TOKENS:
            raise StoreError(
                f"a shard has from 1 to {MAX_SHARD_TOKENS:,} tokens, not {self.shard_tokens:,}"
            )
        if self.engine not in EXECUTORS:
            raise StoreError(f"--engine is one of {', '.join(EXECUTORS)}, not {self.engine!r}")
        if self.from_model_outputs and self.engine != LOCAL:
            raise OptionError(
                "--from-model-outputs runs the model in this process and cannot be combined with "
                f"--engine {self.engine}"
            )

    @property
    def index_class(self) -> type[Index]:
        """The class of the kind."""
        return index_class(self.kind or DEFAULT_KIND)

    def required_tokenizer(self) -> str:
        """The tokenizer's name. Raises OptionError unless all that the kind needs is given."""
        if self.index_class.needs_model and self.model is None:
            raise OptionError(
                f"--kind {self.kind} indexes a model's hidden states: give one with "
                "--model NAME_OR_PATH"
            )
        if self.model is not None and not self.index_class.needs_model:
            kinds = [name for name, kind in registry().items() if kind.needs_model]
            raise OptionError(
                f"--model is for --kind {', '.join(kinds)}; a tokenizer is given with --tokenizer"
            )
        if self.tokenizer is None:
            raise OptionError("a datastore needs the model's tokenizer: --tokenizer NAME_OR_PATH")
        return self.tokenizer


def shard_tokens_for(memory: int) -> int:
    """The largest shard, in tokens, that can be built in `memory` bytes."""
    return max(1, min(MAX_SHARD_TOKENS, memory // _BYTES_PER_TOKEN))
