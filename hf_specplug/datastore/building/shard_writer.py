"""The shards of a build: indexed, written one by one, and joined and counted at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_specplug.datastore import manifest
from hf_specplug.datastore.arrays import open_array, verify
from hf_specplug.datastore.building.executors import Executor, IndexBuilder
from hf_specplug.datastore.building.folder import remove_unlisted, write_shard
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.kinds.registry import index_class
from hf_specplug.datastore.kinds.strings import STRINGS, pack_strings
from hf_specplug.datastore.manifest import Manifest, Shard
from hf_specplug.datastore.store import Datastore

Progress = Callable[[int, int], None]
"""Called with (documents, tokens) that have been done since the last call. Kinds that count over
the whole corpus report its tokens once more."""

TEXTS = "texts"
"""Name of the array with the tokens of a shard, which kinds that recount keep during a build."""


class ShardWriter:
    """Writes shards in order. Earlier ones may still be indexed while the next one is filled.

    Args:
        folder: folder of the datastore, whose only writer this is.
        state: the manifest, with `build`.
        executor: where indexes are built.
        options: those of the build.
        builder: builds the index of a shard; by default that of the kind.

    Attributes:
        state: the manifest as it was last written.

    Example:
        >>> shards = ShardWriter(folder, state, LocalExecutor(), options)  # doctest: +SKIP
        >>> shards.add(tokens, 1, {"documents": 1, "tokens": len(tokens), "left_out": 0}, [])
        ... # doctest: +SKIP
        >>> shards.finish(0, progress)  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: Path,
        state: Manifest,
        executor: Executor,
        options: BuildOptions,
        builder: IndexBuilder | None = None,
    ) -> None:
        self.state, self.executor = state, executor
        self._folder = folder
        self._index = index_class(state.kind)
        build = self._index.build_given if options.given else self._index.build
        self._builder = builder or build
        self._pending: deque[Callable[[], None]] = deque()
        self._count = len(state.shards)

    def add(
        self, tokens: NDArray[Any], documents: int, done: dict[str, int], strings: list[str]
    ) -> None:
        """Take over a filled shard.

        Args:
            tokens: int[n], the documents, each with its separator.
            documents: number of documents in it.
            done: what is done of the corpus once it is written: "documents", "tokens", and how
                many of the documents were "left_out".
            strings: the texts of given documents.
        """
        if not len(tokens):
            return
        tokens = tokens.copy()
        arrays = self.executor.start_index(self._builder, tokens, self.state.vocab_size)
        more = {TEXTS: tokens} if self._index.recounts else {}
        if strings:
            more[STRINGS] = pack_strings(strings)
        number = self._count
        self._count += 1

        def write() -> None:
            index = {**arrays(), **more}
            shard = write_shard(self._folder, number, index, documents, len(tokens))
            build = {**self.state.build, **done}
            self.state = self.state.with_shards((*self.state.shards, shard), build)
            manifest.save(self._folder, self.state)

        self._pending.append(write)
        while len(self._pending) > self.executor.max_pending:
            self._pending.popleft()()

    def finish(self, left_out: int, progress: Progress) -> Manifest:
        """Write the pending shards, join them if the kind asks for it, and end the build.

        Args:
            left_out: documents that were left out.
            progress: see `Progress`.
        """
        while self._pending:
            self._pending.popleft()()
        begin = int(self.state.build["shards"])
        before, new = self.state.shards[:begin], self.state.shards[begin:]
        if self._index.join_after_build and new:
            new = (self._joined(begin, progress),)
        total = self.state.left_out + left_out
        self.state = replace(self.state.with_shards((*before, *new), {}), left_out=total)
        manifest.save(self._folder, self.state)
        remove_unlisted(self._folder)
        return self.state

    def _joined(self, begin: int, progress: Progress) -> Shard:
        """One shard of those from number `begin` on.

        A kind that recounts counts the phrases of earlier shards, too, so that their counts stay
        exact when the shards are added up.
        """
        new, vocab = self.state.shards[begin:], self.state.vocab_size
        opened = Datastore(self._folder).shards
        texts = [shard.arrays[TEXTS] for shard in new if TEXTS in shard.arrays]
        recounts = len(texts) == len(new)  # not if an earlier version began this build
        parts = opened if recounts else opened[begin:]
        index = self._index.join(parts, vocab, self.state.settings)
        if recounts:
            for text in texts:
                verify(self._folder, text)
            mapped = (open_array(self._folder, text).view(np.ndarray) for text in texts)
            index = self._index.recount(index, mapped, vocab, lambda n: progress(0, n))
        documents, tokens = sum(shard.documents for shard in new), sum(s.tokens for s in new)
        return write_shard(self._folder, self._count, index, documents, tokens)
