"""A build from names to a datastore: what `specplug build` and `specplug append` run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_specplug.datastore.building import recipe
from hf_specplug.datastore.building.answers import (
    ANSWER_SHARD_TOKENS,
    Answer,
    AnsweringExecutor,
    PromptCorpus,
    ReadPrompts,
)
from hf_specplug.datastore.building.build import build
from hf_specplug.datastore.building.corpus import Corpus
from hf_specplug.datastore.building.executors import EXECUTORS, LOCAL, Executor
from hf_specplug.datastore.building.leave_out import LeaveOut, read_strings
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.building.shard_writer import Progress
from hf_specplug.datastore.building.store_corpus import StoreCorpus
from hf_specplug.datastore.kinds import faiss_index
from hf_specplug.datastore.kinds.contract import NO_SETTINGS
from hf_specplug.datastore.kinds.registry import DEFAULT_KIND
from hf_specplug.datastore.manifest import NAME, Manifest
from hf_specplug.datastore.store import Datastore
from hf_specplug.errors import CorpusError

if TYPE_CHECKING:
    from hf_specplug.datastore.building.embedding import Embedding


@dataclass(frozen=True)
class Loaders:
    """What a build needs of models. It is injected: datastores do not run `generate`.

    Attributes:
        tokenizer: loads a tokenizer by name.
        read_prompts: yields the prompts of a file.
        model: loads a model by name and returns what answers a prompt.
    """

    tokenizer: Callable[[str], Any]
    read_prompts: ReadPrompts
    model: Callable[[str], Answer]


@dataclass
class BuildJob:
    """A build that is ready to run: see `prepare`.

    Attributes:
        folder: folder of the datastore.
        corpus: the documents.
        tokenizer: the model's tokenizer.
        options: the options, completed by recipe and existing datastore.
        embedding: makes the vectors of a dense datastore, otherwise None.
        leave_out: finds the documents that stay out, otherwise None.
        executor: where to tokenize and index; None before `setup`.
    """

    folder: Path
    corpus: Corpus
    tokenizer: Any
    options: BuildOptions
    loaders: Loaders
    embedding: Embedding | None = None
    leave_out: LeaveOut | None = None
    executor: Executor | None = None

    def setup(self) -> None:
        """Fit the projection of a dense datastore, and start what tokenizes and indexes.

        Raises:
            CorpusError: the projection cannot be fitted to this corpus.
            StoreError: the executor needs a library that is not installed.
            ModelError: the model that answers cannot be loaded.
        """
        options = self.options
        if self.embedding is not None:
            self.embedding.fit(self.corpus, self.tokenizer, options.max_tokens, self.leave_out)
            if options.engine != LOCAL:  # workers load models of their own
                self.embedding.release()
        if options.from_model_outputs is not None:
            self.executor = AnsweringExecutor(self.loaders.model(options.from_model_outputs))
        else:
            self.executor = EXECUTORS[options.engine]()

    def run(self, on_error: Callable[[CorpusError], None], progress: Progress) -> Datastore:
        """Build, and return the datastore; see `build.build`."""
        embedding = self.embedding
        settings = embedding.settings(self.options.index) if embedding else NO_SETTINGS
        build(
            self.folder,
            self.corpus,
            self.tokenizer,
            self.options,
            on_error,
            progress,
            self.executor,
            embedding,
            settings,
            self.leave_out,
        )
        return Datastore(self.folder)


def prepare(folder: Path, sources: list[str], options: BuildOptions, loaders: Loaders) -> BuildJob:
    """Resolve all names of a build: corpus, recipe, existing datastore, tokenizer, model.

    Args:
        folder: folder of the datastore.
        sources: one recipe, one datastore, or any number of files, folders and globs.
        options: options of the command.
        loaders: load models and tokenizers.

    Raises:
        StoreError, CorpusError, OptionError: the message says what is wrong.
        ModelError: the tokenizer or model cannot be loaded.
    """
    if options.workers:
        os.environ["RAYON_NUM_THREADS"] = str(options.workers)
    known = Datastore(folder).manifest if options.append else None
    if known is None:
        options = replace(options, tokenizer=options.tokenizer or options.model)
    else:
        options = _as_existing(options, known)
    corpus, options = recipe.load(sources, options)
    tokenizer = options.tokenizer or options.from_model_outputs
    if known is not None:
        tokenizer = tokenizer or known.tokenizer["name"]
    options = replace(options, kind=options.kind or DEFAULT_KIND, tokenizer=tokenizer)
    made = loaders.tokenizer(options.required_tokenizer())
    if isinstance(corpus, StoreCorpus):
        corpus.store.require_tokenizer(made)
    if (answering := options.from_model_outputs) is not None:
        corpus = PromptCorpus(corpus.files, model=answering, read=loaders.read_prompts)
        options = replace(options, shard_tokens=min(options.shard_tokens, ANSWER_SHARD_TOKENS))
    leave_out = None
    if options.leave_out is not None:
        leave_out = LeaveOut(read_strings(options.leave_out, loaders.read_prompts), made)
        if isinstance(corpus, (StoreCorpus, PromptCorpus)):
            leave_out.require_decoding()
    embedding, options = _embedding(folder, options)
    return BuildJob(folder, corpus, made, options, loaders, embedding, leave_out)


def _as_existing(options: BuildOptions, known: Manifest) -> BuildOptions:
    """The options that an append takes from the datastore."""
    options = replace(options, kind=known.kind)
    if not known.settings:
        return options
    model, layer, index = (known.settings[key] for key in ("model", "layer", "index"))
    return replace(options, model=model["name"], layer=layer, index=index)


def _embedding(folder: Path, options: BuildOptions) -> tuple[Embedding | None, BuildOptions]:
    """The embedding of a dense datastore, with the projection that the folder already has."""
    if options.model is None:
        return None, options
    from hf_specplug.datastore.building import embedding as module  # imports torch, when needed

    projection = None
    if (folder / NAME).exists():
        known = Datastore(folder)
        if known.shards and known.manifest.kind == options.kind:
            projection = known.shards[0].transform
    embedding = module.Embedding(
        options.model, options.layer, projection, alone=options.engine == LOCAL
    )
    faiss_index.check_name(embedding.dims, options.index)
    shard_tokens = min(options.shard_tokens, module.EMBEDDING_SHARD_TOKENS)
    return embedding, replace(options, shard_tokens=shard_tokens)
