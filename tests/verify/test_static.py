"""The static engine: the same tokens as plain `generate`, at fixed addresses.

On a CPU the engine runs eagerly, or compiled if the call asks for it. The further condition of CUDA
graphs is tested here as far as possible: nothing in a forward pass leaves the device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CompileConfig, DynamicCache, StaticCache
from transformers.generation.streamers import BaseStreamer

from hf_specplug import SpecPlug, attach, detach
from hf_specplug.drafters.context import ContextDrafter
from hf_specplug.drafters.contract import Drafter, Step
from hf_specplug.drafters.stand import StandDrafter
from hf_specplug.errors import OptionError
from hf_specplug.hf import support
from hf_specplug.hf.call import Call
from hf_specplug.hf.plan import CallPlan
from hf_specplug.tree import DraftTree
from hf_specplug.verify import static as static_module
from hf_specplug.verify import static_forward as forward_module
from hf_specplug.verify.cuda_graphs import python_state
from hf_specplug.verify.feed import Feed
from hf_specplug.verify.masks import SlotMasks, TreeMasks
from hf_specplug.verify.static import PADDED_WIDTHS, StaticEngine, padded
from hf_specplug.verify.static_forward import StaticForward
from tests.helpers.oracle import Replay
from tests.helpers.runs import new_tokens, plain, plugged
from tests.helpers.zoo import FAMILIES, make, prompt
from tests.test_identity import SAMPLING

TREES = [name for name, family in FAMILIES.items() if family.mode == "tree"]
DECODERS = [name for name in TREES if FAMILIES[name].kind == "decoder"]
STATIC: dict[str, Any] = {"cache_implementation": "static"}


@pytest.fixture
def by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the static engine as on CUDA: also with the dynamic caches of plain `generate`."""
    monkeypatch.setattr(support, "is_accelerated", lambda model: True)


class Repeated:
    """Stands in for a CUDA graph: runs `body` again, and writes to the tensors of the capture."""

    made = 0

    def __init__(self, body: Any, beside: Any = None) -> None:
        body()
        self._body = body
        self.result = body()
        type(self).made += 1

    def replay(self) -> Any:
        for old, new in zip(self.result, self._body(), strict=True):
            if old is not None:
                old.copy_(new)
        return self.result


@pytest.fixture
def captured(by_default: None, monkeypatch: pytest.MonkeyPatch) -> type[Repeated]:
    """Imitate CUDA graphs: the next step overwrites results; graphs are kept across calls."""
    monkeypatch.setattr(forward_module, "Graph", Repeated)
    monkeypatch.setattr(forward_module, "is_accelerated", lambda model: True)
    monkeypatch.setattr(Repeated, "made", 0)
    return Repeated


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The widths of the static engine's forward passes."""
    widths: list[int] = []
    run = StaticForward.run

    def counting(self: StaticForward, model: Any, width: int, *rest: Any) -> Any:
        widths.append(width)
        return run(self, model, width, *rest)

    monkeypatch.setattr(StaticForward, "run", counting)
    return widths


@pytest.mark.usefixtures("by_default")
@pytest.mark.parametrize("name", DECODERS)
def test_every_family(name: str, runs: list[int]) -> None:
    model = make(name)
    inputs = prompt(model)
    settings: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}
    expected, state = plain(model, inputs, **settings)
    reference = new_tokens(expected, 40)
    for drafter in (
        Replay(reference, rank=2),
        Replay(reference, wrong=lambda position: position % 3 == 2, rank=1),
    ):
        output, after, plug = plugged(model, inputs, drafter, **settings)
        assert output.tolist() == expected.tolist()
        assert torch.equal(after, state)
        assert not plug.stats.fallbacks
        assert not plug.stats.dropped
        assert plug.stats.forwards < 39
    output, _, _ = plugged(model, inputs, ["context", "recycling"], nodes=16, **settings)
    assert output.tolist() == expected.tolist()
    assert set(runs) <= set(PADDED_WIDTHS)
    assert max(runs) > 1


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral-window", "gpt2", "qwen3-moe"])
@pytest.mark.parametrize("nodes", [1, 5, 8, 16, 30, 64, 100, "auto"])
def test_every_width_with_a_static_cache(name: str, nodes: int | str, runs: list[int]) -> None:
    model = make(name)
    inputs = prompt(model)
    settings = {"max_new_tokens": 40, "do_sample": False, **STATIC}
    expected, _ = plain(model, inputs, **settings)
    drafters = ["context", "recycling"]
    output, _, plug = plugged(model, inputs, drafters, nodes=nodes, **settings)
    assert output.tolist() == expected.tolist()
    assert not plug.stats.fallbacks
    assert runs
    if isinstance(nodes, int):
        assert max(runs) <= padded(nodes)


@pytest.mark.parametrize("kind", SAMPLING)
def test_sampling(kind: str, runs: list[int]) -> None:
    model = make("llama")
    inputs = prompt(model)
    for seed in range(4):
        every = {"max_new_tokens": 30, "do_sample": True, "seed": seed, **SAMPLING[kind], **STATIC}
        expected, state = plain(model, inputs, **every)
        output, after, _ = plugged(model, inputs, ["context", "recycling"], **every)
        assert output.tolist() == expected.tolist()
        assert torch.equal(after, state)
    assert runs


@pytest.mark.usefixtures("by_default")
def test_float64(runs: list[int]) -> None:
    for name in ("llama", "gemma2"):
        model = make(name, torch.float64)
        inputs = prompt(model)
        expected, _ = plain(model, inputs, max_new_tokens=60, do_sample=False)
        output, _, _ = plugged(
            model, inputs, ["context", "recycling"], max_new_tokens=60, do_sample=False
        )
        assert output.tolist() == expected.tolist()
    assert runs


@pytest.mark.usefixtures("by_default")
@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3", "llama4"])
def test_left_padding(name: str, runs: list[int]) -> None:
    model = make(name)
    ids = prompt(model, length=24)["input_ids"]
    mask = torch.ones_like(ids)
    mask[:, :7] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    settings: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}
    expected, _ = plain(model, inputs, **settings)
    drafter = Replay(new_tokens(expected, 40), rank=1)
    output, _, plug = plugged(model, inputs, drafter, **settings)
    assert output.tolist() == expected.tolist()
    assert plug.stats.forwards < 25
    assert runs


@pytest.mark.usefixtures("by_default")
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_slots_grow_with_the_text(
    name: str, monkeypatch: pytest.MonkeyPatch, runs: list[int]
) -> None:
    monkeypatch.setattr(forward_module, "MIN_SLOTS", 64)
    monkeypatch.setattr(static_module, "SLOTS_AHEAD", 8)
    model = make(name)
    inputs = prompt(model)
    settings: dict[str, Any] = {"max_new_tokens": 300, "do_sample": False}
    expected, _ = plain(model, inputs, **settings)
    plug = attach(model, nodes=16)
    try:
        for _ in range(2):
            assert model.generate(**inputs, **settings).tolist() == expected.tolist()
    finally:
        detach(model)
    assert plug._runner.sessions[model].factories["static"].forward.cache.capacity == 512
    assert runs


@pytest.mark.usefixtures("by_default")
@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral-window"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_the_users_cache_is_filled_and_continued(name: str, kind: str, runs: list[int]) -> None:
    """After two calls with the user's cache, it has the content that plain `generate` leaves."""
    model = make(name)
    length = 120
    contents = []
    outputs = []
    for own in (False, True):
        config = model.config
        cache = (
            DynamicCache(config=config)
            if kind == "dynamic"
            else StaticCache(config=config, max_cache_len=length)
        )
        ids = prompt(model)["input_ids"]
        for call_number in range(2):
            settings = {
                "past_key_values": cache,
                "max_new_tokens": 20,
                "do_sample": False,
                "attention_mask": torch.ones_like(ids),
            }
            if own:
                attach(model, nodes=8)
                ids = model.generate(ids, **settings)
                detach(model)
            else:
                ids = model.generate(ids, **settings)
            more = prompt(model, length=9, seed=call_number + 5)["input_ids"]
            ids = torch.cat([ids, more], dim=1)
        outputs.append(ids.tolist())
        contents.append([(layer.keys, layer.values) for layer in cache.layers])
        lengths = [int(layer.get_seq_length()) for layer in cache.layers]
        assert set(lengths) == {ids.shape[1] - 10}
    assert outputs[0] == outputs[1]
    for theirs, mine in zip(*contents, strict=True):
        for one, other in zip(theirs, mine, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert runs


@pytest.mark.usefixtures("by_default")
def test_calls_of_other_kinds_in_between(runs: list[int]) -> None:
    """Sampling, short and long prompts, other dtypes: kept state never leaks into a call."""
    model = copy.deepcopy(make("llama"))
    plug = SpecPlug()
    for seed, length in enumerate([5, 90, 3, 40]):
        inputs = prompt(model, length=length, seed=seed)
        for settings in ({"do_sample": False}, {"do_sample": True, "top_k": 9}):
            every: dict[str, Any] = {"max_new_tokens": 25, **settings}
            expected, _ = plain(model, inputs, seed=seed, **every)
            torch.manual_seed(seed)
            output = model.generate(**inputs, **every, custom_generate=plug)
            assert output.tolist() == expected.tolist()
        if length == 3:
            model.to(torch.float64)
    assert runs


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-oss", "phi3"])
def test_captured(name: str, captured: type[Repeated]) -> None:
    """Greedy and sampled, with scores, over several calls: each width is captured once."""
    model = make(name)
    plug = SpecPlug()
    for seed, length in enumerate([24, 60, 5]):
        inputs = prompt(model, length=length, seed=seed)
        for settings in (
            {"do_sample": False},
            {"do_sample": True, "top_k": 9},
            {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
        ):
            every: dict[str, Any] = {"max_new_tokens": 25, "do_sample": False, **settings}
            expected, _ = plain(model, inputs, seed=seed, **every)
            torch.manual_seed(seed)
            output = model.generate(**inputs, **every, custom_generate=plug)
            if "output_scores" in settings:
                for one, other in zip(output.logits, expected.logits, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
                output, expected = output.sequences, expected.sequences
            assert output.tolist() == expected.tolist()
    assert 0 < captured.made <= len(PADDED_WIDTHS)
    assert plug.stats.prepared == captured.made
    assert "captured" in repr(plug.stats)
    assert not plug.stats.fallbacks


def test_what_changed_is_captured_again(captured: type[Repeated]) -> None:
    model = copy.deepcopy(make("llama"))
    plug = SpecPlug(nodes=8)
    inputs = prompt(model)
    for change in ("none", "in place", "replaced", "to float64"):
        if change == "in place":
            with torch.no_grad():
                model.lm_head.weight.mul_(-1.0)
        elif change == "replaced":
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        elif change == "to float64":
            model.to(torch.float64)
        before = captured.made
        expected, _ = plain(model, inputs, max_new_tokens=20, do_sample=False)
        output = model.generate(**inputs, max_new_tokens=20, do_sample=False, custom_generate=plug)
        assert output.tolist() == expected.tolist()
        assert (captured.made > before) == (change != "in place")


def test_what_cannot_be_captured_runs_as_it_is(
    captured: type[Repeated], monkeypatch: pytest.MonkeyPatch, runs: list[int]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nat line 3")

    monkeypatch.setattr(Repeated, "__init__", fail)
    model = make("llama")
    inputs = prompt(model)
    plug = attach(model)
    expected, _ = plain(model, inputs, max_new_tokens=30, do_sample=False)
    try:
        for _ in range(2):
            output = model.generate(**inputs, max_new_tokens=30, do_sample=False)
            assert output.tolist() == expected.tolist()
            assert runs  # from the first call only: the next one takes the eager engine
            del runs[1:]
    finally:
        detach(model)
    (reason,) = plug.stats.fallbacks
    assert "not permitted when stream is capturing" in reason
    assert "line 3" not in reason
    assert len(runs) == 1


def test_a_graph_with_other_results_is_not_used(
    captured: type[Repeated], monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = Repeated.replay

    def stale(self: Repeated) -> Any:
        logits, *others = replay(self)
        return logits.flip(1), *others

    monkeypatch.setattr(Repeated, "replay", stale)
    model = make("llama")
    inputs = prompt(model)
    expected, _ = plain(model, inputs, max_new_tokens=30, do_sample=False)
    output, _, plug = plugged(model, inputs, ["context"], max_new_tokens=30, do_sample=False)
    assert output.tolist() == expected.tolist()
    assert "other logits" in next(iter(plug.stats.fallbacks))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_host_work_can_wait(name: str, captured: type[Repeated]) -> None:
    """Tokens streamed while the device computes arrive in order, and none is lost."""
    model = make(name)
    inputs = prompt(model)

    class Streamer(BaseStreamer):  # type: ignore[misc]
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.tokens.append(-1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StaticEngine, "overlaps", True)
        learned = {drafter: watched(drafter, patch) for drafter in (StandDrafter, ContextDrafter)}
        streamer = Streamer()
        plug = attach(model)
        try:
            output = model.generate(**inputs, max_new_tokens=30, do_sample=False, streamer=streamer)
        finally:
            detach(model)
    assert streamer.tokens == [*output[0].tolist(), -1]
    assert plug.stats.tokens == 29
    assert plug.stats.forwards == sum(plug.stats.lengths.values())
    assert learned[StandDrafter] == learned[ContextDrafter]  # the prompt and every step
    assert len(learned[StandDrafter]) == plug.stats.forwards + 1


def watched(drafter: type[Drafter], patch: pytest.MonkeyPatch) -> list[list[int]]:
    """The emitted tokens of every step that a drafter learns from."""
    steps: list[list[int]] = []
    observe = drafter.observe

    def observed(self: Drafter, step: Step) -> None:
        steps.append(step.emitted.tolist())
        observe(self, step)

    patch.setattr(drafter, "observe", observed)
    return steps


@pytest.mark.usefixtures("by_default")
def test_disable_compile_is_a_no(runs: list[int]) -> None:
    model = make("llama")
    plugged(model, prompt(model), ["context"], max_new_tokens=9, disable_compile=True)
    assert not runs


@pytest.fixture
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Compilations:
    """A compiler backend that returns the module unchanged, and counts compilations."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, module: Any, inputs: Any, **_: Any) -> Any:
        self.count += 1
        return module

    def __deepcopy__(self, memo: Any) -> Compilations:
        return self


def compiling(backend: Any, **settings: Any) -> dict[str, Any]:
    config = CompileConfig(backend=backend, **settings)
    config._compile_all_devices = True
    return {**STATIC, "compile_config": config}


@pytest.mark.usefixtures("_fresh_dynamo")
def test_nothing_is_compiled_after_warmup() -> None:
    """Runs 50 prompts of different lengths, greedy and sampled, at all widths."""
    model = copy.deepcopy(make("llama"))  # it keeps compiled code
    backend = Compilations()
    how = compiling(backend, mode="default", fullgraph=True)
    plug = attach(model)
    try:
        plug.warmup(max_length=220, **how)
        assert backend.count == len(PADDED_WIDTHS)
        for seed in range(50):
            inputs = prompt(model, length=3 + 4 * seed, seed=seed)
            plug.nodes = [1, 8, 16, 32, 64][seed % 5]
            plug._runner.sessions[model]._budgets.clear()
            plug._runner.sessions[model]._nodes = plug.nodes
            model.generate(**inputs, max_new_tokens=6, do_sample=seed % 2 == 0, **how)
    finally:
        detach(model)
    assert backend.count == len(PADDED_WIDTHS)
    assert plug._runner.sessions[model].factories["static"].forward.captured == len(PADDED_WIDTHS)


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_inductor(name: str, runs: list[int]) -> None:
    model = copy.deepcopy(make(name))
    inputs = prompt(model)
    settings: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}
    expected, _ = plain(model, inputs, **settings, **STATIC)
    how = compiling("inductor")
    for nodes in (8, 32):
        output, _, _ = plugged(
            model, inputs, ["context", "recycling"], nodes=nodes, **settings, **how
        )
        assert output.tolist() == expected.tolist()
    assert set(runs) <= {1, 8, 16, 32}


class OnDevice(TorchDispatchMode):
    """Fails if an operation uses a tensor of another device, or returns a value to the host."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        flat = torch.utils._pytree.tree_leaves((args, kwargs, result))
        devices = {leaf.device.type for leaf in flat if isinstance(leaf, torch.Tensor)}
        assert devices <= {"meta"}, f"{op} works on {devices}"
        assert "_local_scalar_dense" not in str(op)
        assert "nonzero" not in str(op)
        return result


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 16), (3, 8)])
def test_a_captured_pass_never_leaves_the_device(name: str, rows: int, width: int) -> None:
    """On the meta device, reading a value is an error, and so is a copy from the host."""
    model = copy.deepcopy(make(name))
    if model.get_experts_implementation():
        model.set_experts_implementation("batched_mm")  # as transformers decodes on accelerators
    forward = opened(model)
    model.to("meta")
    meta, capacity = torch.device("meta"), forward.cache.capacity
    forward._starts = forward._starts.expand(*forward._starts.shape[:-2], rows, 1).to("meta")
    forward.cache = forward.cache.__class__(on_meta(forward.cache), rows, capacity)
    forward.masks = SlotMasks(model.config, model.dtype, False, meta, rows, capacity)
    forward._feeds[rows, width] = Feed(rows, width, meta)
    with torch.no_grad(), OnDevice():
        logits, packed, _ = forward._body(model, (rows, width))
    assert logits.shape[:2] == (rows, width)
    assert packed is not None
    assert packed.shape == (rows, width, 17)


@pytest.mark.parametrize(
    "spoil",
    [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: torch.ones(1) * 2],
    ids=["item", "nonzero", "from the host"],
)
def test_a_pass_that_waits_for_the_device_is_found(spoil: Any) -> None:
    def hook(_: Any, arguments: Any) -> None:
        spoil(arguments[0])

    model = copy.deepcopy(make("llama")).to("meta")
    ids = torch.zeros((1, 3), dtype=torch.int64, device="meta")
    with torch.no_grad(), OnDevice():
        model(ids)
    model.lm_head.register_forward_pre_hook(hook)
    with pytest.raises((AssertionError, RuntimeError)), torch.no_grad(), OnDevice():
        model(ids)


def opened(model: Any) -> StaticForward:
    """A `StaticForward` that has taken over a prompt."""
    forward = StaticForward()

    def run(model: Any, input_ids: torch.Tensor, generation_config: Any, **rest: Any) -> Any:
        kwargs = {key: rest[key] for key in rest if key in ("past_key_values", "attention_mask")}
        kwargs |= {"use_cache": True}
        call = Call(model, input_ids, generation_config, kwargs)
        engine = StaticEngine(call, CallPlan("tree"), forward)
        with torch.no_grad():
            engine.prefill(input_ids)
        return input_ids

    model.generate(**prompt(model), custom_generate=run, max_new_tokens=4)
    return forward


def on_meta(cache: Any) -> Any:
    layers = [
        SimpleNamespace(keys=x.keys.to("meta"), values=x.values.to("meta")) for x in cache.layers
    ]
    return SimpleNamespace(layers=layers)


def test_python_state_tells_what_a_graph_would_not_see() -> None:
    model = copy.deepcopy(make("llama"))
    seen = {python_state(model)}

    def changed() -> bool:
        state = python_state(model)
        new = state not in seen
        seen.add(state)
        return new

    assert not changed()
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)  # in place: a graph reads the new values
    assert not changed()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    assert changed()
    model.model.layers[0].mlp._disable_adapters = True
    assert changed()
    model.model.layers[0].mlp.scaling = {"default": 2.0}
    assert changed()
    model.model.layers[0].mlp.scaling["default"] = 3.0
    assert changed()
    model.model.norm.register_forward_hook(lambda *_: None)
    assert changed()
    model.model.layers[1].mlp.forward = lambda x: x
    assert changed()
    model.train()
    assert changed()
    model.set_attn_implementation("eager")
    assert changed()
    assert not changed()


TREE = st.lists(st.integers(0, 100), max_size=14).map(
    lambda draws: [draw % (place + 1) - 1 for place, draw in enumerate(draws)]
)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3", "llama4"])
@given(parents=TREE, padding=st.integers(0, 9), extra=st.integers(0, 40))
def test_slot_masks_are_tree_masks(name: str, parents: list[int], padding: int, extra: int) -> None:
    """The masks built on the host and those computed on the device are equal."""
    model = make(name)
    past = 10 + extra
    count = len(parents)
    tree = DraftTree(
        np.zeros(count, np.int32),
        np.array(parents, np.int32),
        np.ones(count, np.float32),
        np.zeros(count, np.uint16),
    )
    seen, depths = tree.ancestors()
    prompt_mask = torch.ones((1, past), dtype=torch.int64)
    prompt_mask[:, :padding] = 0
    cache = StaticCache(config=model.config, max_cache_len=past + count + 1)
    full = type("Full", (), {"get_mask_sizes": lambda self, width, layer: (past + width, 0)})
    cache.get_mask_sizes = full().get_mask_sizes
    device = torch.device("cpu")
    capacity = past + count + 5
    for additive in (False, True):
        on_host = TreeMasks(
            model.config, cache, model.dtype, additive, device, prompt_mask, 1 << 30
        )
        on_device = SlotMasks(model.config, model.dtype, additive, device, 1, capacity)
        on_device.pad(prompt_mask)
        one = on_host.build(seen, depths, past)
        slots = torch.arange(past, past + count + 1)
        inputs = torch.from_numpy(seen), torch.from_numpy(depths), slots
        other = on_device.build(*(each[None] for each in inputs))
        ones, others = (
            {"": mask} if isinstance(mask, torch.Tensor) else mask for mask in (one, other)
        )
        assert ones.keys() == others.keys()
        for kind, mask in ones.items():
            rest = others[kind][..., mask.shape[-1] :]
            assert torch.equal(others[kind][..., : mask.shape[-1]], mask)
            assert (rest == on_device._lowest).all() if additive else not rest.any()


def test_warmup_says_what_is_missing() -> None:
    with pytest.raises(OptionError, match=r"attach\(model\) first"):
        SpecPlug().warmup()
    with pytest.raises(OptionError, match="max_length"):
        SpecPlug().warmup(make("llama"), max_length=0)


@pytest.mark.parametrize("static", [False, True])
def test_warmup(static: bool, request: pytest.FixtureRequest) -> None:
    if static:
        request.getfixturevalue("captured")
    model = make("llama")
    inputs = prompt(model)
    expected, _ = plain(model, inputs, max_new_tokens=40, do_sample=False)
    plug = attach(model)
    before = plug.mixer.weights.copy()
    try:
        assert plug.warmup(max_length=2000) > 0
        assert (plug.mixer.weights == before).all()
        assert plug.stats.tokens == 0
        assert plug.stats.prepared == (len(PADDED_WIDTHS) if static else 0)
        output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        assert output.tolist() == expected.tolist()
        assert plug.stats.prepared == (len(PADDED_WIDTHS) if static else 0)
    finally:
        detach(model)
