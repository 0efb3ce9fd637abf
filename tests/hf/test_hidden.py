"""Hidden states: equal to those of a plain forward pass in every engine; drafting from them."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CompileConfig

from hf_specplug import SpecPlug
from hf_specplug.datastore.building import embedding
from hf_specplug.datastore.building.embedding import Embedding
from hf_specplug.drafters.contract import Context, Drafter, Frontier, Int32, Step
from hf_specplug.drafters.dense import DenseDrafter
from hf_specplug.hf import support
from hf_specplug.hf.hidden_states import LAST, HiddenStateHook, signature
from hf_specplug.hf.positions import position_argument
from hf_specplug.verify import static_forward as forward_module
from tests.drafters.test_dense import States, dense_store, described
from tests.helpers.oracle import Replay
from tests.helpers.runs import new_tokens, plain
from tests.helpers.stores import documents
from tests.helpers.zoo import FAMILIES, make, prompt
from tests.verify.test_static import Repeated

DRAFTED = [name for name, family in FAMILIES.items() if family.mode != "plain"]
DECODERS = [name for name in DRAFTED if FAMILIES[name].kind == "decoder"]
NEW = 24
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
STATIC: dict[str, Any] = {"cache_implementation": "static"}


class Recorder(Drafter):
    """Records the hidden states of its steps, by number of emitted tokens."""

    name = "recorder"
    needs = frozenset({"hidden"})

    def __init__(self, layer: int = LAST) -> None:
        self.layer = layer
        self.priors = np.array([0.5], np.float32)

    def begin(self, context: Context) -> None:
        self.emitted = 0
        self.seen: dict[int, Any] = {}

    def expand(self, frontier: Frontier) -> Int32:
        return np.empty((0, 3), np.int32)

    def observe(self, step: Step) -> None:
        self.emitted += len(step.emitted)
        self.seen[self.emitted] = step.hidden


def whole(model: Any, inputs: dict[str, Any], output: Any, layer: int) -> Any:
    """float32[n, width], the hidden states of all n tokens of an output, from one forward pass."""
    if model.config.model_type == "whisper":  # its output begins with the first new token
        output = torch.cat([torch.tensor([[model.config.decoder_start_token_id]]), output], 1)
    if model.config.is_encoder_decoder:
        inputs = {**inputs, "decoder_input_ids": output}
    else:
        mask = torch.ones_like(output)
        mask[:, : inputs["attention_mask"].shape[1]] = inputs["attention_mask"]
        inputs = {"input_ids": output, "attention_mask": mask}
        if position_argument(model):
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad(), HiddenStateHook(model, layer) as watch:
        model(**inputs)
    assert watch.states is not None
    return watch.states[0].float().numpy()


def assert_seen(
    model: Any, inputs: dict[str, Any], output: Any, recorder: Recorder, tolerance: float = 1e-5
) -> None:
    """Each recorded state is that of the token before the last emitted one."""
    states = whole(model, inputs, output, recorder.layer)
    first = len(states) - NEW
    assert recorder.emitted == NEW
    for emitted, state in recorder.seen.items():
        assert state is not None
        assert state.dtype == np.float32
        np.testing.assert_allclose(
            state, states[first + emitted - 2], rtol=tolerance, atol=tolerance
        )


def shown(
    model: Any,
    inputs: dict[str, Any],
    layer: int = LAST,
    seed: int = 0,
    rank: int = 1,
    **settings: Any,
) -> tuple[Any, Recorder, SpecPlug]:
    """Generate with partly right drafts; returns (output, recorder, plug)."""
    verification, others = settings.pop("verification", "seeded"), settings.pop("drafters", [])
    every = {**GREEDY, **settings}
    expected, _ = plain(model, inputs, seed=seed, **every)
    replay = Replay(new_tokens(expected, NEW), wrong=lambda place: place % 3 == 2, rank=rank)
    recorder = Recorder(layer)
    plug = SpecPlug(drafters=[replay, recorder, *others], nodes=8, verification=verification)
    torch.manual_seed(seed)
    output = model.generate(**inputs, **every, custom_generate=plug)
    if verification == "seeded":
        assert output.tolist() == expected.tolist()
    assert not plug.stats.dropped
    return output, recorder, plug


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("layer", [LAST, 0])
def test_what_is_watched_is_what_transformers_shows(name: str, layer: int) -> None:
    model = copy.deepcopy(make(name))  # transformers leaves its own hooks
    with torch.no_grad(), HiddenStateHook(model, layer) as watch:
        output = model(**prompt(model), output_hidden_states=True)
    expected = output.hidden_states[layer if layer == LAST else layer + 1]
    torch.testing.assert_close(watch.states, expected)
    torch.testing.assert_close(watch.of(0, 3), expected[0, -3:])
    with watch:
        pass
    assert watch.of(0) is None  # no forward pass ran


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("layer", [LAST, 0])
def test_no_hook_is_left(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(make("llama"))
    before = hooks(model)
    shown(model, prompt(model), layer)
    assert hooks(model) == before
    monkeypatch.setattr(model.lm_head, "forward", lambda states: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.generate(**prompt(model), **GREEDY, custom_generate=SpecPlug(drafters=[Recorder()]))
    with pytest.raises(ZeroDivisionError), HiddenStateHook(model, layer):
        model(**prompt(model))
    assert hooks(model) == before


@pytest.mark.parametrize("name", DRAFTED)
def test_drafters_see_the_state_of_the_last_pick(name: str) -> None:
    """Trees or chains are drafted, of which a part is accepted."""
    model = make(name, FAMILIES[name].dtypes[-1])
    rank = int(FAMILIES[name].mode == "tree")  # a chain holds the likeliest tokens only
    output, recorder, _ = shown(model, prompt(model), rank=rank)
    assert_seen(model, prompt(model), output, recorder)
    assert 5 < len(recorder.seen) < NEW


HOW: dict[str, dict[str, Any]] = {
    "eager": {},
    "static": STATIC,
    "chunked": {"prefill_chunk_size": 7},
    "chunked static": {"prefill_chunk_size": 5, **STATIC},
    "sampling": {"do_sample": True, "top_k": 9},
    "sampling static": {"do_sample": True, "top_k": 9, **STATIC},
    "rejection": {"do_sample": True, "top_k": 9, "verification": "rejection"},
    "with others": {"drafters": ["context", "recycling", "gumbel"]},
    "with others static": {"drafters": ["recycling"], **STATIC},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3", "mistral-window"])
def test_whatever_runs_the_model(name: str, how: str) -> None:
    model = make(name, torch.float64)
    for layer, padding in ((LAST, 0), (0, 0), (1, 6)):
        inputs = prompt(model)
        inputs["attention_mask"][:, :padding] = 0
        output, recorder, _ = shown(model, inputs, layer, **HOW[how])
        assert_seen(model, inputs, output, recorder)


def test_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several calls of one plug; each step overwrites the results of the previous one."""
    monkeypatch.setattr(support, "is_accelerated", lambda model: True)
    monkeypatch.setattr(forward_module, "is_accelerated", lambda model: True)
    monkeypatch.setattr(forward_module, "Graph", Repeated)
    model, recorder = make("llama"), Recorder()
    plug = SpecPlug(drafters=["context", recorder], nodes=8)
    for seed in range(3):
        inputs = prompt(model, length=20 + seed, seed=seed)
        output = model.generate(**inputs, **GREEDY, custom_generate=plug)
        assert_seen(model, inputs, output, recorder)
    assert plug.stats.prepared
    assert not plug.stats.fallbacks


def test_a_plug_keeps_no_model() -> None:
    model = copy.deepcopy(make("llama"))
    plug = SpecPlug(drafters=[Recorder()])
    for settings in ({}, STATIC):
        model.generate(**prompt(model), **GREEDY, **settings, custom_generate=plug)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_signatures_tell_models_apart() -> None:
    """The signature is the same in all dtypes if the weights differ only by rounding."""
    model = copy.deepcopy(make("llama"))
    one = signature(model)
    assert len(one) == 32
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.float32, torch.float64):
        assert signature(model.to(dtype)) == one, dtype
    others = [make("llama", seed=1), make("mistral-window"), make("phi3"), make("t5")]
    assert len({one, *map(signature, others)}) == 5


KINDS = ["eager", "static", "sampling", "sampling static"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "name", ["llama", "gemma3", "gpt2", "gpt-neox", "qwen3-moe", "phi3", "mistral-window", "bloom"]
)
def test_output_stays_the_same(
    name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stores hold the expected answers, noise, or states of another model."""
    model = make(name, dtype)
    inputs = prompt(model)
    expected = {how: plain(model, inputs, **{**GREEDY, **HOW[how]}) for how in KINDS}
    rows = [output[0].tolist() for output, _ in expected.values()]
    monkeypatch.setattr(embedding, "load_model", lambda name: model)
    stores: dict[str, Any] = {
        "noise": (described(signature(model)), States(32)),
        "other": (described("0" * 32), States(32)),
    }
    for kind, layer in (("own", LAST), ("middle", 0)):
        made = Embedding("own", layer)
        stores[kind] = made.settings("Flat"), made, rows
    for kind, store in stores.items():
        drafter = DenseDrafter([dense_store(tmp_path / kind, *store)])
        plug = SpecPlug(drafters=[drafter], nodes=16)
        for how, (output, state) in expected.items():
            torch.manual_seed(0)
            actual = model.generate(**inputs, **{**GREEDY, **HOW[how]}, custom_generate=plug)
            assert actual.tolist() == output.tolist(), (kind, how)
            assert torch.equal(torch.get_rng_state(), state)
        assert bool(plug.stats.dropped) == (kind == "other")
        if kind in ("own", "middle"):
            assert plug.stats.accepted_by["dense"] > 0.7 * NEW * len(KINDS)
            assert plug.stats.forwards < 0.4 * NEW * len(KINDS)


class Around(nn.Module):
    """A head that calls the output embedding in an unusual way, or not at all."""

    def __init__(self, head: nn.Linear, how: str) -> None:
        super().__init__()
        self.head, self.how = head, how

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.how == "never":
            return states @ self.head.weight.T
        if self.how == "flat":
            return self.head(states.flatten(0, 1)).unflatten(0, states.shape[:2])
        if self.how == "in parts":
            return torch.cat([self.head(part) for part in states.split(1, dim=1)], dim=1)
        return self.head(states)


@pytest.mark.parametrize("settings", [{}, STATIC], ids=["eager", "static"])
@pytest.mark.parametrize("how", ["never", "flat", "in parts", "absent"])
def test_states_that_are_not_seen(
    how: str, settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The output is the same; the reason why hidden states are unavailable is logged once."""
    model = copy.deepcopy(make("llama"))
    model.lm_head = Around(model.lm_head, how)
    head = None if how == "absent" else model.lm_head.head
    model.get_output_embeddings = lambda: head
    store = dense_store(tmp_path, described(signature(model)), States(32))
    inputs, every = prompt(model), {**GREEDY, **settings}
    expected, _ = plain(model, inputs, **every)
    replay = Replay(new_tokens(expected, NEW), rank=2)
    for nodes in (12, 64):
        plug = SpecPlug(drafters=[replay, DenseDrafter([store])], nodes=nodes)
        for _ in range(2):
            output = model.generate(**inputs, **every, custom_generate=plug)
            assert output.tolist() == expected.tolist()
        assert not plug.stats.accepted_by["dense"]
        assert not plug.stats.dropped
        ((reason, count),) = plug.stats.fallbacks.items()
        assert count == 2
        assert "states" in reason
        assert caplog.messages.count(reason) == 1
        caplog.clear()


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("layer", [LAST, 0])
def test_compiled(backend: str, layer: int) -> None:
    """Code that was compiled without a hook does not yield states of another forward pass."""
    torch._dynamo.reset()
    config = CompileConfig(backend=backend, mode=None if backend == "inductor" else "default")
    config._compile_all_devices = True
    model = copy.deepcopy(make("llama"))
    for seed, watched in enumerate([False, True, False, True, True]):
        inputs = prompt(model, length=20 + seed, seed=seed)
        expected, _ = plain(model, inputs, **GREEDY, **STATIC)
        replay = Replay(new_tokens(expected, NEW), wrong=lambda place: place % 3 == 2, rank=1)
        recorder = Recorder(layer)
        plug = SpecPlug(drafters=[replay, recorder] if watched else [replay], nodes=8)
        output = model.generate(
            **inputs, **GREEDY, **STATIC, compile_config=config, custom_generate=plug
        )
        assert output.tolist() == expected.tolist()
        assert plug.stats.prepared
        if watched:
            assert_seen(model, inputs, output, recorder)


FORKED = """
import os, sys
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from hf_specplug.datastore.store import Datastore

class Work(Dataset):
    def __init__(self):
        self.store, self.matrix = Datastore(sys.argv[1]), torch.full((400, 400), 0.5)

    def __len__(self):
        return 3

    def __getitem__(self, _):
        near, places = self.store.shards[0].search(np.full(8, 8**-0.5, np.float32), 20)
        return [places.tolist(), float((self.matrix @ self.matrix).sum())]

def threads():
    return len(os.listdir("/proc/self/task")), torch.get_num_threads()

if __name__ == "__main__":
    torch.set_num_threads(2)
    work = Work()
    expected, before = work[0], threads()
    for _ in range(100):
        assert work[0] == expected
    assert threads() == before, threads()
    if not os.fork():
        torch.set_num_threads(1)  # else torch hangs in a forked process, without any store
        os._exit(work[0] != expected)
    assert os.wait()[1] == 0
    for how in ("fork", "spawn"):
        loader = DataLoader(work, batch_size=None, num_workers=1, multiprocessing_context=how)
        assert list(loader) == [expected] * 3, how
    assert work[0] == expected
    print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("index", ["Flat", "IVF16,SQ8"])
def test_stores_and_torch_get_along(index: str, tmp_path: Path) -> None:
    """In one process, with threads of both libraries, and in its child processes."""
    rows = documents([900] * 6)
    store = dense_store(tmp_path, {**described(""), "index": index}, rows=rows)
    (tmp_path / "run.py").write_text(FORKED)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "run.py"), str(store)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout == "done\n", result.stderr
