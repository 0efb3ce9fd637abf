"""Counts of phrases over a whole corpus: exact, however it is cut into shards and parts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_specplug.datastore import manifest
from hf_specplug.datastore.building.build import build
from hf_specplug.datastore.building.corpus import Corpus, find
from hf_specplug.datastore.building.merge import merge
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.building.shard_writer import TEXTS
from hf_specplug.datastore.kinds import counting
from hf_specplug.datastore.kinds.counting import MAX_ID, as_text, occurrences
from hf_specplug.datastore.kinds.phrases import PhraseIndex
from hf_specplug.datastore.store import Datastore
from hf_specplug.errors import StoreError
from tests.helpers.stores import (
    Letters,
    files,
    from_store,
    letters,
    make,
    silent,
    specplug,
    stop,
    texts,
)

EDGES = [0, 1, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, (1 << 18) - 1, 1 << 18]
ids = st.sampled_from(EDGES[:3]) | st.sampled_from(EDGES) | st.integers(0, 1 << 18)


def test_characters_of_ids() -> None:
    """Of all ids: the two characters come from disjoint ranges, and none is a surrogate."""
    every = np.concatenate([np.arange(1 << 18), np.arange(1 << 18, MAX_ID, 251), [MAX_ID]])
    text = as_text(every)
    first, second = (np.array([ord(letter) for letter in text[at::2]]) for at in (0, 1))
    assert first.min() >= 256
    assert first.max() == 0xD7FF
    assert second.max() == 255
    assert ((first - 256) * 256 + second == every).all()
    with pytest.raises(StoreError, match="14,090,239"):
        occurrences([np.array([1, 2])], [np.array([1, MAX_ID + 1], np.uint32)])


def plainly(phrase: list[int], text: list[int]) -> int:
    size = len(phrase)
    return sum(text[at : at + size] == phrase for at in range(len(text) - size + 1))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(ids, min_size=1, max_size=4), max_size=6, unique_by=tuple),
    st.lists(st.lists(ids, max_size=30), max_size=4),
    st.integers(1, 9),
)
def test_occurrences_are_those_of_plain_counting(
    phrases: list[list[int]], parts: list[list[int]], size: int
) -> None:
    text = [token for part in parts for token in part]
    phrases = [*phrases, text[1:4]] if text[1:4] and text[1:4] not in phrases else phrases
    arrays = [np.array(phrase, np.uint32) for phrase in phrases]
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "PART_TOKENS", size)
        found = occurrences(arrays, (np.array(part, np.uint32) for part in parts), seen.append)
    assert found.tolist() == [plainly(phrase, text) for phrase in phrases]
    assert sum(seen) == (len(text) if phrases else 0)


def counted(store: Path) -> dict[tuple[int, ...], int]:
    """The phrases of all shards with the sums of their counts."""
    total: Counter[tuple[int, ...]] = Counter()
    for shard in Datastore(store).shards:
        rows = (tuple(phrase.tolist()) for phrase in shard.phrases())
        total.update(dict(zip(rows, shard.counts.tolist(), strict=True)))
    return dict(total)


def require_exact(store: Path, text: list[int]) -> dict[tuple[int, ...], int]:
    found = counted(store)
    assert found
    assert found == {phrase: plainly(list(phrase), text) for phrase in found}
    Datastore(store).check(deep=True)
    return found


@pytest.mark.parametrize("kind", ["phrases", "ngram"])
def test_counts_are_those_of_the_whole_corpus(kind: str, tmp_path: Path) -> None:
    corpus = texts(tmp_path / "texts", 30)
    text = letters(corpus)
    tokens: list[int] = []
    options = BuildOptions(kind=kind, shard_tokens=300)
    sources = Corpus(find([str(corpus)]))
    build(
        tmp_path / "store", sources, Letters(), options, stop, lambda _, count: tokens.append(count)
    )
    require_exact(tmp_path / "store", text)
    assert sum(tokens) == 2 * len(text)  # read, and counted
    (shard,) = Datastore(tmp_path / "store").manifest.shards
    assert TEXTS not in shard.arrays
    assert (shard.documents, shard.tokens) == (30, len(text))


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [6, 25, 31, 40])
def test_an_interrupted_build_counts_all(after: int, tmp_path: Path) -> None:
    """Whether it is interrupted while it reads, or while it counts."""
    corpus = texts(tmp_path / "texts", 30)
    make(tmp_path / "whole", corpus, kind="phrases", shard_tokens=300)
    left = iter(range(after))

    def interrupt(documents: int, tokens: int) -> None:
        if next(left, None) is None:
            raise Interrupted

    sources, options = Corpus(find([str(corpus)])), BuildOptions(kind="phrases", shard_tokens=300)
    with pytest.raises(Interrupted):
        build(tmp_path / "store", sources, Letters(), options, stop, interrupt)
    make(tmp_path / "store", corpus, kind="phrases", shard_tokens=300)
    assert files(tmp_path / "store") == files(tmp_path / "whole")


def test_an_append_counts_what_is_known(tmp_path: Path) -> None:
    """Phrases of the first build are exact after appending and merging."""
    store, more = tmp_path / "store", texts(tmp_path / "more", 25, seed=0)
    corpus = texts(tmp_path / "texts", 12)
    make(store, corpus, kind="phrases", shard_tokens=300)
    known = set(counted(store))
    make(store, more, append=True, shard_tokens=400)
    whole = letters(corpus) + letters(more)
    for _ in range(2):
        found = counted(store)
        assert known < set(found)
        assert all(found[row] == plainly(list(row), whole) for row in known)
        assert all(found[row] >= plainly(list(row), letters(more)) for row in found)
        merge(store, 1 << 20, silent)
    source = tmp_path / "corpus"
    make(source, corpus)
    make(source, more, append=True)
    assert specplug("merge", store, "--corpus", source)[0] == 0
    require_exact(store, whole)


def test_phrases_of_a_store(tmp_path: Path) -> None:
    make(tmp_path / "source", texts(tmp_path / "texts", 20), shard_tokens=500)
    from_store(tmp_path / "store", tmp_path / "source", kind="phrases", shard_tokens=300)
    require_exact(tmp_path / "store", letters(tmp_path / "texts"))


def test_given_phrases_are_counted(tmp_path: Path) -> None:
    """Those that no other document contains, too; and none is dropped for its count."""
    rows = ["abcabcabc", "abc", "abc", "xyxyxyz"]
    (tmp_path / "texts").mkdir()
    for number, row in enumerate(rows):
        (tmp_path / "texts" / f"{number}.txt").write_text(row)
    make(tmp_path / "store", tmp_path / "texts", kind="phrases", given=True, shard_tokens=15)
    text = {letter % 96: letter for letter in map(ord, "abcxyz")}
    spelled = {
        "".join(chr(text[token]) for token in row): number
        for row, number in counted(tmp_path / "store").items()
    }
    assert spelled == {"abc": 5, "abcabcabc": 1, "xyxyxyz": 1}


@pytest.mark.parametrize(
    ("kind", "corpus", "message"),
    [
        ("trigram", "source", "counts no phrases"),
        ("phrases", "store", "does not keep its texts"),
        ("phrases", "other", "token ids differ"),
        ("phrases", "nowhere", "is not a datastore"),
    ],
)
def test_corpora_that_cannot_be_counted(
    kind: str, corpus: str, message: str, tmp_path: Path
) -> None:
    folder = texts(tmp_path / "texts", 5)
    make(tmp_path / "store", folder, kind=kind)
    make(tmp_path / "source", folder)
    make(tmp_path / "other", folder, letters=97)
    before = files(tmp_path / "store")
    with pytest.raises(StoreError, match=message):
        merge(tmp_path / "store", 1 << 20, silent, tmp_path / corpus)
    assert files(tmp_path / "store") == before


def test_a_build_begun_by_version_0_1(tmp_path: Path, monkeypatch: Any) -> None:
    """Its shards have no texts: their counts are added up, as they were then."""
    corpus = texts(tmp_path / "texts", 20)
    monkeypatch.setattr(PhraseIndex, "recounts", False)
    left = iter(range(14))

    def interrupt(documents: int, tokens: int) -> None:
        if next(left, None) is None:
            raise Interrupted

    sources, options = Corpus(find([str(corpus)])), BuildOptions(kind="phrases", shard_tokens=300)
    with pytest.raises(Interrupted):
        build(tmp_path / "store", sources, Letters(), options, stop, interrupt)
    assert manifest.load(tmp_path / "store").shards
    monkeypatch.undo()
    make(tmp_path / "store", corpus, kind="phrases", shard_tokens=300)
    Datastore(tmp_path / "store").check(deep=True)
    assert counted(tmp_path / "store")
