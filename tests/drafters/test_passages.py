"""Passages as text: what enters one, how the rest is cut in context, and that nothing does harm."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_specplug import DEMO_MODEL, SpecPlug, attach, detach
from hf_specplug.datastore import manifest
from hf_specplug.datastore.building.folder import write_shard
from hf_specplug.datastore.building.merge import merge
from hf_specplug.datastore.kinds.strings import pack_strings
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Context, Drafter, Frontier, Step
from hf_specplug.drafters.passage_index import DEPTH, PassageIndex
from hf_specplug.drafters.passages import LEAST_MATCH, LEAST_SHARED, PassagesDrafter
from hf_specplug.drafters.phrases import PhrasesDrafter
from hf_specplug.drafters.text_tail import REPLACEMENT, TextCodec, TextTail
from hf_specplug.errors import OptionError, StoreError
from hf_specplug.hf import loading
from tests.helpers.stores import Words, files, silent, specplug

LARGE = os.environ.get(
    "SPECPLUG_TEST_TOKENIZER"
)  # the folder of a tokenizer with a large vocabulary
BIRD = "\N{BIRD}"  # four bytes, several tokens
CALL = '{"name": "get_weather", "arguments": {"city": "'
LICENCE = "Licensed under the Apache License, Version 2.0 (the 'License');\nyou may not use it"
EMOJI = f"Thanks {BIRD}{BIRD} and \U0001f9e1 goodbye \U00020bb7 for now"


@cache
def tokenizer(name: str) -> Any:
    if name == "large" and LARGE is None:
        pytest.skip("SPECPLUG_TEST_TOKENIZER names no tokenizer")
    return loading.tokenizer(str(DEMO_MODEL if name == "demo" else LARGE))


TOKENIZERS = pytest.mark.parametrize("name", ["demo", "large"])


def ids_of(text: str, name: str = "demo") -> list[int]:
    return list(tokenizer(name)(text, add_special_tokens=False)["input_ids"])


letters = st.sampled_from(["a", "b", "ab", " ", "\n", "é", BIRD, "\U0010ffff", "\ud800", "a" * 60])
words = st.lists(letters, max_size=8).map("".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(words, max_size=8), words, st.integers(0, 90), st.integers(1, 4))
def test_the_index_finds_what_begins_alike(
    passages: list[str], text: str, cut: int, most: int
) -> None:
    index = PassageIndex(passages)
    kept = sorted({passage for passage in passages if passage})
    assert index.passages == kept
    for asked in (text, *(passage[:cut] for passage in kept), *(passage + "a" for passage in kept)):
        if not asked:
            continue
        expected = [passage for passage in kept if passage.find(asked) == 0]
        assert index.begins(asked) == bool(expected)
        found = index.continued(asked, most)
        going_on = [passage for passage in expected if len(passage) > len(asked)]
        assert set(found) <= set(going_on)
        assert len(found) == len(set(found)) == min(most, len(going_on))


def test_passages_that_are_alike_beyond_the_automaton() -> None:
    passages = ["x" * DEPTH + f"{number:03d} and the rest" for number in range(500)]
    index = PassageIndex(passages)
    assert index.begins("x" * DEPTH + "49")
    assert not index.begins("x" * DEPTH + "5")
    assert index.continued("x" * DEPTH + "123", 4) == [passages[123]]


@TOKENIZERS
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_tail_is_the_decoded_text(name: str, data: st.DataObject) -> None:
    """Texts with any characters, and any token ids, in steps of any size."""
    vocab = len(tokenizer(name))
    text = st.text(st.characters(codec="utf-8", exclude_characters=REPLACEMENT), max_size=30)
    whole = ids_of(data.draw(text | st.sampled_from([CALL, EMOJI])), name)
    if data.draw(st.booleans()):
        whole += data.draw(st.lists(st.integers(0, vocab - 1), max_size=5))
    codec = codec_of(name)
    at = data.draw(st.integers(0, len(whole)))
    tail = TextTail(codec, whole[:at])
    said = tail.text
    while at < len(whole):
        step = data.draw(st.integers(1, 4))
        added = tail.append(whole[at : at + step])
        at += step
        if added is None:  # other text than decoded before: it must be read anew
            tail = TextTail(codec, whole[:at])
            said = tail.text
        else:
            said += added
        waiting = len(tail.waiting)
        assert said == codec.decode(whole[:at][: len(whole[:at]) - waiting])


@cache
def codec_of(name: str) -> TextCodec:
    return TextCodec(tokenizer(name))


POOL = np.zeros((200, 3), np.int32)


def chain(drafter: Drafter, most: int = 64) -> list[int]:
    """The tokens that a drafter proposes, always the first one."""
    pool, tokens = POOL.copy(), []
    for node in range(most):
        rows = drafter.expand(Frontier(np.array([node], np.int32), pool, 0))
        if not len(rows):
            break
        tokens.append(int(rows[0, 1]))
        pool[node + 1, :3] = tokens[-1], node, node + 1
    return tokens


def after(drafter: Drafter, text: str, name: str = "demo") -> list[int]:
    """What is drafted after a prompt."""
    drafter.begin(Context(ids_of(text, name), len(tokenizer(name))))
    return chain(drafter)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_passage_is_entered_where_str_find_enters_it(data: st.DataObject) -> None:
    """Of all ends of the text that begin a passage, the longest is continued."""
    parts = st.sampled_from(["one ", "two", "\n", "three, ", "on", "e tw", BIRD, '"'])
    passages = data.draw(st.lists(st.lists(parts, min_size=2, max_size=9).map("".join), max_size=5))
    text = "".join(data.draw(st.lists(parts, min_size=1, max_size=12)))
    drafter = PassagesDrafter(tokenizer=tokenizer("demo"), passages=passages)
    tokens, first = ids_of(text), data.draw(st.integers(0, 9))
    context = Context(tokens[:first], len(tokenizer("demo")))
    drafter.begin(context)
    proposed = chain(drafter)
    for token in tokens[first:]:
        new = np.array([token], np.int32)
        context.append(new)
        drafter.observe(Step.of_text(np.empty(0, np.int32), 0, [], new, None))
        proposed = chain(drafter)
    decode = codec_of("demo").decode
    expected: list[str] = []
    for begin in range(len(text)):
        found = sorted({p for p in passages if p.find(text[begin:]) == 0 and p != text[begin:]})
        said = len(text) - begin
        if said >= (LEAST_MATCH if len(found) == 1 else LEAST_SHARED) and found:
            expected = [passage[said:] for passage in found]
            break
    if not expected:
        assert not proposed
    elif proposed:  # tokens of the text may not be those that the rest needs
        rest = decode([*tokens, *proposed])[len(text) :]
        assert any(each.startswith(rest) or rest.startswith(each) for each in expected)


@TOKENIZERS
@pytest.mark.parametrize("passage", [CALL, LICENCE, EMOJI])
def test_it_finds_what_tokens_miss(passage: str, name: str) -> None:
    """Inside a text, the beginning of a passage belongs to another token than alone."""
    texts = [passage]
    as_text = PassagesDrafter(tokenizer=tokenizer(name), passages=texts)
    as_tokens = PhrasesDrafter(tokenizer=tokenizer(name), phrases=texts)
    missed = entered = 0
    for before in ("", "Yes:", "It says (", "the next line\n", "a\t", 'then "', "x = ", "//", "- "):
        whole = ids_of(before + passage, name)
        for cut in range(1, len(whole)):
            said = codec_of(name).decode(whole[:cut])
            length = len(said) - len(before)
            if said.endswith(REPLACEMENT) or length < LEAST_MATCH:
                continue
            as_text.begin(Context(whole[:cut], len(tokenizer(name))))
            found = chain(as_text)
            entered += 1
            assert found == whole[cut : cut + len(found)], (before, said)
            assert len(found) > 0
            as_tokens.begin(Context(whole[:cut], len(tokenizer(name))))
            missed += chain(as_tokens, 1) != whole[cut : cut + 1]
    assert entered > 50
    assert missed > 3


def test_a_draft_goes_on_inside_a_character() -> None:
    """While the text ends with a part of a character, what is known to follow is drafted."""
    drafter = PassagesDrafter(tokenizer=tokenizer("demo"), passages=[EMOJI])
    whole, inside = ids_of("So: " + EMOJI), 0
    context = Context(whole[:3], len(tokenizer("demo")))
    drafter.begin(context)
    for at in range(3, len(whole)):
        new = np.array(whole[at : at + 1], np.int32)
        context.append(new)
        drafter.observe(Step.of_text(np.empty(0, np.int32), 0, [], new, None))
        said = codec_of("demo").decode(whole[: at + 1])
        if "Thanks" in said and at + 1 < len(whole):
            assert chain(drafter)[0] == whole[at + 1]
            inside += said.endswith(REPLACEMENT)
    assert inside >= 3
    # a text that begins inside of one is read as far as it can be
    drafter.begin(Context(ids_of(BIRD)[1:] + ids_of("Thanks "), len(tokenizer("demo"))))
    assert codec_of("demo").decode(chain(drafter)) == EMOJI[len("Thanks ") :]


def test_ids_that_are_no_text() -> None:
    """Placeholders of images, and ids of a padded vocabulary."""
    drafter = PassagesDrafter(tokenizer=tokenizer("demo"), passages=[CALL])
    vocab = len(tokenizer("demo"))
    begun = ids_of(CALL[:20])
    for before in ([-1, -1], [5, -1], [vocab + 3], []):
        context = Context([*before, *begun], vocab + 10)
        drafter.begin(context)
        rest = codec_of("demo").decode(chain(drafter))
        assert rest == CALL[len(codec_of("demo").decode(begun)) :]
        emitted = np.array([-1], np.int32)
        context.append(emitted)
        drafter.observe(Step.of_text(np.empty(0, np.int32), 0, [], emitted, None))
        assert not chain(drafter)
    drafter.begin(Context(begun, 7))  # a model that has none of the next tokens
    assert all(token < 7 for token in chain(drafter))


def given_store(folder: Path, passages: Sequence[str], *more: object) -> Path:
    rows = [json.dumps({"text": passage}) for passage in passages]
    (folder / "given.jsonl").write_text("\n".join(rows))
    arguments = ["--kind", "phrases", "--given", "--tokenizer", DEMO_MODEL, *more]
    code, out = specplug("build", folder / "store", folder / "given.jsonl", *arguments)
    assert code == 0, out
    return folder / "store"


def test_stores_keep_the_texts(tmp_path: Path) -> None:
    store = given_store(tmp_path, [CALL, LICENCE, EMOJI, CALL, ""])
    assert Datastore(store).shards[0].strings() == [CALL, LICENCE, EMOJI]
    Datastore(store).check(deep=True)
    (tmp_path / "more.jsonl").write_text(json.dumps({"text": "a fourth passage"}))
    assert specplug("append", store, tmp_path / "more.jsonl", "--given")[0] == 0
    merge(store, 1 << 20, silent)
    merged = Datastore(store).with_tokenizer(tokenizer("demo"))
    assert set(merged.shards[0].strings()) == {CALL, LICENCE, EMOJI, "a fourth passage"}
    plug = SpecPlug(datastores=[merged], tokenizer=tokenizer("demo"))
    assert [drafter.name for drafter in plug.drafters[-2:]] == ["passages", "phrases"]
    query = specplug("query", store, "Call ({" + CALL[1:9], "--format", "json", "--nodes", "30")
    said = "".join(row["text"] for row in json.loads(query[1]))
    assert said.startswith(CALL[9:30])


def test_a_given_store_as_the_corpus_has_only_ids(tmp_path: Path) -> None:
    """Texts that are known as token ids are decoded."""
    (tmp_path / "given.jsonl").write_text(json.dumps({"text": EMOJI}))
    tokens = ["--tokenizer", DEMO_MODEL]
    assert specplug("build", tmp_path / "ids", tmp_path / "given.jsonl", *tokens)[0] == 0
    arguments = ["--kind", "phrases", "--given"]
    assert specplug("build", tmp_path / "store", tmp_path / "ids", *arguments)[0] == 0
    assert Datastore(tmp_path / "store").shards[0].strings() == [EMOJI]


def test_what_is_left_out_is_not_kept_as_text(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("Apache License")
    store = given_store(tmp_path, [CALL, LICENCE], "--leave-out", tmp_path / "out.txt")
    assert Datastore(store).shards[0].strings() == [CALL]
    assert not any(b"Apache" in content for content in files(store).values())


def test_without_a_tokenizer_nothing_is_matched(tmp_path: Path) -> None:
    store = given_store(tmp_path, [CALL])
    assert [drafter.name for drafter in SpecPlug(datastores=[store]).drafters[-1:]] == ["phrases"]
    drafter = PassagesDrafter([store])
    assert after(drafter, CALL[:20]) == []
    with pytest.raises(OptionError, match="needs the model's tokenizer"):
        PassagesDrafter(passages=["text"])
    with pytest.raises(StoreError, match="whose token ids differ"):
        SpecPlug(datastores=[store], tokenizer=Words())


def test_damaged_texts_are_refused(tmp_path: Path) -> None:
    store = given_store(tmp_path, [CALL, LICENCE])
    (shard,) = Datastore(store).manifest.shards
    path = store / shard.arrays["strings"].name
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreError, match="changed since it was written"):
        Datastore(store)


@pytest.mark.parametrize(
    "nonsense",
    [
        np.frombuffer(b"\xff\xfe", np.uint8),
        np.frombuffer(b"[" * 200_000, np.uint8),
        np.frombuffer(b'{"a": 1}', np.uint8),
        np.frombuffer(b"[1]", np.uint8),
        np.zeros(0, np.uint8),
        np.zeros(4, np.uint16),
    ],
)
def test_nonsense_with_right_checksums_is_refused(
    nonsense: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    store = given_store(tmp_path, [CALL])
    state, (index,) = manifest.load(store), Datastore(store).shards
    arrays = {name: getattr(index, name) for name in index.array_names}
    shard = write_shard(store, 7, {**arrays, "strings": nonsense}, 1, 9)
    manifest.save(store, state.with_shards((shard,), {}))
    with pytest.raises(StoreError, match="strings"):
        SpecPlug(datastores=[store], tokenizer=tokenizer("demo"))


def test_strings_that_no_file_has(tmp_path: Path) -> None:
    """Empty, alone surrogates, a lot: they are kept or ignored, and never matched wrongly."""
    store = given_store(tmp_path, [CALL])
    state, (index,) = manifest.load(store), Datastore(store).shards
    arrays = {name: getattr(index, name) for name in index.array_names}
    broken = CALL[:19] + "\ud800"  # no tokenizer takes it
    strange = ["", "\ud800\udfff", "\0", REPLACEMENT * 9, "x" * 100_000, CALL, broken]
    shard = write_shard(store, 7, {**arrays, "strings": pack_strings(strange)}, 1, 9)
    manifest.save(store, state.with_shards((shard,), {}))
    drafter = PassagesDrafter([store], tokenizer("demo"))
    for said in (19, 20):
        assert codec_of("demo").decode(after(drafter, CALL[:said])) == CALL[said:]
    for text in ("xxxx", "x" * 200, REPLACEMENT * 4, "\0", "x" * 5000):
        proposed = codec_of("demo").decode(after(drafter, text))
        assert any((text + proposed)[-9:] in passage for passage in strange)


@pytest.fixture(scope="module")
def demo() -> Any:
    return loading.load(str(DEMO_MODEL))[0]


@pytest.mark.parametrize("do_sample", [False, True])
def test_the_output_stays_the_same(do_sample: bool, demo: Any, tmp_path: Path) -> None:
    prompt = "def fibonacci(n):"
    inputs = {"input_ids": torch.tensor([ids_of(prompt)])}
    settings: dict[str, Any] = {"max_new_tokens": 60, "min_new_tokens": 60}
    torch.manual_seed(5)
    expected = demo.generate(**inputs, **settings, do_sample=do_sample)
    answer = tokenizer("demo").decode(expected[0, inputs["input_ids"].shape[1] :].tolist())
    store = given_store(tmp_path, [answer[1:], LICENCE, answer[: len(answer) // 2] + " no"])
    plug = attach(demo, drafters=["context"], datastores=[store], tokenizer=tokenizer("demo"))
    torch.manual_seed(5)
    output = demo.generate(**inputs, **settings, do_sample=do_sample)
    detach(demo)
    assert output.tolist() == expected.tolist()
    assert not plug.stats.dropped
    assert plug.stats.accepted_by["passages"] > 20


class Failing(Words):
    """Decodes a few times."""

    left = 6

    def decode(self, ids: list[int], **_: Any) -> str:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of order")
        return super().decode(ids)


def test_a_tokenizer_that_fails(demo: Any) -> None:
    """The drafter is dropped for the call; the others, and the output, stay."""
    inputs = {"input_ids": torch.tensor([ids_of("def fibonacci(n):")])}
    settings: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}
    expected = demo.generate(**inputs, **settings)
    drafter = PassagesDrafter(tokenizer=Failing(), passages=["w01 w02"])
    plug = attach(demo, drafters=["context", drafter], nodes=8)
    output = demo.generate(**inputs, **settings)
    detach(demo)
    assert output.tolist() == expected.tolist()
    assert "passages" in plug.stats.dropped
