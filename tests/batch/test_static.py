"""Batches on the static engine: the same tokens as plain `generate`, at fixed addresses.

On a CPU a static cache selects the engine. It runs there as it is, or with an imitation of graphs.
"""

from __future__ import annotations

import copy
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import CompileConfig, DynamicCache, StaticCache

from hf_specplug import attach, detach
from hf_specplug.errors import OptionError
from hf_specplug.plug import DEFAULT_DRAFTERS
from hf_specplug.verify import static as static_module
from hf_specplug.verify import static_forward as forward_module
from hf_specplug.verify.static import PADDED_WIDTHS
from hf_specplug.verify.static_forward import StaticForward
from tests.batch.test_identity import LENGTHS, SAMPLING, TREES, always
from tests.batch.test_returned import KINDS, RETURNED, same, same_cache
from tests.helpers.rows import ENDS, ReplayRows, batch
from tests.helpers.runs import plain, plugged
from tests.helpers.zoo import make, prompt
from tests.verify.test_static import Compilations, Repeated, by_default, captured, compiling

__all__ = ["by_default", "captured"]  # fixtures

DRAFTERS = list(DEFAULT_DRAFTERS)
STATIC: dict[str, Any] = {"cache_implementation": "static"}
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 32}


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """(live rows, rows, width) of the engine's forward passes; all of their logits are finite."""
    found: list[tuple[int, int, int]] = []
    run, body = StaticForward.run, StaticForward._body

    def counting(self: StaticForward, model: Any, width: int, *rest: Any) -> Any:
        found.append((len(self.cache.places), self.cache.size, width))
        return run(self, model, width, *rest)

    def finite(self: StaticForward, *arguments: Any) -> Any:
        results = body(self, *arguments)
        assert results[0].isfinite().all()  # rows and tokens that are padding included
        return results

    monkeypatch.setattr(StaticForward, "run", counting)
    monkeypatch.setattr(StaticForward, "_body", finite)
    return found


def assert_static(plug: Any, calls: int = 1) -> None:
    assert plug.stats.engines == {"tree, static_ragged": calls}
    assert not plug.stats.fallbacks
    assert not plug.stats.dropped


@pytest.mark.parametrize("name", TREES)
def test_every_tree_family(name: str, shapes: list[tuple[int, int, int]]) -> None:
    model = make(name)
    inputs = batch([7, 24, 16])
    for kind in (
        {"do_sample": False, **ENDS},
        {"do_sample": False},
        {"do_sample": True, "top_k": 0, **ENDS},
    ):
        kind |= {"max_new_tokens": 28, **STATIC}
        expected, state = plain(model, inputs, **kind)
        wrong = {0: lambda position: position % 3 == 2, 2: always}
        drafter = ReplayRows(inputs, expected, wrong, ranks={0: 2}, rank=1)
        output, after, plug = plugged(model, inputs, drafter, **kind)
        assert output.tolist() == expected.tolist()
        assert torch.equal(after, state)
        assert_static(plug)
        assert plug.stats.accepted > 0
    assert {width for _, _, width in shapes} <= set(PADDED_WIDTHS)
    assert {size for _, size, _ in shapes} <= {1, 2, 3}


@pytest.mark.parametrize("name", ["llama", "gemma3", "llama4"])
def test_float64(name: str) -> None:
    model, inputs = make(name, torch.float64), batch([24, 24, 24])
    every = {**GREEDY, **ENDS, **STATIC}
    expected, _ = plain(model, inputs, **every)
    output, _, plug = plugged(model, inputs, DRAFTERS, **every)
    assert output.tolist() == expected.tolist()
    assert_static(plug)


@pytest.mark.parametrize("count", [2, 3, 8, 17])
@pytest.mark.parametrize("ends", [{}, ENDS], ids=["equal", "ragged"])
def test_row_counts_and_drafts(
    count: int, ends: dict[str, Any], shapes: list[tuple[int, int, int]]
) -> None:
    model, inputs = make("llama"), batch(LENGTHS[:count], seed=count)
    every = {**GREEDY, **ends, **STATIC}
    expected, state = plain(model, inputs, **every)
    steps = expected.shape[1] - inputs["input_ids"].shape[1] - 1
    cases = {
        "right": ({}, steps // 3),
        "wrong": (dict.fromkeys(range(count), always), steps),
        "some rows": (dict.fromkeys(range(0, count, 2), always), steps),
    }
    for kind, (wrong, most) in cases.items():
        drafter = ReplayRows(inputs, expected, wrong, rank=int(kind != "right"))
        output, after, plug = plugged(model, inputs, drafter, nodes=12, **every)
        assert output.tolist() == expected.tolist(), kind
        assert torch.equal(after, state)
        assert plug.stats.forwards <= most, kind
        assert_static(plug)
    output, _, plug = plugged(model, inputs, DRAFTERS, nodes="auto", **every)
    assert output.tolist() == expected.tolist()
    for live, size, _ in shapes:  # a power of two, or all rows
        assert live <= size <= count
        assert size < 2 * live
        assert size == count or size & (size - 1) == 0
    if ends:
        assert len({size for _, size, _ in shapes}) > 1


@pytest.mark.parametrize(
    ("kind", "count"), [("temperature", 2), ("temperature", 8), ("top-p", 3), ("min-p", 5)]
)
def test_sampling(kind: str, count: int) -> None:
    model, inputs = make("llama"), batch(LENGTHS[:count], seed=count)
    for seed in range(4):
        every = {"do_sample": True, "max_new_tokens": 24, "seed": seed, **ENDS, **SAMPLING[kind]}
        every |= STATIC
        expected, state = plain(model, inputs, **every)
        wrong = {row: lambda position: position % 4 == 3 for row in range(0, count, 2)}
        drafter = ReplayRows(inputs, expected, wrong, rank=seed % 2)
        for drafters in (drafter, DRAFTERS):
            output, after, plug = plugged(model, inputs, drafters, **every)
            assert output.tolist() == expected.tolist()
            assert torch.equal(after, state)
            assert_static(plug)


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral-window"])
@pytest.mark.parametrize("nodes", [1, 5, 30, 100])
def test_every_width(name: str, nodes: int, shapes: list[tuple[int, int, int]]) -> None:
    model, inputs = make(name), batch([7, 24, 1, 16])
    every = {**GREEDY, **ENDS, **STATIC}
    expected, _ = plain(model, inputs, **every)
    output, _, plug = plugged(model, inputs, DRAFTERS, nodes=nodes, **every)
    assert output.tolist() == expected.tolist()
    assert_static(plug)
    assert max(width for _, _, width in shapes) <= static_module.padded(nodes)


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "mistral-window", "gpt2"])
@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_scores_logits_and_cache(
    name: str, kind: str, count: int, cache: str, captured: type[Repeated]
) -> None:
    """With imitated graphs, whose results the next forward pass overwrites."""
    model, inputs = make(name), batch(LENGTHS[:count], seed=count)
    every = {**RETURNED, **ENDS, **KINDS[kind], **(STATIC if cache == "static" else {})}
    expected, state = plain(model, inputs, **every)
    expected.past_key_values = copied(expected.past_key_values)  # plain's is used again
    drafter = ReplayRows(inputs, expected.sequences, {0: lambda at: at % 3 == 2}, rank=1)
    for drafters in (drafter, DRAFTERS):
        output, after, plug = plugged(model, inputs, drafters, **every)
        assert same(output, expected)
        assert torch.equal(after, state)
        assert_static(plug)
    assert captured.made > 0


def copied(cache: Any) -> Any:
    """The contents of a cache that `generate` will use again."""
    layers = [
        SimpleNamespace(keys=layer.keys.clone(), values=layer.values.clone())
        for layer in cache.layers
    ]
    length = int(cache.get_seq_length())
    return SimpleNamespace(layers=layers, get_seq_length=lambda: length)


@pytest.mark.usefixtures("by_default")
@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3", "llama4"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_second_turn_on_the_callers_cache(name: str, kind: str) -> None:
    model, inputs = make(name), batch(LENGTHS[:3])
    every: dict[str, Any] = {"do_sample": False, "max_new_tokens": 30, **ENDS}
    caches = [
        DynamicCache(config=model.config)
        if kind == "dynamic"
        else StaticCache(config=model.config, max_cache_len=120)
        for _ in range(2)
    ]
    turns = torch.randint(10, 90, (2, 3, 6), generator=torch.Generator().manual_seed(5))
    for turn in turns:
        expected, _ = plain(model, inputs, past_key_values=caches[0], **every)
        output, _, plug = plugged(model, inputs, DRAFTERS, past_key_values=caches[1], **every)
        assert output.tolist() == expected.tolist()
        assert_static(plug)
        assert same_cache(caches[1], caches[0])
        ids = torch.cat([expected, turn], dim=1)
        new = ids[:, inputs["input_ids"].shape[1] :]
        mask = torch.cat([inputs["attention_mask"], (new != 0).long()], dim=1)
        inputs = {"input_ids": ids, "attention_mask": mask}
    assert bool((inputs["attention_mask"][:, 24:] == 0).any())


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_slots_grow_in_time(
    name: str, monkeypatch: pytest.MonkeyPatch, captured: type[Repeated]
) -> None:
    """A row that runs out of slots makes all grow, those that have ended included."""
    monkeypatch.setattr(forward_module, "MIN_SLOTS", 8)
    monkeypatch.setattr(static_module, "SLOTS_AHEAD", 8)
    grow, grown = StaticForward.grow, []

    def counted(self: StaticForward, model: Any) -> None:
        grow(self, model)
        grown.append((self.cache.size, self.cache.capacity))

    monkeypatch.setattr(StaticForward, "grow", counted)
    model, inputs = make(name), batch([7, 24, 16, 3])
    for kind in ({"do_sample": False}, {"do_sample": True, "top_k": 0}):
        every = {"max_new_tokens": 150, "eos_token_id": [5, 6], "pad_token_id": 0, **kind}
        every["return_dict_in_generate"] = True
        expected, state = plain(model, inputs, **every)
        drafter = ReplayRows(inputs, expected.sequences, {0: lambda at: at % 2 == 1}, rank=1)
        output, after, plug = plugged(model, inputs, drafter, nodes=12, **every)
        assert same(output, expected)
        assert torch.equal(after, state)
        assert_static(plug)
    assert {size for size, _ in grown} > {4}  # also after rows have left


def test_graphs_are_kept_from_call_to_call(
    captured: type[Repeated], shapes: list[tuple[int, int, int]]
) -> None:
    """One per number of rows and width; another batch size takes what it has in common."""
    model = make("llama")
    every = {**GREEDY, **ENDS}
    plug = attach(model, nodes=12)
    found = []
    try:
        for count in [8, 3, 5, 2, 8, 3, 5, 2, 8]:
            inputs = batch(LENGTHS[:count], seed=count)
            expected, _ = plain(model, inputs, **every)
            assert model.generate(**inputs, **every).tolist() == expected.tolist()
            found.append(captured.made)
    finally:
        detach(model)
    assert_static(plug, 9)
    assert captured.made == len({shape[1:] for shape in shapes})
    assert found[3:] == found[3:4] * 6
    assert plug.stats.prepared == captured.made
    cache = plug._runner.sessions[model].factories["static_ragged"].forward.cache
    assert cache.rows == 8


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("rows", [2, 5])
def test_warmup(rows: int) -> None:
    """Graphs of all numbers of rows that a call comes to, at all widths."""
    model, inputs = make("llama"), batch(LENGTHS[:rows])
    every = {**GREEDY, **ENDS}
    expected, _ = plain(model, inputs, **every)
    plug = attach(model)
    try:
        assert plug.warmup(max_length=200, rows=rows) > 0
        assert plug.stats.prepared == len(PADDED_WIDTHS) * {2: 2, 5: 4}[rows]
        assert model.generate(**inputs, **every).tolist() == expected.tolist()
        assert plug.stats.prepared == len(PADDED_WIDTHS) * {2: 2, 5: 4}[rows]
        assert_static(plug)
        with pytest.raises(OptionError, match="rows=0"):
            plug.warmup(rows=0)
    finally:
        detach(model)


@pytest.mark.usefixtures("by_default")
def test_a_batch_and_a_single_row_have_slots_of_their_own() -> None:
    model = make("llama")
    plug = attach(model, nodes=12)
    try:
        for inputs in (prompt(model), batch([7, 24]), prompt(model), batch([5, 8, 2])):
            expected, _ = plain(model, inputs, **GREEDY)
            assert model.generate(**inputs, **GREEDY).tolist() == expected.tolist()
    finally:
        detach(model)
    assert plug.stats.engines == {"tree, static": 2, "tree, static_ragged": 2}


@pytest.mark.usefixtures("by_default")
def test_calls_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call holds the static engine; a batch that comes meanwhile takes the eager one."""
    model = make("llama")
    every = [batch([7, 24, 16]), batch(LENGTHS[:6], seed=2)]
    expected = [plain(model, inputs, **GREEDY)[0].tolist() for inputs in every]
    both = threading.Barrier(2, timeout=60)
    run, waited = StaticForward.run, []

    def together(self: StaticForward, *arguments: Any) -> Any:
        if not waited:
            waited.append(both.wait())  # until the other call has been planned
        return run(self, *arguments)

    monkeypatch.setattr(StaticForward, "run", together)
    plug = attach(model, nodes=12)

    def second() -> Any:
        while (
            not plug._runner.sessions
            or not next(iter(plug._runner.sessions.values())).factories["static_ragged"]._thread
        ):
            pass
        result = model.generate(**every[1], **GREEDY).tolist()
        both.wait()
        return result

    try:
        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(lambda: model.generate(**every[0], **GREEDY).tolist())]
            calls.append(pool.submit(second))
            found = [call.result() for call in calls]
    finally:
        detach(model)
    assert found == expected
    assert plug.stats.engines == {"tree, static_ragged": 1, "tree, ragged": 1}
    assert plug._runner.sessions[model].factories["static_ragged"]._thread == 0


def test_memory_stays_flat_over_many_calls(captured: type[Repeated]) -> None:
    """Slots and graphs of the largest call serve all; nothing of a call is left behind."""
    model = make("gpt2")
    every = [batch([3 + (row + size) % 5 for row in range(size)], seed=size) for size in (2, 5, 3)]
    tensors = []
    plug = attach(model, nodes=4, drafters=["context", "recycling"])
    try:
        for count in range(90):
            model.generate(**every[count % 3], do_sample=False, max_new_tokens=3)
            if count % 30 == 29:
                gc.collect()
                tensors.append(sum(isinstance(each, torch.Tensor) for each in gc.get_objects()))
    finally:
        detach(model)
    assert_static(plug, 90)
    assert len(set(tensors)) == 1


@pytest.mark.parametrize("kept", [1 << 30, 0])
def test_slots_of_other_shapes(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots serve calls of all shapes so far; if these take too much memory, none are kept."""
    monkeypatch.setattr(forward_module, "kept_bytes", lambda device: kept)
    model = make("llama")
    plug = attach(model, nodes=4)
    found = []
    try:
        for rows, new in [(2, 8), (8, 8), (2, 700), (8, 8), (17, 8), (2, 8)]:
            settings = {**STATIC, "do_sample": False, "max_new_tokens": new, **ENDS}
            inputs = batch(LENGTHS[:rows])
            expected, _ = plain(model, inputs, **settings)
            assert model.generate(**inputs, **settings).tolist() == expected.tolist()
            forward = plug._runner.sessions[model].factories["static_ragged"].forward
            if kept:
                found.append((forward.cache.rows, forward.cache.capacity))
            assert hasattr(forward, "cache") == bool(kept)
    finally:
        detach(model)
    assert_static(plug, 6)
    assert not kept or found == [(2, 512), (8, 512), (8, 1024), (8, 1024), (17, 1024), (17, 1024)]


@pytest.fixture
def _fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_dynamo")
def test_compiled(shapes: list[tuple[int, int, int]]) -> None:
    """Compiled once per width: rows that have ended stay, so that the number of rows does."""
    model, inputs = copy.deepcopy(make("llama")), batch([7, 24, 1, 16])  # it keeps compiled code
    backend = Compilations()
    every = {**GREEDY, **ENDS}
    expected, _ = plain(model, inputs, **every, **STATIC)
    how = compiling(backend, mode="default", fullgraph=True)
    plug = attach(model, nodes=12)
    try:
        for _ in range(3):
            assert model.generate(**inputs, **every, **how).tolist() == expected.tolist()
    finally:
        detach(model)
    assert isinstance(how["compile_config"], CompileConfig)
    assert_static(plug, 3)
    assert {size for _, size, _ in shapes} == {4}
    assert 0 < backend.count == len({shape[1:] for shape in shapes}) == plug.stats.prepared


@pytest.mark.parametrize(("name", "reason"), [("bloom", "StaticCache"), ("t5", "StaticCache")])
def test_what_needs_a_growing_cache(name: str, reason: str) -> None:
    model, inputs = make(name), batch([7, 24])
    every = {**GREEDY, **STATIC}
    expected, _ = plain(model, inputs, **every)
    output, _, plug = plugged(model, inputs, DRAFTERS, **every)
    assert output.tolist() == expected.tolist()
    assert plug.stats.forwards == 0
    assert reason in next(iter(plug.stats.fallbacks))


def test_disable_compile_takes_the_ragged_engine() -> None:
    model, inputs = make("mistral-window"), batch([7, 24, 16])
    every = {**RETURNED, **ENDS, "do_sample": False, **STATIC, "disable_compile": True}
    expected, _ = plain(model, inputs, **every)
    expected.past_key_values = copied(expected.past_key_values)
    output, _, plug = plugged(model, inputs, DRAFTERS, **every)
    assert same(output, expected)
    assert plug.stats.engines == {"tree, ragged": 1}
    assert plug.stats.forwards > 0
