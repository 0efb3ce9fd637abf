"""The comparison of methods: it counts as `simulate` and transformers do, and refuses no-trees."""

from __future__ import annotations

import json
import mmap
import sys
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as of
from hypothesis import strategies as st
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from hf_specplug.datastore.building.executors import tokenize
from hf_specplug.drafters.contract import TOP_K, Int32, TopK
from hf_specplug.errors import DraftError, OptionError
from hf_specplug.hf.prompts import greedy_answer, prompt_ids
from hf_specplug.replay.record import record_text
from hf_specplug.replay.recording import RecordedText, Recording
from hf_specplug.replay.simulate import simulate
from tests.benchmarks.rivals import memory, texts
from tests.benchmarks.rivals.__main__ import compared, main, planned
from tests.benchmarks.rivals.base import Drawn, Given, Rival, chain, merged
from tests.benchmarks.rivals.methods import METHODS, OURS, Method, chosen, missing
from tests.benchmarks.rivals.prompt_lookup import PromptLookup
from tests.benchmarks.rivals.replay import Count, Score, checked, replay

PROMPTS = {
    "code": "Write a Python function that counts the words of a text.",
    "chat": "Explain what a list is, and what a tuple is.",
}
TOKENS = 72
VOCAB = 60


@pytest.fixture(scope="module")
def recording(demo_model: Any, tokenizer: Any) -> Recording:
    """The built-in model's own answers."""
    traces = []
    for task, text in PROMPTS.items():
        prompt = prompt_ids(tokenizer, text)
        answer = greedy_answer(demo_model, prompt, TOKENS)
        traces.append(record_text(demo_model, task, text, prompt + answer, len(prompt)))
    return Recording("built in", demo_model.config.vocab_size, traces)


@pytest.fixture(scope="module")
def documents(recording: Recording, tokenizer: Any, tmp_path_factory: Any) -> Path:
    """The answers, to draft from, so often that they are phrases."""
    path: Path = tmp_path_factory.mktemp("documents") / "answers.jsonl"
    rows = [json.dumps({"text": tokenizer.decode(trace.answer.tolist())}) for trace in recording]
    path.write_text("\n".join(4 * rows))
    return path


@pytest.fixture(scope="module")
def given(recording: Recording, tokenizer: Any, documents: Path, tmp_path_factory: Any) -> Given:
    folder = tmp_path_factory.mktemp("given")
    return texts.given(recording.vocab_size, folder, str(documents), tokenizer)


def trace(tokens: Int32, prompt: int = 1) -> RecordedText:
    count = (len(tokens), TOP_K)
    return RecordedText(
        "task", "", tokens, prompt, TopK(np.zeros(count, "i4"), np.ones(count, "f4"))
    )


class Drafts(Rival):
    """Drafts what it is told to, whatever the text."""

    def __init__(self, drawn: Drawn) -> None:
        self.drawn = drawn

    def begin(self, prompt: Int32) -> None:
        pass

    def draft(self, limit: int, depth: int) -> Drawn:
        return self.drawn

    def observe(self, emitted: Int32, rows: object) -> None:
        pass


class Oracle(Rival):
    """Drafts the text itself, beside wrong tokens."""

    def __init__(self, text: Int32, wrong: int = 0) -> None:
        self.text, self.wrong = text.tolist(), wrong

    def begin(self, prompt: Int32) -> None:
        self.place = len(prompt)

    def draft(self, limit: int, depth: int) -> Drawn:
        others = [VOCAB + each for each in range(self.wrong)]
        tokens, parents = chain(self.text[self.place : self.place + limit])
        return [*tokens, *others], [*parents, *[-1] * self.wrong]

    def observe(self, emitted: Int32, rows: TopK) -> None:
        assert self.text[self.place : self.place + len(emitted)] == emitted.tolist()
        self.place += len(emitted)


@of(
    st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=40),
    st.integers(1, 9),
    st.integers(0, 3),
)
def test_who_drafts_the_answer_is_accepted_in_full(
    tokens: list[int], limit: int, wrong: int
) -> None:
    text = np.array(tokens, np.int32)
    score = Score()
    replay(Oracle(text, wrong), trace(text), limit, VOCAB + 3, score)
    after = len(tokens) - 2  # the prompt has one token, and its pass gives one
    assert score.total.forwards == ceil(after / (limit + 1)) == len(score.seconds)
    assert score.total.tokens == after


def test_plain_and_wrong_drafts_give_one_token_a_pass() -> None:
    text = np.arange(20, dtype=np.int32)
    for rival, drafted in ((Drafts(([], [])), 0), (Drafts(([59, 58], [-1, 0])), 2)):
        score = Score()
        replay(rival, trace(text, 5), 8, VOCAB, score)
        # of the last two passes one can have a token drafted, and one none
        assert score.total == Count(14, 14, max(0, drafted * 12 + drafted - 1))


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (([1, 2], [-1]), "2 tokens, but 1 parents"),
        (([1, 2], [-1, 1]), "node 1 of a draft cannot have parent 1"),
        (([1, 2], [1, -1]), "node 0 of a draft cannot have parent 1"),
        (([1, 2], [-1, -2]), "node 1 of a draft cannot have parent -2"),
        (([1, VOCAB], [-1, 0]), f"node 1 of a draft is token {VOCAB}; they go from 0 to 59"),
        (([-2], [-1]), "node 0 of a draft is token -2"),
        (([5, 6, 5], [-1, -1, -1]), "names a token twice after the same one"),
    ],
)
def test_a_draft_that_is_no_tree_is_refused(drawn: Drawn, message: str) -> None:
    with pytest.raises(DraftError, match=message):
        replay(Drafts(drawn), trace(np.arange(9, dtype=np.int32)), 8, VOCAB, Score())


def test_what_is_deeper_than_the_answer_is_not_counted() -> None:
    tree = checked(([1, 2, 3, 4], [-1, 0, -1, 1]), 2, VOCAB)
    assert (tree.tokens.tolist(), tree.parents.tolist()) == ([1, 2, 3], [-1, 0, -1])
    assert len(checked(([1, 2], [-1, 0]), 0, VOCAB)) == 0


def paths(tokens: Any, parents: Any) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tokens, parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


@of(st.lists(st.tuples(st.integers(-1, 8), st.integers(0, 2)), max_size=9))
def test_merging_keeps_the_paths(nodes: list[tuple[int, int]]) -> None:
    tokens = [token for _, token in nodes]
    parents = [min(parent, place - 1) for place, (parent, _) in enumerate(nodes)]
    found = paths(*merged(tokens, parents))
    assert len(set(found)) == len(found)
    assert set(found) == set(paths(tokens, parents))


@pytest.mark.parametrize("drafters", [OURS, *([name] for name in OURS)], ids="+".join)
def test_ours_count_as_simulate_does(recording: Recording, drafters: list[str]) -> None:
    expected = simulate(recording, drafters, 16)
    method = Method("specplug", "Ours", {"drafters": drafters})
    plan = {("ours", 16): method}
    score = compared(recording, plan, Given(recording.vocab_size, Path()))["ours", 16]
    found = score.total
    assert (found.tokens, found.forwards) == (expected.total.tokens, expected.total.forwards)
    assert found.drafted == expected.total.drafted
    assert found.drafted
    for task, count in score.by_task().items():
        assert count.accept_length == expected.by_task[task].accept_length


def test_prompt_lookup_accepts_what_generate_accepts(
    demo_model: Any, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step by step the same drafts, and as many forward passes."""
    calls: list[tuple[int, list[int]]] = []
    eos = demo_model.generation_config.eos_token_id
    original = PromptLookupCandidateGenerator.get_candidates

    def spy(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        found = original(self, input_ids, **kwargs)
        draft = found[0][0, input_ids.shape[1] :].tolist()
        end = draft.index(eos) if eos in draft else None  # of which a recording knows nothing
        calls.append((input_ids.shape[1], draft[:end]))
        return found

    monkeypatch.setattr(PromptLookupCandidateGenerator, "get_candidates", spy)
    accepted = 0
    for one in recording:
        passes: list[int] = []
        hook = demo_model.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        ids = torch.tensor(one.tokens[: one.prompt_length])[None].long()
        calls.clear()
        output = type(demo_model).generate(
            demo_model,
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=len(one.answer),
            do_sample=False,
            prompt_lookup_num_tokens=10,
        )
        hook.remove()
        assert output[0].tolist() == one.tokens.tolist()
        theirs = list(calls)
        calls.clear()
        # generate drafts in its first pass already, the one over the prompt
        whole = RecordedText(one.task, one.name, one.tokens, one.prompt_length - 1, one.topk)
        score = Score()
        rival = METHODS["prompt-lookup"].make(Given(recording.vocab_size, Path()))
        replay(rival, whole, 10, recording.vocab_size, score)
        assert calls == theirs
        assert score.total.forwards == len(passes)
        accepted += score.total.tokens - score.total.forwards
    assert accepted


def test_prompt_lookup_takes_the_limit_if_it_has_no_number() -> None:
    text = np.tile(np.arange(20, dtype=np.int32), 3)
    for tokens, expected in ((None, 15), (10, 10)):
        rival = PromptLookup(Given(VOCAB, Path()), 2, tokens)
        rival.begin(text)
        assert len(rival.draft(15, 40)) == expected
        assert len(rival.draft(15, 1))
        assert not len(rival.draft(15, 0))  # as `generate` does before the last token


@pytest.mark.parametrize("name", [name for name in METHODS if name != "plain"])
def test_every_method_drafts_what_it_has_seen(
    recording: Recording, given: Given, name: str
) -> None:
    """CallSettings twice, or with the answers among its texts, each guesses some of them."""
    method = METHODS[name]
    if why := missing(method, given):
        pytest.skip(why)
    twice = Recording("", recording.vocab_size, [*recording, *recording])
    plans = planned({name: method}, [16])
    (score,) = compared(twice, plans[0], given).values()
    total, expected = score.total, twice.answer_tokens - len(twice)
    assert total.tokens == expected
    assert len(score.seconds) == total.forwards < 0.9 * expected
    assert total.drafted >= total.tokens - total.forwards
    assert total.drafted <= 16 * total.forwards
    row = score.to_dict()
    assert json.loads(json.dumps(row)) == row
    assert row["tokens_per_forward"] == total.accept_length == total.tokens / total.forwards


def test_paths_of_aded_are_a_tree() -> None:
    pytest.importorskip("draftretriever", reason=METHODS["aded"].install)
    from tests.benchmarks.rivals.aded import Aded

    drawn = Aded.tree(None, [[7, 8, -2], [7, 9, 9], [-2, -2, -2], [5, -2, -2]])  # type: ignore
    assert drawn == ([7, 8, 9, 9, 5], [-1, 0, 0, 2, -1])


def test_stores_and_texts_are_the_same(given: Given, documents: Path, tokenizer: Any) -> None:
    rows = [json.loads(line)["text"] for line in documents.read_text().splitlines()]
    assert [text.tolist() for text in given.texts] == [
        row.tolist() for row in tokenize(tokenizer, rows)
    ]
    assert [store.manifest.kind for store in given.stores] == list(texts.KINDS)
    assert len(given.stores[0]) == sum(map(len, given.texts)) + len(given.texts)  # separators


def test_what_is_missing_is_said(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tests.benchmarks.rivals.aded", raising=False)
    monkeypatch.setitem(sys.modules, "draftretriever", None)
    why = missing(METHODS["aded"], given)
    assert why is not None
    assert "draftretriever" in why
    assert "pip install draftretriever" in why
    none = Given(given.vocab_size, given.folder)
    assert missing(METHODS["rest"], none) == "needs --stores-texts FILE.jsonl"
    assert missing(METHODS["prompt-lookup"], none) is None
    with pytest.raises(OptionError, match="no method is called 'medusa'; there are plain, spec"):
        chosen(["medusa"])


def test_every_method_is_planned_once_at_every_size() -> None:
    methods = chosen(["plain", "context", "prompt-lookup", "recycling"])
    first, second = (list(plan) for plan in planned(methods, [8, 9]))
    assert first == [("plain", 1), ("context", 8), ("recycling", 8)]
    assert second == [("context", 9), ("prompt-lookup", 11), ("recycling", 9)]
    assert [list(plan) for plan in planned(chosen(["plain"]), [8, 16])] == [[("plain", 1)], []]


def test_memory_is_what_is_kept(tmp_path: Path) -> None:
    if not Path("/proc/self/smaps").exists():
        assert memory.grown(list, tmp_path) is None
        return
    size = 48 << 20
    kept = memory.grown(lambda: np.ones(size, np.uint8), tmp_path)
    assert kept is not None
    assert size - mmap.PAGESIZE <= kept < 1.2 * size  # its first page may be in use already
    dropped = memory.grown(lambda: np.ones(size, np.uint8).sum(), tmp_path)
    assert dropped is not None
    assert dropped < 0.2 * size
    np.save(tmp_path / "mapped.npy", np.ones(size, np.uint8))

    def mapped() -> Any:
        array = np.load(tmp_path / "mapped.npy", mmap_mode="r")
        return array, array[::4096].sum()

    read = memory.grown(mapped, tmp_path)
    elsewhere = memory.grown(mapped, tmp_path / "other")
    assert read is not None
    assert elsewhere is not None
    assert size <= read < 1.2 * size
    assert elsewhere < 0.2 * size


def test_the_command(
    recording: Recording, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hf_specplug import DEMO_MODEL

    path, out = tmp_path / "r", tmp_path / "out.json"
    recording.save(path)
    names = "plain,specplug,specplug+texts,prompt-lookup"
    options = ["--rivals", names, "--nodes", "16,8", "--tokenizer", str(DEMO_MODEL)]
    main([str(path), *options, "--stores-texts", str(documents), "--out", str(out)])
    report = json.loads(out.read_text())
    rows = {(row["method"], row["nodes"]): row for row in report["methods"]}
    assert list(rows) == [
        ("plain", 1),
        ("specplug", 8),
        ("specplug+texts", 8),
        ("specplug", 16),
        ("specplug+texts", 16),
        ("prompt-lookup", 11),
    ]
    assert rows["plain", 1]["tokens_per_forward"] == 1
    best = rows["specplug+texts", 16]
    assert best["tokens_per_forward"] > rows["specplug", 16]["tokens_per_forward"] > 1
    assert set(best["tasks"]) == set(PROMPTS) == set(report["tasks"])
    shown = capsys.readouterr().out
    assert f"{best['tokens_per_forward']:.3f}" in shown
    assert shown.count("specplug+texts") == 3  # at two sizes, and by task at one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rivals", "medusa"], "rivals: no method is called 'medusa'"),
        (
            ["--nodes", "many"],
            "rivals: --nodes takes numbers of at least 2, with commas, not 'many'",
        ),
        (
            ["--nodes", "16,1"],
            "rivals: --nodes takes numbers of at least 2, with commas, not '16,1'",
        ),
        (["--tokenizer", "no/such/folder", "--stores-texts", "x"], "no/such/folder cannot be load"),
    ],
)
def test_the_command_with_bad_options(
    recording: Recording, tmp_path: Path, options: list[str], message: str
) -> None:
    path = tmp_path / "r"
    recording.save(path)
    with pytest.raises(SystemExit, match=message):
        main([str(path), *options])
    with pytest.raises(SystemExit, match=r"rivals: .*no-such-file"):
        main([str(tmp_path / "no-such-file")])
