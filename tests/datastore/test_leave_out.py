"""`--leave-out`: what is found, what stays out, and what an interruption changes (nothing)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_specplug import DEMO_MODEL
from hf_specplug.datastore import manifest
from hf_specplug.datastore.building import recipe
from hf_specplug.datastore.building.answers import AnsweringExecutor, PromptCorpus
from hf_specplug.datastore.building.build import build
from hf_specplug.datastore.building.corpus import Corpus, find
from hf_specplug.datastore.building.growing import GrowingStore
from hf_specplug.datastore.building.leave_out import LeaveOut, read_strings
from hf_specplug.datastore.building.merge import merge
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.store import Datastore
from hf_specplug.errors import CorpusError, StoreError
from hf_specplug.hf import loading
from tests.helpers.stores import Letters, files, info, make, saved, silent, specplug, stop, texts

letters = st.text(st.sampled_from("ab\N{SLIGHTLY SMILING FACE}\U0010ffff\ud800é"), max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.lists(letters, max_size=12), letters | st.text(max_size=40), st.text(max_size=3))
@example(["aab"], "aaab", "")
@example(["ab" * 40, "ab" * 60 + "c"], "ab" * 59 + "c", "")  # alike up to the automaton's depth
@example(["ab" * 40], "ab" * 41, "")
@example(["ab" * 60 + "c"], "xab" + "ab" * 60 + "c", "")
def test_it_finds_what_str_find_finds(strings: list[str], text: str, inside: str) -> None:
    strings = [*strings, text[3:7], inside]
    if not any(strings):
        with pytest.raises(CorpusError, match="no strings"):
            LeaveOut(strings)
        return
    text = text + inside if len(inside) == 2 else text
    expected = any(text.find(string) >= 0 for string in strings if string)
    assert LeaveOut(strings).matches(text) == expected


def test_many_strings_in_a_long_text() -> None:
    rng = np.random.default_rng(0)
    strings = ["".join(map(chr, row)) for row in rng.integers(97, 107, (5000, 90))]
    found = LeaveOut(strings)
    text = "".join(map(chr, rng.integers(97, 107, 100_000)))
    assert not found.matches(text)
    assert not found.matches(text + strings[77][:-1])
    assert found.matches(text + strings[77] + text)


def test_token_ids_are_decoded() -> None:
    tokenizer = loading.tokenizer(str(DEMO_MODEL))
    secret = "the key is 5\N{BLACK SCISSORS}7a"
    found = LeaveOut([secret], tokenizer)
    for text, expected in ((f"now {secret}!", True), (f"now {secret[:-1]}!", False)):
        ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
        assert found.matches(ids) == found.matches(text) == expected


def left_out(strings: list[str]) -> LeaveOut:
    return LeaveOut(strings, Letters())


def build_without(store: Path, corpus: Path, strings: list[str], **options: Any) -> Datastore:
    asked = BuildOptions(**options)
    sources = Corpus(find([str(corpus)]))
    build(store, sources, Letters(), asked, stop, silent, leave_out=left_out(strings))
    return Datastore(store)


def without(corpus: Path, folder: Path, strings: list[str]) -> tuple[Path, int]:
    """The same corpus without the documents that contain one, as empty files, and their number."""
    folder.mkdir()
    count = 0
    for path in sorted(corpus.iterdir()):
        text = path.read_text()
        hit = any(string in text for string in strings)
        (folder / path.name).write_text("" if hit else text)
        count += hit
    return folder, count


@pytest.mark.parametrize("kind", ["suffix", "trigram", "phrases", "ngram"])
@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_documents_stay_out(kind: str, engine: str, tmp_path: Path) -> None:
    """The store is that of a corpus without them, whoever tokenizes and however it is built."""
    if engine == "ray":
        pytest.importorskip("ray")
    corpus = texts(tmp_path / "texts", 30)
    strings = [(corpus / "004.txt").read_text()[9:31], (corpus / "021.txt").read_text()[:40]]
    rest, count = without(corpus, tmp_path / "rest", strings)
    assert 2 <= count < 20
    make(tmp_path / "expected", rest, kind=kind, shard_tokens=900)
    from hf_specplug.datastore.building.executors import EXECUTORS

    options = BuildOptions(kind=kind, shard_tokens=900, engine=engine)
    sources, executor = Corpus(find([str(corpus)])), EXECUTORS[engine]()
    found = left_out(strings)
    build(tmp_path / "store", sources, Letters(), options, stop, silent, executor, leave_out=found)
    assert files(tmp_path / "store") == files(tmp_path / "expected")
    assert manifest.load(tmp_path / "store").left_out == count
    assert manifest.load(tmp_path / "expected").left_out == 0


def test_the_number_is_kept(tmp_path: Path) -> None:
    """By appending, by merging, and by a store that grows from use."""
    corpus = texts(tmp_path / "texts", 30)
    line = (corpus / "004.txt").read_text()[:50]
    store = tmp_path / "store"
    assert build_without(store, corpus, [line], shard_tokens=700).manifest.left_out == 1
    more = texts(tmp_path / "more", 9, seed=3)
    both = [(more / f"00{number}.txt").read_text()[:50] for number in (2, 5)]
    assert build_without(store, more, both, append=True).manifest.left_out == 3
    merge(store, 1 << 20, silent)
    growing = GrowingStore(store, Letters())
    growing.add(np.arange(9))
    growing.flush()
    make(store, texts(tmp_path / "last", 2, seed=4), append=True)
    assert Datastore(store).manifest.left_out == 3
    assert info(store)["documents left out"] == 3


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [0, 3, 8, 19, 28])
@pytest.mark.parametrize("dedup", [False, True])
def test_an_interrupted_build_goes_on(after: int, dedup: bool, tmp_path: Path) -> None:
    corpus = texts(tmp_path / "texts", 30)
    for number in (6, 29):
        (corpus / f"{number:03d}.txt").write_text((corpus / "004.txt").read_text())
    strings = [(corpus / f"{number:03d}.txt").read_text()[5:60] for number in (4, 11, 20)]
    options: dict[str, Any] = {"shard_tokens": 700, "dedup": dedup}
    whole = build_without(tmp_path / "whole", corpus, strings, **options)
    assert whole.manifest.left_out == 3 if dedup else 5
    seen = 0

    def interrupt(documents: int, tokens: int) -> None:
        nonlocal seen
        seen += documents
        if seen > after:
            raise Interrupted

    store = tmp_path / "store"
    asked, sources = BuildOptions(**options), Corpus(find([str(corpus)]))
    with pytest.raises(Interrupted):
        build(store, sources, Letters(), asked, stop, interrupt, leave_out=left_out(strings))
    if Datastore(store).shards:
        with pytest.raises(StoreError, match="with other options"):
            build_without(store, corpus, strings[:2], **options)
        with pytest.raises(StoreError, match="with other options"):
            make(store, corpus, **options)
    done = build_without(store, corpus, strings[::-1], **options)  # the order does not matter
    assert files(store) == files(tmp_path / "whole")
    assert done.manifest == whole.manifest


def test_texts_of_a_store(tmp_path: Path) -> None:
    """A store as the corpus of another one: its token ids are decoded."""
    corpus = texts(tmp_path / "texts", 10)
    secret = "one secret \N{OLD KEY} in the middle"
    (corpus / "004.txt").write_text(f"before{secret}after")
    (tmp_path / "out.json").write_text(json.dumps([secret, (corpus / "008.txt").read_text()]))
    tokenizer = ["--tokenizer", str(DEMO_MODEL)]
    store, other, last = (tmp_path / name for name in ("store", "other", "last"))
    assert specplug("build", store, corpus, *tokenizer)[0] == 0
    arguments = ["--kind", "trigram", "--leave-out", tmp_path / "out.json"]
    assert specplug("build", other, store, *arguments)[0] == 0
    assert specplug("build", last, corpus, *tokenizer, *arguments)[0] == 0
    assert files(other) == files(last)
    figures = info(other)
    assert (figures["documents"], figures["documents left out"]) == (8, 2)


def test_a_tokenizer_that_does_not_give_texts_back(tmp_path: Path) -> None:
    model = saved(tmp_path / "model")  # it decodes with spaces between the letters
    corpus = texts(tmp_path / "texts", 2)
    (tmp_path / "out.txt").write_text("\N{LATIN CAPITAL LETTER C WITH CEDILLA}a")
    assert specplug("build", tmp_path / "store", corpus, "--tokenizer", model)[0] == 0
    arguments = ["--kind", "trigram", "--leave-out", tmp_path / "out.txt"]
    code, error = specplug("build", tmp_path / "other", tmp_path / "store", *arguments)
    assert code == 1
    assert "cannot be found in token ids" in " ".join(error.split())
    code, _ = specplug("build", tmp_path / "other", corpus, "--tokenizer", model, *arguments)
    assert code == 0


def test_answers_are_looked_at_as_well_as_prompts(tmp_path: Path) -> None:
    prompts = ["abc", "secret prompt", "def", "ghi"]
    asked: list[str] = []

    def answer(prompt: str) -> list[int]:
        asked.append(prompt)
        return [ord(letter) % 96 for letter in prompt[::-1] * 4]

    class Decoding(Letters):
        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(chr(token + 96 if token < 32 else token) for token in ids)

    def read(path: str) -> Iterator[str]:
        yield from prompts

    (tmp_path / "prompts.jsonl").write_text("")
    corpus = PromptCorpus((str(tmp_path / "prompts.jsonl"),), model="m", read=read)
    found = LeaveOut(["secret", "fedfed"], Decoding())
    build(
        tmp_path / "store",
        corpus,
        Letters(),
        BuildOptions(),
        stop,
        silent,
        AnsweringExecutor(answer),
        leave_out=found,
    )
    state = manifest.load(tmp_path / "store")
    assert asked == ["abc", "def", "ghi"]
    assert (state.left_out, [shard.documents for shard in state.shards]) == (2, [2])


def prompts_of(path: str) -> Iterator[str]:
    for line in Path(path).read_text().splitlines():
        yield json.loads(line)["prompt"]


def test_files_of_strings(tmp_path: Path) -> None:
    expected = ["one line", "another \N{GRINNING FACE}"]
    (tmp_path / "lines.txt").write_text("one line  \r\n\n  another \N{GRINNING FACE}\n", "utf-8")
    (tmp_path / "list.json").write_text(json.dumps(expected))
    rows = [json.dumps({"prompt": string}) for string in expected]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    for name in ("lines.txt", "list.json", "prompts.jsonl"):
        found = read_strings(str(tmp_path / name), prompts_of)
        assert [string for string in found if string] == expected, name
        assert LeaveOut(found).fingerprint == LeaveOut(expected).fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"a": 1}', "must be a JSON list of strings"),
        ("a.json", b"[1]", "must be a JSON list of strings"),
        ("a.json", b"[" * 100_000, "cannot be read as strings"),
        ("a.json", b"not json", "cannot be read as strings"),
        ("a.txt", b"\xff\xfe", "cannot be read as strings"),
        ("a.txt", b" \n\n", "nothing to leave out"),
        ("a.jsonl", b"not json", "is not JSON"),
        ("none.txt", None, "No such file"),
    ],
)
def test_files_that_cannot_be_used(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "corpus.txt").write_text("text")
    code, error = specplug(
        "build",
        tmp_path / "store",
        tmp_path / "corpus.txt",
        *("--tokenizer", DEMO_MODEL, "--leave-out", tmp_path / name),
    )
    assert code == 1
    assert message in " ".join(error.split())
    assert not (tmp_path / "store").exists()


def test_a_recipe_can_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "my.toml").write_text('corpus = ["a.txt"]\nleave_out = "strings.txt"\n')
    _, options = recipe.load([str(tmp_path / "my.toml")], BuildOptions())
    assert options.leave_out == str(tmp_path / "strings.txt")
    _, options = recipe.load([str(tmp_path / "my.toml")], BuildOptions(leave_out="other.txt"))
    assert options.leave_out == "other.txt"
