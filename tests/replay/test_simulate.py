"""Replays: what they count is what `generate` would have done; papers' drafts; the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hf_specplug import SpecPlug
from hf_specplug.cli import app
from hf_specplug.drafters.contract import TOP_K, TopK
from hf_specplug.drafters.registry import create
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.errors import OptionError, RecordingError
from hf_specplug.published.static_tree import static_tree
from hf_specplug.published.token_recycling import LEVELS, TokenRecycling
from hf_specplug.replay.recording import RecordedText, Recording
from hf_specplug.replay.simulate import Cost, accepted_path, cost_curve, simulate
from hf_specplug.tree import DraftTree
from tests.helpers.runs import plain, plugged
from tests.helpers.zoo import make, prompt

VOCAB = 60


def recording(kind: str, texts: int = 4, length: int = 300) -> Recording:
    """Texts that repeat themselves, or random ones; rows hold the true token in second place."""
    rng = np.random.default_rng(0)
    traces = []
    for number in range(texts):
        tokens = rng.integers(0, VOCAB, length).astype(np.int32)
        if kind == "repeats":
            tokens = np.tile(tokens[:37], 1 + length // 37)[:length]
        ids = rng.permuted(np.tile(np.arange(VOCAB, dtype=np.int32), (length, 1)), axis=1)
        ids = ids[:, :TOP_K].copy()
        if kind != "random":
            ids[:-1, 1] = tokens[1:]
        probs = np.full((length, TOP_K), 0.1, np.float32)
        traces.append(RecordedText(kind, str(number), tokens, 50, TopK(ids, probs)))
    return Recording("none", VOCAB, traces)


def test_counts_add_up() -> None:
    texts = recording("repeats")
    result = simulate(texts, ["context", "recycling"], 16)
    stats = result.total
    assert stats.tokens == texts.answer_tokens - len(texts)  # the prompt's pass gives one each
    assert stats.tokens == stats.forwards + stats.accepted
    assert stats.accept_length > 5
    assert result.speed() is None
    assert result.by_task["repeats"].tokens == stats.tokens
    assert json.loads(json.dumps(result.to_dict()))["tokens_per_step"] == stats.accept_length


def test_random_text_costs_hardly_anything() -> None:
    """Nothing can be guessed: plain steps nearly always, so 3 % at most are lost."""
    cost = Cost(np.array([1, 64]), np.array([0.015, 0.060]))
    result = simulate(recording("random"), ["context", "recycling"], "auto", cost)
    spent, plain_seconds = sum(result.seconds.values()), sum(result.plain_seconds.values())
    assert spent < 1.03 * plain_seconds
    assert result.total.drafted < 0.6 * result.total.forwards


def test_drafting_comes_back_within_64_tokens() -> None:
    random, repeats = recording("random", 1), recording("repeats", 1)
    tokens = np.concatenate([random.texts[0].tokens, repeats.texts[0].tokens])
    rows = TopK(
        np.concatenate([random.texts[0].topk.ids, repeats.texts[0].topk.ids]),
        np.concatenate([random.texts[0].topk.probs, repeats.texts[0].topk.probs]),
    )
    cost = Cost(np.array([1, 64]), np.array([0.015, 0.060]))
    mixed = Recording("none", VOCAB, [RecordedText("mixed", "1", tokens, 50, rows)])
    both = simulate(mixed, ["context"], "auto", cost).total
    dull = simulate(random, ["context"], "auto", cost).total
    # the first repetition, 37 tokens, cannot be guessed by copying; then 64 may pass
    needed = both.forwards - dull.forwards
    assert needed < 37 + 64 + (300 - 37 - 64) / 4


def test_costs() -> None:
    assert cost_curve("h200-graph")(1) == pytest.approx(8.05e-3)
    assert cost_curve("cpu-2core")(7) == pytest.approx(19e-3, rel=0.02)
    with pytest.raises(RecordingError, match="needs a cost curve"):
        simulate(recording("random"), ["context"], "auto")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"0": 1}', '{"1": 0}', '{"a": 1}', '{"1": []}'])
def test_bad_cost_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cost.json"
    path.write_text(text)
    with pytest.raises(RecordingError, match="cost curve"):
        cost_curve(path)
    with pytest.raises(RecordingError, match=r"one of \['cpu-2core', .*missing"):
        cost_curve("missing")


def tree(*nodes: tuple[int, int]) -> DraftTree:
    """Of (parent, token) pairs."""
    return DraftTree(
        np.array([token for _, token in nodes], np.int32),
        np.array([parent for parent, _ in nodes], np.int32),
        np.full(len(nodes), 0.5, np.float32),
        np.ones(len(nodes), np.uint16),
    )


def test_accepted_path() -> None:
    one = tree((-1, 7), (-1, 8), (1, 9), (2, 7))
    assert accepted_path(one, np.array([8, 9, 1], np.int32)) == [0, 2, 3]
    assert accepted_path(one, np.array([8, 9], np.int32)) == [0, 2]  # the text ends there
    assert accepted_path(one, np.array([5], np.int32)) == [0]


def paths(tree: DraftTree) -> set[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    assert len(set(found)) == len(found)
    return set(found)


def test_the_static_tree_is_the_papers() -> None:
    parents, rank = static_tree(LEVELS, 8)
    depths = np.zeros(80, int)
    for node, parent in enumerate(parents):
        depths[node] = 1 if parent < 0 else depths[parent] + 1
    assert np.bincount(depths)[1:].tolist() == [8, 21, 25, 15, 8, 3]
    assert len(set(zip(parents.tolist(), rank.tolist(), strict=True))) == 80
    assert rank[(parents >= 0) & (rank > 0)].size  # not a bundle of chains


def test_token_recycling_drafts_its_rows() -> None:
    drafter = create(["recycling"])[0]
    drafter.load_state_dict(
        {
            "ids": np.tile((np.arange(VOCAB)[:, None] + np.arange(1, 9)) % VOCAB, 1).astype("i4"),
            "probs": np.ones((VOCAB, 8), np.uint16),
        }
    )
    search = TokenRecycling([drafter], Mixer(["recycling"]), VOCAB, lambda *_: None)
    draft = search.grow(3, 16, 9)
    assert len(draft) == 80  # whatever the limit: the paper's tree is static
    for token, parent in zip(draft.tokens.tolist(), draft.parents.tolist(), strict=True):
        above = 3 if parent < 0 else int(draft.tokens[parent])
        assert 1 <= (token - above) % VOCAB <= 8


@pytest.mark.parametrize("paper", ["hierarchy", "rasd", "stand", "token-recycling"])
def test_papers_are_lossless_and_no_better_than_us(paper: str) -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    settings = {"max_new_tokens": 60, "do_sample": False}
    expected, _ = plain(model, inputs, **settings)
    plug = SpecPlug(nodes=16, published=paper)
    output = model.generate(**inputs, **settings, custom_generate=plug)
    assert output.tolist() == expected.tolist()
    assert plug.stats.drafted
    assert not plug.stats.dropped
    texts = recording("repeats")
    theirs = simulate(texts, ["context", "recycling"], 16, published=paper).total.accept_length
    assert simulate(texts, ["context", "recycling"], 16).total.accept_length > theirs


def test_unknown_paper() -> None:
    with pytest.raises(OptionError, match=r"one of \[.*'rasd', .*'token-recycling'.*\] or None"):
        SpecPlug(published="medusa")


def test_simulation_is_what_generate_does() -> None:
    """With a drafter that needs no rows, replay and `generate` count the same."""
    model, inputs = make("llama"), prompt(make("llama"))
    settings = {"max_new_tokens": 60, "do_sample": False}
    output, _, plug = plugged(model, inputs, ["context"], nodes=12, **settings)
    tokens = output[0].numpy().astype(np.int32)
    none = TopK(np.zeros((len(tokens), TOP_K), np.int32), np.zeros((len(tokens), TOP_K), "f4"))
    length = inputs["input_ids"].shape[1]
    vocab = model.config.vocab_size
    texts = Recording("llama", vocab, [RecordedText("own", "1", tokens, length, none)])
    result = simulate(texts, ["context"], 12)
    assert result.total.lengths == plug.stats.lengths
    assert result.total.drafted == plug.stats.drafted


def test_command(tmp_path: Path) -> None:
    path, out = tmp_path / "r", tmp_path / "o.json"
    recording("repeats").save(path)
    options = "--drafters context,recycling --nodes auto,16 --cost h200-graph --leave-one-out "
    options += "--published rasd --calibration"
    run = CliRunner().invoke(app, ["simulate", str(path), *options.split(), "--out", str(out)])
    assert run.exit_code == 0, run.output
    assert "expected calibration error" in run.output
    results = json.loads(out.read_text())["results"]
    assert list(results) == [
        f"{label} @{size}"
        for size in ("auto", 16)
        for label in ("context+recycling", "context", "recycling", "rasd")
    ]
    assert all(result["speed"] > 0 for result in results.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "many"], 'numbers or "auto"'),
        (["--nodes", "auto"], "needs a cost curve"),
        (["--drafters", "nobody"], "no drafter is called"),
        (["--tasks", "nothing"], "no task"),
        (["--published", "medusa"], "published must be"),
        (["--cost", "cheap"], "cost curve"),
    ],
)
def test_command_with_bad_options(tmp_path: Path, arguments: list[str], message: str) -> None:
    path = tmp_path / "r"
    recording("random", 1).save(path)
    run = CliRunner().invoke(app, ["simulate", str(path), *arguments])
    assert run.exit_code == 1
    assert message in " ".join(run.output.split())


def test_search_class_default() -> None:
    assert SpecPlug().published is None
    assert issubclass(TokenRecycling, TreeSearch)
