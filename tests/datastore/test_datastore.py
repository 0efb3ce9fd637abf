"""Datastores: complete or not there, whatever happens to the writer, the files or the disk."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from hf_specplug import DEMO_MODEL
from hf_specplug.datastore import arrays, manifest
from hf_specplug.datastore.building.build import build
from hf_specplug.datastore.building.corpus import Corpus, find
from hf_specplug.datastore.building.merge import merge
from hf_specplug.datastore.building.options import BuildOptions, shard_tokens_for
from hf_specplug.datastore.building.recipe import load as load_recipe
from hf_specplug.datastore.kinds.contract import token_dtype
from hf_specplug.datastore.store import Datastore, tokenizer_hash
from hf_specplug.drafters.contract import Context, Frontier
from hf_specplug.drafters.rest import RestDrafter
from hf_specplug.errors import CorpusError, StoreError
from tests.helpers.stores import Letters, make, silent, stop, texts


def contents(store: Path) -> list[int]:
    opened = Datastore(store)
    opened.check(deep=True)
    return [token for shard in opened.shards for token in shard.tokens.tolist()]


def files(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir() if path.name != ".lock"}


def test_a_store_holds_the_corpus(tmp_path: Path) -> None:
    corpus = texts(tmp_path / "texts")
    make(tmp_path / "store", corpus, shard_tokens=500)
    opened = Datastore(tmp_path / "store")
    expected: list[int] = []
    for path in sorted(corpus.iterdir()):
        expected += [ord(letter) % 96 for letter in path.read_text()] + [96]
    assert contents(tmp_path / "store") == expected
    assert len(opened) == len(expected)
    assert opened.documents == 20
    assert all(len(shard.tokens) <= 500 for shard in opened.shards)
    assert all(int(shard.tokens[-1]) == 96 for shard in opened.shards)  # no document is split
    assert not opened.manifest.build
    assert opened.bytes < 6.2 * len(expected) + 1500 * len(opened.shards)


def test_equal_builds_are_equal_files(tmp_path: Path) -> None:
    corpus = texts(tmp_path / "texts")
    make(tmp_path / "one", corpus, shard_tokens=700)
    make(tmp_path / "other", corpus, shard_tokens=700)
    assert files(tmp_path / "one") == files(tmp_path / "other")


def test_limits(tmp_path: Path) -> None:
    corpus = texts(tmp_path / "texts")
    make(tmp_path / "some", corpus, max_tokens=400)
    assert 390 <= len(contents(tmp_path / "some")) <= 400
    make(tmp_path / "tiny", corpus, shard_tokens=50)  # longer documents are cut
    assert all(len(shard.tokens) <= 50 for shard in Datastore(tmp_path / "tiny").shards)
    for _ in range(2):
        (corpus / "again.txt").write_text((corpus / "000.txt").read_text())
    make(tmp_path / "deduplicated", corpus, dedup=True)
    assert Datastore(tmp_path / "deduplicated").documents == 20
    with pytest.raises(StoreError, match="from 1 to 134,217,728"):
        BuildOptions(shard_tokens=0)
    assert shard_tokens_for(1) == 1
    assert token_dtype(65535) == np.uint16
    assert token_dtype(65536) == np.uint32


def test_an_empty_corpus_is_an_empty_store(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    make(tmp_path / "store", tmp_path / "empty.txt")
    assert contents(tmp_path / "store") == []


def test_the_committed_sample_stays_readable() -> None:
    sample = Path(__file__).parents[2] / "datastores" / "sample.store"
    opened = Datastore(sample)
    opened.check(deep=True)
    assert len(opened) > 20_000
    opened.require_tokenizer(AutoTokenizer.from_pretrained(DEMO_MODEL))


@pytest.mark.parametrize("recipe", ["stdlib", "code", "chats", "outputs"])
def test_recipes_can_be_read(recipe: str, tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "datastores" / "recipes"
    shutil.copy(folder / f"{recipe}.toml", tmp_path)
    for name in (
        "src/a.py",
        "docs/a.md",
        "a.md",
        "logs/a.jsonl",
        "logs/a.jsonl.gz",
        "answers.jsonl",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert load_recipe([str(tmp_path / f"{recipe}.toml")], BuildOptions())[0].files


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [0, 3, 7, 12])
def test_an_interrupted_build_goes_on(tmp_path: Path, after: int) -> None:
    corpus = texts(tmp_path / "texts")
    make(tmp_path / "whole", corpus, shard_tokens=500)
    seen = 0

    def interrupt(documents: int, tokens: int) -> None:
        nonlocal seen
        seen += documents
        if seen > after:
            raise Interrupted

    broken = tmp_path / "broken"
    options = BuildOptions(shard_tokens=500)
    with pytest.raises(Interrupted):
        build(broken, Corpus(find([str(corpus)])), Letters(), options, stop, interrupt)
    assert Datastore(broken).manifest.build
    listed = len(contents(broken))
    assert contents(tmp_path / "whole")[:listed] == contents(broken)
    if listed:  # otherwise there is nothing to protect
        with pytest.raises(StoreError, match="interrupted build of another corpus"):
            make(broken, corpus, shard_tokens=501)
    make(broken, corpus, shard_tokens=500)
    assert files(broken) == files(tmp_path / "whole")


def failed(store: Path, **options: Any) -> None:
    """A build that fails at its first line, before any shard."""
    broken = store.parent / "broken.jsonl"
    broken.write_text("not json")
    with pytest.raises(CorpusError, match="line 1: not JSON"):
        make(store, broken, **options)


def test_a_build_that_failed_at_once_can_be_corrected(tmp_path: Path) -> None:
    """Nothing was written, so that no part of the first command binds the second one."""
    store, corpus = tmp_path / "store", texts(tmp_path / "texts")
    failed(store, letters=90, kind="trigram", shard_tokens=300, dedup=True)
    failed(store)
    with pytest.raises(StoreError, match="interrupted build"):  # what was interrupted is unknown
        make(store, corpus, append=True)
    make(store, corpus, shard_tokens=500)
    make(tmp_path / "direct", corpus, shard_tokens=500)
    assert files(store) == files(tmp_path / "direct")
    failed(store, append=True)
    assert Datastore(store).manifest.build
    with pytest.raises(StoreError, match="finished datastore"):
        make(store, corpus)
    for name in ("store", "direct"):
        make(tmp_path / name, corpus, append=True, max_tokens=100)
    assert files(store) == files(tmp_path / "direct")


def test_append_and_merge(tmp_path: Path) -> None:
    store = tmp_path / "store"
    make(store, texts(tmp_path / "one"), shard_tokens=500)
    before = contents(store)
    reader = Datastore(store)
    kept = [shard.tokens.tolist() for shard in reader.shards]
    make(store, texts(tmp_path / "two", 5, seed=1), append=True, shard_tokens=500)
    after = contents(store)
    assert after[: len(before)] == before
    assert Datastore(store).documents == 25
    merge(store, 1 << 20, silent)
    assert contents(store) == after
    assert len(Datastore(store).shards) == 1
    assert Datastore(store).documents == 25
    assert [shard.tokens.tolist() for shard in reader.shards] == kept  # still readable
    assert {path.name for path in store.iterdir()} == Datastore(store).manifest.files() | {".lock"}
    merge(store, 1 << 20, silent)
    assert contents(store) == after


def test_what_is_refused(tmp_path: Path) -> None:
    corpus = texts(tmp_path / "texts")
    store = tmp_path / "store"
    make(store, corpus)
    with pytest.raises(StoreError, match="finished datastore"):
        make(store, corpus)
    with pytest.raises(StoreError, match="tokenizer of letters"):
        make(store, corpus, append=True, letters=95)
    with pytest.raises(StoreError, match="not a datastore to append to"):
        make(tmp_path / "new", corpus, append=True)
    with pytest.raises(StoreError, match="is not a datastore; choose"):
        make(corpus, corpus)
    with pytest.raises(StoreError, match=r"has no specplug\.json"):
        merge(tmp_path / "nowhere", 100, silent)
    assert not (tmp_path / "nowhere").exists()
    Datastore(store).require_tokenizer(Letters())
    with pytest.raises(StoreError, match="whose token ids differ"):
        Datastore(store).require_tokenizer(Letters(97))
    assert tokenizer_hash(Letters(5)) != tokenizer_hash(Letters(6))


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    corpus = texts(tmp_path / "texts")
    store = tmp_path / "store"
    errors = []

    def second(documents: int, tokens: int) -> None:
        try:
            make(store, corpus)
        except StoreError as error:
            errors.append(str(error))

    build(store, Corpus(find([str(corpus)])), Letters(), BuildOptions(), stop, second)
    assert "being written by another process" in errors[0]
    contents(store)


def test_a_full_disk_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, more = texts(tmp_path / "texts"), texts(tmp_path / "more", 9, seed=2)
    make(tmp_path / "first", corpus, shard_tokens=500)
    before = contents(tmp_path / "first")
    fsync = os.fsync
    refused = 0
    for budget in range(40):
        store = tmp_path / f"store{budget}"
        shutil.copytree(tmp_path / "first", store)
        left = [budget]

        def full(descriptor: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        try:
            merge(store, 1 << 20, silent)
            make(store, more, append=True, shard_tokens=500)
        except OSError:
            refused += 1
        monkeypatch.setattr(os, "fsync", fsync)
        assert contents(store)[: len(before)] == before
        if Datastore(store).manifest.build or Datastore(store).documents == 20:
            make(store, more, append=True, shard_tokens=500)  # once there is space again
        assert Datastore(store).documents == 29
        contents(store)
    assert 10 < refused < 40


def broken_stores(store: Path) -> dict[str, Any]:
    """Name -> what is done to a store."""
    state = json.loads((store / manifest.NAME).read_text())
    tokens = state["shards"][0]["arrays"]["tokens"]

    def rewritten(change: Any) -> Any:
        def apply() -> None:
            fresh = json.loads((store / manifest.NAME).read_text())
            change(fresh, fresh["shards"][0]["arrays"]["tokens"])
            (store / manifest.NAME).write_text(json.dumps(fresh))

        return apply

    def truncated(name: str, size: int) -> Any:
        return lambda: os.truncate(store / name, size)

    def linked() -> None:
        (store / tokens["name"]).rename(store.parent / "elsewhere.npy")
        (store / tokens["name"]).symlink_to(store.parent / "elsewhere.npy")

    size = (store / tokens["name"]).stat().st_size
    cases: dict[str, Any] = {
        f"truncated at {at}": truncated(tokens["name"], at)
        for at in (0, 5, 6, 8, 10, 60, 127, 128, 129, size - 1)
    }
    length = (store / manifest.NAME).stat().st_size
    cases |= {
        f"manifest of {at} bytes": truncated(manifest.NAME, at)
        for at in (0, 1, length // 2, length - 1)
    }
    cases |= {
        "gone": lambda: (store / tokens["name"]).unlink(),
        "a link": linked,
        "a folder": lambda: ((store / tokens["name"]).unlink(), (store / tokens["name"]).mkdir()),
        "longer": lambda: (store / tokens["name"]).write_bytes(bytes(size + 1)),
        "a list": lambda: (store / manifest.NAME).write_text("[]"),
        "nested": lambda: (store / manifest.NAME).write_text("[" * 100_000),
        "nan": lambda: (store / manifest.NAME).write_text('{"format": NaN}'),
        "binary": lambda: (store / manifest.NAME).write_bytes(b"\xff\xfe\0"),
    }
    changes: dict[str, Any] = {
        "format 3": lambda raw, _: raw.update(format=3),
        "another kind": lambda raw, _: raw.update(kind="dense"),
        "no kind": lambda raw, _: raw.pop("kind"),
        "vocabulary -1": lambda raw, _: raw.update(vocab_size=-1),
        "vocabulary 2^40": lambda raw, _: raw.update(vocab_size=1 << 40),
        "vocabulary true": lambda raw, _: raw.update(vocab_size=True),
        "vocabulary of wide ids": lambda raw, _: raw.update(vocab_size=70_000),
        "tokenizer 3": lambda raw, _: raw.update(tokenizer=3),
        "shards 3": lambda raw, _: raw.update(shards=3),
        "no suffixes": lambda raw, _: raw["shards"][0]["arrays"].pop("suffixes"),
        "shape smaller": lambda _, array: array.update(shape=[array["shape"][0] - 1]),
        "shape larger": lambda _, array: array.update(shape=[array["shape"][0] + 1]),
        "shape overflows": lambda _, array: array.update(shape=[1 << 62]),
        "shape overflows twice": lambda _, array: array.update(shape=[1 << 39, 1 << 39]),
        "shape negative": lambda _, array: array.update(shape=[-1]),
        "shape empty": lambda _, array: array.update(shape=[]),
        "dtype object": lambda _, array: array.update(dtype="object"),
        "dtype wide": lambda _, array: array.update(dtype="uint32"),
        "name above": lambda _, array: array.update(name="../x.npy"),
        "name absolute": lambda _, array: array.update(name="/etc/passwd"),
        "name empty": lambda _, array: array.update(name=""),
        "name dots": lambda _, array: array.update(name=".."),
        "name zero": lambda _, array: array.update(name="a\0b"),
        "name of no file": lambda _, array: array.update(name="other.npy"),
        "checksum short": lambda _, array: array.update(checksum="abc"),
    }
    return cases | {name: rewritten(change) for name, change in changes.items()}


def test_broken_files_are_refused(tmp_path: Path) -> None:
    """Every one by a StoreError that names the store, never by another error."""
    corpus = texts(tmp_path / "texts", 4)
    make(tmp_path / "names", corpus)
    for number, name in enumerate(broken_stores(tmp_path / "names")):
        store = tmp_path / f"store{number}"
        make(store, corpus)
        broken_stores(store)[name]()
        with pytest.raises(StoreError) as caught:
            Datastore(store)
        assert store.name in str(caught.value), name


def test_any_flipped_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    """600 changes of manifest and headers: a StoreError, or guesses within the vocabulary."""
    store = tmp_path / "store"
    make(store, texts(tmp_path / "texts", 4))
    rng = random.Random(0)
    paths = sorted(path for path in store.iterdir() if path.suffix in (".json", ".npy"))
    refused = 0
    for _ in range(600):
        path = rng.choice(paths)
        whole = path.read_bytes()
        raw = bytearray(whole)
        place = rng.randrange(len(raw) if path.suffix == ".json" else 160)
        raw[place] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
        try:
            drafter = RestDrafter([Datastore(store)])
            drafter.begin(Context([97 % 96, 98 % 96, 32], 96))
            frontier = Frontier(np.zeros(1, np.int32), np.zeros((4, 12), np.int32), 32)
            rows = drafter.expand(frontier)
            assert ((rows[:, 1] >= 0) & (rows[:, 1] < 1 << 31)).all()
        except StoreError:
            refused += 1
        path.write_bytes(whole)
    assert 100 < refused < 600
    contents(store)


def test_changed_bytes_are_found(tmp_path: Path) -> None:
    make(tmp_path / "store", texts(tmp_path / "texts", 4))
    (shard,) = Datastore(tmp_path / "store").manifest.shards
    for array in shard.arrays.values():
        path = tmp_path / "store" / array.name
        raw = bytearray(path.read_bytes())
        raw[-7] ^= 4
        path.write_bytes(raw)
        with pytest.raises(StoreError, match="changed since it was written"):
            Datastore(tmp_path / "store").check()
        raw[-7] ^= 4
        path.write_bytes(raw)
    Datastore(tmp_path / "store").check(deep=True)


def test_a_wrong_index_with_right_checksums_is_found(tmp_path: Path) -> None:
    make(tmp_path / "store", texts(tmp_path / "texts", 4))
    opened = Datastore(tmp_path / "store")
    (shard,) = opened.manifest.shards
    suffixes = opened.shards[0].suffixes.copy()
    suffixes[[3, 4]] = suffixes[[4, 3]]
    wrong = arrays.write(tmp_path / "store", shard.arrays["suffixes"].name, suffixes)
    changed = manifest.Shard(shard.documents, shard.tokens, {**shard.arrays, "suffixes": wrong})
    manifest.save(tmp_path / "store", opened.manifest.with_shards((changed,), {}))
    Datastore(tmp_path / "store").check()
    with pytest.raises(StoreError, match="not sorted"):
        Datastore(tmp_path / "store").check(deep=True)


WRITER = """
import sys
import numpy as np
from hf_specplug.kernels.suffix import suffix_array
from pathlib import Path
from hf_specplug.datastore.building.merge import merge
from hf_specplug.datastore.kinds.registry import registry
from hf_specplug.errors import StoreError
from tests.helpers.stores import make, silent
store, corpus, more = map(Path, sys.argv[1:4])
suffix_array(np.array([0, 1, 0, 1, 0], np.int32), 2)  # compiled
registry()  # imported
print("ready", flush=True)
sys.stdin.readline()
while True:
    try:
        make(store, corpus, shard_tokens=300)
    except StoreError:
        pass
    try:
        merge(store, 1200, silent)
    except StoreError:
        pass
    try:
        make(store, more, append=True, shard_tokens=300)
    except StoreError:
        make(store, corpus, shard_tokens=300)
"""


class Writer:
    """Another process that builds, merges and appends without end."""

    def __init__(self, folder: Path) -> None:
        corpus, more = texts(folder / "texts", 12), texts(folder / "more", 4, seed=3)
        code = [sys.executable, "-W", "ignore", "-c", WRITER]
        self._process = subprocess.Popen(
            [*code, str(folder / "store"), str(corpus), str(more)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def begin(self) -> None:
        """Wait until it has imported everything, and let it loose."""
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        assert self._process.stdout.readline() == b"ready\n"
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        with self._process:  # closes the pipes and waits
            os.kill(self._process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """60 writers die by kill -9 in build, merge or append; what is listed is whole each time."""
    store = tmp_path / "store"
    rng = random.Random(0)
    before: list[int] = []
    waiting = Writer(tmp_path)
    for _ in range(60):
        writer, waiting = waiting, Writer(tmp_path)
        writer.begin()
        time.sleep(rng.random() * 0.08)
        writer.kill()
        if (store / manifest.NAME).exists():
            now = contents(store)
            assert now[: len(before)] == before  # nothing that was listed is lost
            before = now
    waiting.kill()
    assert before


@pytest.mark.slow
def test_readers_beside_a_writer(tmp_path: Path) -> None:
    """Opened while others append and merge, a store is in one of its states."""
    writer, store = Writer(tmp_path), tmp_path / "store"
    make(store, tmp_path / "texts", shard_tokens=300)
    first = contents(store)
    writer.begin()
    deadline, states = time.time() + 4, set()
    try:
        while time.time() < deadline:
            opened = Datastore(store)
            tokens = [token for shard in opened.shards for token in shard.tokens.tolist()]
            assert tokens[: len(first)] == first
            states.add(len(tokens))
    finally:
        writer.kill()
    assert len(states) > 1
