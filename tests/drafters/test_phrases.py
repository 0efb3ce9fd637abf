"""Phrases: what is mined, how the automaton follows a text, and that no store can do harm."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hf_specplug import DEMO_MODEL, attach, cli, detach
from hf_specplug.cli import run_build
from hf_specplug.datastore import manifest
from hf_specplug.datastore.building.answers import PromptCorpus
from hf_specplug.datastore.building.build import build
from hf_specplug.datastore.building.corpus import Corpus, find
from hf_specplug.datastore.building.folder import write_shard
from hf_specplug.datastore.building.merge import merge
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.kinds.phrases import GIVEN_COUNT, NGRAM_TOKENS, NgramIndex, PhraseIndex
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Context, Frontier
from hf_specplug.drafters.phrases import PhrasesDrafter
from hf_specplug.errors import OptionError, StoreError
from hf_specplug.kernels import phrases as kernels
from hf_specplug.kernels import repeats
from hf_specplug.kernels.suffix import suffix_array
from tests.helpers import twins
from tests.helpers.runs import new_tokens, plain
from tests.helpers.stores import Letters, make, silent, stop, texts
from tests.helpers.twins import Phrase
from tests.helpers.zoo import make as make_model
from tests.helpers.zoo import prompt

GREEDY: dict[str, Any] = {"do_sample": False}
tokens_of = st.lists(st.integers(0, 3), max_size=60) | st.lists(
    st.sampled_from([0, 0, 0, 1, 1, 3]), min_size=30, max_size=60
)  # 3 separates documents


@settings(max_examples=300, deadline=None)
@given(tokens_of, st.integers(1, 4), st.integers(2, 4), st.sampled_from([0.6, 0.8, 1.0]))
def test_repeats_are_those_of_a_plain_search(
    text: list[int], least: int, often: int, nearly: float
) -> None:
    expected = twins.repeated(text, 3, least, often, nearly)
    array = np.array(text, np.int32)
    suffixes = suffix_array(array, 4)
    shared = repeats.common_prefixes(array, suffixes, 3)
    assert shared.tolist() == twins.common_prefixes(text, suffixes.tolist(), 3)
    found = np.empty((len(text), 3), np.int32)
    number = repeats.repeats(array, suffixes, shared, 3, least, often, nearly, found)
    rows = found[:number].tolist()
    assert {(tuple(text[at : at + size]), count) for at, size, count in rows} == expected
    assert number == len(expected)

    grams = np.empty((len(text), 2), np.int32)
    number = repeats.grams(array, suffixes, shared, 3, least, grams)
    rows = [(tuple(text[at : at + least]), count) for at, count in grams[:number].tolist()]
    assert rows == twins.grams(text, 3, least)


def phrases_of(index: Any) -> dict[Phrase, int]:
    rows = [tuple(phrase.tolist()) for phrase in index.phrases()]
    return dict(zip(rows, index.counts.tolist(), strict=True))


def test_a_header_is_found_whole_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    header, long = rng.integers(0, 900, 30), rng.integers(0, 900, 150)
    documents = [[*header, *rng.integers(0, 900, 40), 1000] for _ in range(9)]
    documents += [[*rng.integers(0, 900, 5), *long, 1000] for _ in range(5)]
    index = PhraseIndex(PhraseIndex.build(np.concatenate(documents), 1000), 1000)
    index.check(1000)
    found = phrases_of(index)
    assert found.pop(tuple(header.tolist())) == 9
    pieces = [tuple(long[begin : begin + 64].tolist()) for begin in (0, 56, 112)]
    assert found == dict.fromkeys(pieces, 5)  # each begins with the end of the one before
    monkeypatch.setattr(PhraseIndex, "most", 1)
    documents = [[*header[:12], *rng.integers(0, 900, 9), 1000] for _ in range(30)]
    documents += [[*long, 1000] for _ in range(5)]  # 750 tokens, but no piece saves 360
    index = PhraseIndex(PhraseIndex.build(np.concatenate(documents), 1000), 1000)
    assert phrases_of(index) == {tuple(header[:12].tolist()): 30}


def test_the_most_common_grams() -> None:
    text = np.array([1, 2, 3, 4, 5, 6, 10, 1, 2, 3, 4, 5, 10, 1, 2, 10], np.uint16)
    index = NgramIndex(NgramIndex.build(text, 10), 10)
    index.check(10)
    assert phrases_of(index) == {(1, 2, 3, 4, 5): 2, (2, 3, 4, 5, 6): 1}


def index_of(phrases: dict[Phrase, int], given: set[Phrase] | None = None) -> Any:
    """The index of some phrases, sorted; as version 0.1 wrote it, unless `given` is not None."""
    rows = sorted(phrases)
    arrays = {
        "tokens": np.array([token for row in rows for token in row], np.uint16),
        "offsets": np.cumsum([0, *map(len, rows)]).astype(np.uint32),
        "counts": np.array([phrases[row] for row in rows], np.uint32),
    }
    if given is not None:
        arrays["given"] = np.array([row in given for row in rows], np.uint8)
    return PhraseIndex(arrays, 50)


def given_of(index: Any) -> set[Phrase]:
    """The phrases that were given."""
    return {tuple(np.frombuffer(key, ">u4").tolist()) for key in index.given()}


def test_join_adds_up_and_keeps_what_saves_most(monkeypatch: pytest.MonkeyPatch) -> None:
    one = index_of({(1, 2): 3, (4, 5, 6): 9, (7, 7): (1 << 32) - 1}, set())
    other = index_of({(1, 2): 4, (8, 9): 1, (7, 7): 5}, {(8, 9)})
    joined = PhraseIndex(PhraseIndex.join([one, other], 50), 50)
    joined.check(50)
    whole = {(1, 2): 7, (4, 5, 6): 9, (7, 7): (1 << 32) - 1, (8, 9): 1}
    assert phrases_of(joined) == whole
    assert given_of(joined) == {(8, 9)}
    monkeypatch.setattr(PhraseIndex, "most", 3)
    small = PhraseIndex(PhraseIndex.join([one, other], 50), 50)
    assert phrases_of(small) == {row: whole[row] for row in whole if row != (1, 2)}


def test_given_phrases_of_version_0_1() -> None:
    """They counted 2^20 times; what else was counted in the same store is kept."""
    old = index_of({(1, 2): 3, (4, 5, 6): GIVEN_COUNT, (7, 7): 2 * GIVEN_COUNT + 5})
    assert phrases_of(old) == {(1, 2): 3, (4, 5, 6): 1, (7, 7): 7}
    assert given_of(old) == {(4, 5, 6), (7, 7)}
    assert old.strings() == []
    old.check(50)
    arrays = {name: getattr(old, name) for name in old.array_names}
    with pytest.raises(StoreError, match="2 marks of 3 phrases"):
        PhraseIndex({**arrays, "given": np.zeros(2, np.uint8)}, 50)


def test_no_index_grows_beyond_its_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    parts = [rng.integers(0, 20, 12) for _ in range(80)]
    text = np.concatenate([[*parts[i], 96] for i in rng.integers(0, 80, 900)])
    for kind in (PhraseIndex, NgramIndex):
        whole = kind(kind.build(text, 96), 96)
        assert len(whole.counts) > 40
        monkeypatch.setattr(kind, "most", 40)
        index = kind(kind.build(text, 96), 96)
        assert len(index.counts) == 40
        assert index.counts.sum() > 0.5 * 40 / len(whole.counts) * whole.counts.sum()
        with pytest.raises(StoreError, match="at most 40 counts"):
            kind({name: getattr(whole, name) for name in kind.array_names}, 96)
    given = np.concatenate([[*part, 96] for part in parts])
    assert len(PhraseIndex.build_given(given, 96)["counts"]) == 40
    make(tmp_path / "store", texts(tmp_path / "texts"), shard_tokens=300, kind="ngram")
    drafter = PhrasesDrafter([tmp_path / "store"])
    drafter.begin(Context([], 96))
    assert len(drafter._nodes) <= 40 * NGRAM_TOKENS + 1


phrase_sets = st.dictionaries(
    st.lists(st.integers(0, 2), min_size=2, max_size=6).map(tuple),
    st.integers(1, 9),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(phrase_sets, st.lists(st.integers(-1, 2), max_size=12), st.lists(st.integers(0, 2)))
def test_the_automaton_is_in_the_longest_beginning(
    phrases: dict[Phrase, int], text: list[int], path: list[int]
) -> None:
    index = index_of(phrases)
    parts = [(index.tokens, index.offsets, index.counts, 50)]
    nodes, table = kernels.automaton(parts)
    prefixes = {phrase[:length] for phrase in phrases for length in range(len(phrase) + 1)}
    assert len(nodes) == len(prefixes)
    state = 0
    for length, token in enumerate(text, start=1):
        state = kernels.advance(nodes, table, state, np.array([token], np.int32))
        spelled, node = [], state
        while node:
            spelled.append(int(nodes[node, kernels.TRIE_TOKEN]))
            node = nodes[node, kernels.TRIE_PARENT]
        assert tuple(spelled[::-1]) == twins.phrase_state(phrases, text[:length])

    pool = np.zeros((len(path) + 1, 2), np.int32)
    pool[1:, 0], pool[1:, 1] = path, np.arange(len(path))
    states = np.zeros(len(pool), np.int32)
    out = np.empty((8 * len(pool), 3), np.int32)
    frontier = np.arange(len(pool), dtype=np.int32)
    count = kernels.expand(nodes, table, state, states, pool, frontier, 8, out)
    expected = [
        (node, *row)
        for node in range(len(pool))
        for row in twins.completions(phrases, (text + path[:node])[-6:], 3)
    ]
    assert list(map(tuple, out[:count].tolist())) == expected


def given_store(folder: Path, *answers: list[int]) -> Path:
    lines = [json.dumps({"text": "".join(chr(960 + token) for token in row)}) for row in answers]
    (folder / "templates.jsonl").write_text("\n".join(lines))
    corpus = Corpus(find([str(folder / "templates.jsonl")]))
    options = BuildOptions(kind="phrases", given=True)
    build(folder / "given.store", corpus, Letters(), options, stop, silent)
    return folder / "given.store"


@pytest.mark.parametrize("count", [40, 150])
def test_given_phrases_are_drafted_to_their_end(tmp_path: Path, count: int) -> None:
    model = make_model("llama")
    inputs = prompt(model)
    settings = {"max_new_tokens": count, "min_new_tokens": count, **GREEDY}
    expected, _ = plain(model, inputs, **settings)
    answer = new_tokens(expected, count)
    store = given_store(tmp_path, answer)
    text = "".join(chr(960 + token) for token in answer)
    for drafter in (
        PhrasesDrafter([store], Letters()),
        PhrasesDrafter(tokenizer=Letters(), phrases=[text]),
    ):
        plug = attach(model, drafters=[drafter], nodes=12)
        assert model.generate(**inputs, **settings).tolist() == expected.tolist()
        detach(model)
        assert plug.stats.accepted_by["phrases"] > 0.8 * count
    with pytest.raises(OptionError, match="needs the model's tokenizer"):
        PhrasesDrafter(phrases=["text"])
    with pytest.raises(StoreError, match="of kind phrases"):
        BuildOptions(kind="ngram", given=True)


def test_given_phrases_survive_what_is_mined(tmp_path: Path, monkeypatch: Any) -> None:
    store = given_store(tmp_path, [5, 6, 7], [8])
    (opened,) = Datastore(store).shards
    assert phrases_of(opened) == {(5, 6, 7): 1}  # one token is no phrase
    assert opened.strings() == [chr(965) + chr(966) + chr(967), chr(968)]
    make(store, texts(tmp_path / "texts", 30), append=True, kind="phrases")
    mined = phrases_of(Datastore(store).shards[1])
    assert len(mined) > 5
    merge(store, 1 << 20, silent)
    merged = Datastore(store)
    merged.check(deep=True)
    assert [phrases_of(shard) for shard in merged.shards] == [{(5, 6, 7): 1} | mined]
    assert given_of(merged.shards[0]) == {(5, 6, 7)}
    assert merged.shards[0].strings() == opened.strings()
    monkeypatch.setattr(PhraseIndex, "most", 2)
    common = index_of({(1, 2, 3, 4): 1000, (2, 3, 4, 5): 2000}, set())
    joined = PhraseIndex(PhraseIndex.join([opened, common], 50), 50)
    assert phrases_of(joined) == {(5, 6, 7): 1, (2, 3, 4, 5): 2000}


@pytest.mark.parametrize("name", ["llama", "gemma3", "t5"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_noise_changes_nothing(name: str, do_sample: bool, tmp_path: Path) -> None:
    noise = "".join(chr(960 + t) for t in np.random.default_rng(0).integers(0, 96, 40_000))
    (tmp_path / "noise.txt").write_text(noise)
    make(tmp_path / "store", tmp_path / "noise.txt", kind="ngram")
    model = make_model(name)
    settings = {"max_new_tokens": 40, "do_sample": do_sample}
    expected, _ = plain(model, prompt(model), seed=3, **settings)
    plug = attach(model, drafters=["phrases"], datastores=[tmp_path / "store"], nodes=16)
    torch.manual_seed(3)
    output = model.generate(**prompt(model), **settings)
    detach(model)
    assert output.tolist() == expected.tolist()
    assert plug.stats.drafted
    assert not plug.stats.dropped


def hostile(seed: int, vocab: int) -> dict[str, Any]:
    """Arrays of the right types, full of nonsense."""
    rng = np.random.default_rng(seed)
    n, size = int(rng.integers(0, 40)), int(rng.integers(0, 400))
    offsets = rng.integers(0, int(rng.choice([size + 2, 1 << 32])), n + 1)
    return {
        "tokens": rng.choice([0, 1, 2, 2, vocab, 65535], size).astype(np.uint16),
        "offsets": (np.sort(offsets) if seed % 2 else offsets).astype(np.uint32),
        "counts": rng.integers(0, int(rng.choice([2, 1 << 32])), n).astype(np.uint32),
    }


@pytest.mark.parametrize("kind", ["phrases", "ngram"])
def test_nonsense_with_right_checksums_does_no_harm(kind: str, tmp_path: Path) -> None:
    refused = 0
    for seed in range(30):
        store = tmp_path / f"{seed}"
        make(store, texts(tmp_path / "texts", 3), kind=kind)
        state = manifest.load(store)
        shards = [write_shard(store, i, hostile(seed + i, 96), 1, 9) for i in range(1 + seed % 3)]
        manifest.save(store, state.with_shards(tuple(shards), {}))
        opened = Datastore(store)
        try:
            opened.check(deep=True)
        except StoreError:
            refused += 1
        drafter = PhrasesDrafter([opened])
        drafter.begin(Context(np.arange(64) % 3, 96))
        pool = np.zeros((64, 7), np.int32)
        pool[1:, 0], pool[1:, 1] = np.arange(63) % 3, np.arange(63)
        for node in range(64):
            rows = drafter.expand(Frontier(np.array([node], np.int32), pool, 0))
            assert len(rows) <= drafter.rows_per_node
            assert ((rows[:, 1] >= 0) & (rows[:, 1] < 96)).all()
            assert ((rows[:, 2] >= 0) & (rows[:, 2] < kernels.BUCKETS)).all()
        merge(store, 1 << 20, silent)
    assert refused > 25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["tokens"].__setitem__(0, 77), "outside the vocabulary"),
        (lambda a: a["tokens"].__setitem__(0, 40), "not sorted"),
        (lambda a: a["counts"].__setitem__(0, 0), "no occurrence"),
        (lambda a: a["offsets"].__setitem__(1, 1), "2 to 64 tokens"),
        (lambda a: a["offsets"].__setitem__(-1, 4), "`offsets` does not divide the tokens"),
    ],
)
def test_a_wrong_number_is_found(change: Callable[[Any], None], message: str) -> None:
    index = index_of({(1, 2): 3, (4, 5, 6): 9})
    index.check(50)
    change({name: getattr(index, name) for name in index.array_names})
    with pytest.raises(StoreError, match=message):
        index.check(50)


def test_a_store_can_be_added_while_a_text_is_written(tmp_path: Path) -> None:
    drafter = PhrasesDrafter()
    drafter.begin(Context([1, 2, 5, 6], 96))
    pool = np.zeros((4, 7), np.int32)
    frontier = Frontier(np.zeros(1, np.int32), pool, 6)
    assert not len(drafter.expand(frontier))
    drafter.add(Datastore(given_store(tmp_path, [5, 6, 7])))
    assert drafter.expand(frontier)[:, 1].tolist() == [7]


def specplug(*arguments: str) -> Any:
    """A command, in this process."""
    return CliRunner().invoke(cli.app, arguments)


TOKENIZER = ["--tokenizer", str(DEMO_MODEL)]


def test_phrases_from_the_command_line(tmp_path: Path) -> None:
    """Given, appended to, merged, checked and asked, as a user would."""
    store, templates = str(tmp_path / "my.store"), tmp_path / "templates.jsonl"
    call = '{"name": "get_weather", "arguments": {"city": "'
    templates.write_text(json.dumps({"text": call}))
    result = specplug("build", store, str(templates), *TOKENIZER, "--kind", "phrases", "--given")
    assert result.exit_code == 0, result.stderr
    query = specplug("query", store, '{"name": "', "--nodes", "40", "--format", "json")
    assert "".join(row["text"] for row in json.loads(query.stdout)) == call[len('{"name": "') :]
    header = "# Copyright the authors of this file. All rights are reserved, more or less.\n"
    for number in range(6):
        (tmp_path / f"{number}.py").write_text(f"{header}x{number} = {number}\n")
    result = specplug("append", store, str(tmp_path / "*.py"))
    assert result.exit_code == 0, result.stderr
    assert specplug("merge", store).exit_code == 0
    info = json.loads(specplug("info", store, "--format", "json").stdout)
    assert (info["kind"], info["shards"], info["documents"]) == ("phrases", 1, 7)
    assert "unchanged since it was written" in specplug("check", store, "--deep").stdout
    found = specplug("query", store, "# Copyright the", "--format", "json").stdout
    assert "authors" in "".join(row["text"] for row in json.loads(found))
    result = specplug("build", f"{store}2", str(templates), *TOKENIZER, "--given")
    assert "of kind phrases" in result.stderr


def prompts(folder: Path) -> str:
    lines = [{"prompt": "Add two numbers."}, {"turns": ["Sort a list."]}, {"prompt": "Say hello."}]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder / "prompts.jsonl")


def test_a_store_of_a_models_answers(tmp_path: Path) -> None:
    store = str(tmp_path / "my.store")
    arguments = [prompts(tmp_path), "--from-model-outputs", str(DEMO_MODEL), "--max-tokens", "150"]
    result = specplug("build", store, *arguments, "--kind", "ngram")
    assert result.exit_code == 0, result.stderr
    opened = Datastore(store)
    opened.check(deep=True)
    assert opened.manifest.kind == "ngram"
    assert 100 < len(opened) <= 150
    answer = run_build.answering(str(DEMO_MODEL), 30)("Add two numbers.")
    assert tuple(answer[:NGRAM_TOKENS]) in phrases_of(opened.shards[0])
    result = specplug("build", f"{store}2", *arguments, "--engine", "ray")
    assert "cannot be combined with --engine" in result.stderr


def test_an_interrupted_conversation_goes_on(tmp_path: Path) -> None:
    files, questions = [prompts(tmp_path)], []
    interrupt = False

    def loaded(name: str) -> Callable[[str], list[int]]:
        answer = run_build.answering(name, 20)

        def asked(prompt: str) -> list[int]:
            if interrupt:
                questions.append(prompt)
                if len(questions) == 3:
                    raise KeyboardInterrupt
            return answer(prompt)

        return asked

    def padded(name: str) -> Callable[[str], list[int]]:
        return lambda prompt: [1, 2, 3, 4, 5, 1 << 20, 6]

    def run(name: str, model: Any = loaded) -> list[dict[Phrase, int]]:
        options = BuildOptions(
            kind="ngram",
            from_model_outputs=str(DEMO_MODEL),
            shard_tokens=25,  # each answer is a shard
        )
        loaders = replace(run_build.LOADERS, model=model)
        store = run_build.build(str(tmp_path / name), files, options, "stop", loaders)
        return [phrases_of(shard) for shard in store.shards]

    whole = run("whole")
    assert len(whole) == 1
    interrupt = True
    with pytest.raises(KeyboardInterrupt):
        run("broken")
    assert len(Datastore(tmp_path / "broken").shards) == 1  # of one answer
    assert run("broken") == whole
    assert len(questions) == 3 + 2  # the second answer was not written yet
    corpora = [PromptCorpus(("a",), model=name, read=lambda path: ()) for name in "bcc"]
    assert len({corpus.fingerprint() for corpus in corpora}) == 2
    # an id that the tokenizer does not have ends an answer
    assert run("padded", padded)[0] == {(1, 2, 3, 4, 5): 3}
    Path(files[0]).write_text('{"text": "no prompt"}\n')
    with pytest.raises(Exception, match='needs a text under "prompt"'):
        run("wrong")
