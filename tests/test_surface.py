"""Attaching: a single instance, all forms of a call, copies, and the model restored afterwards."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, GenerationConfig, pipeline

from hf_specplug import SpecPlug, attach, detach
from hf_specplug.drafters.registry import create
from hf_specplug.errors import OptionError, StateError
from tests.helpers.oracle import Replay
from tests.helpers.runs import Counting, new_tokens, plain
from tests.helpers.zoo import FAMILIES, prompt

SETTINGS: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False}


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    model = FAMILIES["llama"].build().eval()
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture
def expected(model: Any) -> list[list[int]]:
    return plain(model, prompt(model), **SETTINGS)[0].tolist()  # type: ignore[no-any-return]


def test_attach_and_detach_leave_no_trace(model: Any, expected: Any) -> None:
    before, kind = dict(vars(model)), type(model)
    plug = attach(model)
    assert model.generate(**prompt(model), **SETTINGS).tolist() == expected
    assert plug.stats.calls == 1
    assert type(model) is kind
    detach(model)
    assert vars(model) == before
    assert model.generate.__func__ is kind.generate
    detach(model)  # a second `detach` does nothing
    assert model.generate(**prompt(model), **SETTINGS).tolist() == expected
    assert plug.stats.calls == 1


def test_only_the_one_instance_is_touched(model: Any) -> None:
    other = copy.deepcopy(model)
    plug = attach(model)
    assert "generate" not in vars(other)
    other.generate(**prompt(other), **SETTINGS)
    assert plug.stats.calls == 0


def test_attaching_again_replaces_the_plug(model: Any, expected: Any) -> None:
    first, second = attach(model), attach(model, nodes=4)
    assert model.generate(**prompt(model), **SETTINGS).tolist() == expected
    assert (first.stats.calls, second.stats.calls) == (0, 1)
    detach(model)
    assert "generate" not in vars(model)


def test_every_way_of_asking(model: Any, expected: Any) -> None:
    inputs = prompt(model)
    attached, other = attach(model), SpecPlug()
    for arguments in ({"assistant": other}, {"assistant_model": other}, {"custom_generate": other}):
        before = other.stats.calls
        assert model.generate(**inputs, **SETTINGS, **arguments).tolist() == expected
        assert other.stats.calls == before + 1
    assert model.generate(**inputs, **SETTINGS, assistant=None).tolist() == expected
    assert attached.stats.calls == 0
    assert model.generate(inputs["input_ids"], **SETTINGS).tolist() == expected
    config = GenerationConfig(**SETTINGS, pad_token_id=0)
    assert model.generate(inputs["input_ids"], config).tolist() == expected
    assert model.generate(inputs["input_ids"], generation_config=config).tolist() == expected
    assert attached.stats.calls == 3
    detach(model)
    direct = SpecPlug()
    assert model.generate(**inputs, **SETTINGS, custom_generate=direct).tolist() == expected
    assert direct.stats.calls == 1


def test_a_users_own_method_and_assistant_come_first(model: Any, expected: Any) -> None:
    plug = attach(model)
    calls = []

    def mine(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return input_ids

    model.generate(**prompt(model), **SETTINGS, custom_generate=mine)
    assert calls == [1]
    draft_model = copy.deepcopy(detached(model))
    output = model.generate(**prompt(model), **SETTINGS, assistant_model=draft_model)
    assert output.tolist() == expected
    assert plug.stats.calls == 0
    assert "assisted generation" in next(iter(plug.stats.fallbacks))


def detached(model: Any) -> Any:
    twin = copy.deepcopy(model)
    detach(twin)
    return twin


def test_wrong_use_is_said_clearly(model: Any) -> None:
    with pytest.raises(OptionError, match="attach takes a transformers model"):
        attach("gpt2")
    with pytest.raises(OptionError, match="attach takes a transformers model"):
        attach(torch.nn.Linear(2, 2))
    with pytest.raises(OptionError, match=r"'contxt'.*context.*recycling"):
        attach(model, drafters=["contxt"])
    with pytest.raises(OptionError, match="once"):
        attach(model, drafters=["context", "context"])
    with pytest.raises(OptionError, match="by name or as a Drafter"):
        attach(model, drafters=[3])
    for nodes in (0, -1, 2000, 2.5, "many", None, True):
        with pytest.raises(OptionError, match="nodes must be"):
            attach(model, nodes=nodes)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="noodles"):
        attach(model, noodles=3)  # type: ignore[call-arg]
    with pytest.raises(AttributeError, match="attach"):
        model.generate(**prompt(model), assistant_model=SpecPlug(), max_new_tokens=3)
    assert "generate" not in vars(model)
    attach(model)
    with pytest.raises(OptionError, match="draft model goes to assistant_model"):
        model.generate(**prompt(model), assistant=copy.deepcopy(model))
    with pytest.raises(ValueError, match="not used by the model"):  # from transformers' own checks
        model.generate(**prompt(model), max_new_tokenz=3)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_carry_a_plug_of_their_own(model: Any, expected: Any, how: str) -> None:
    plug = attach(model, nodes=8)
    model.generate(**prompt(model), **SETTINGS)
    twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()  # changes the output of a copy that still called the original
    assert twin.generate(**prompt(model), **SETTINGS).tolist() == expected
    assert plug.stats.calls == 1
    own = vars(twin)["generate"].plug
    assert own is not plug
    assert own.stats.calls == 2  # the statistics are copied, too
    detach(twin)
    assert twin.generate(**prompt(model), **SETTINGS).tolist() == expected
    assert own.stats.calls == 2


def test_save_pretrained(model: Any, expected: Any, tmp_path: Path) -> None:
    attach(model)
    model.generate(**prompt(model), **SETTINGS)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert "generate" not in vars(loaded)
    assert loaded.generate(**prompt(model), **SETTINGS).tolist() == expected
    assert not [file for file in tmp_path.iterdir() if "plug" in file.read_text("latin-1")]


def test_pipeline(demo_model: Any, tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "Write a function that adds two numbers."}]
    pipe = pipeline("text-generation", model=demo_model, tokenizer=tokenizer)
    expected = pipe(chat, max_new_tokens=40, do_sample=False)
    plug = attach(demo_model)
    try:
        assert pipe(chat, max_new_tokens=40, do_sample=False) == expected
        fresh = pipeline("text-generation", model=demo_model, tokenizer=tokenizer)
        assert fresh(chat, max_new_tokens=40, do_sample=False) == expected
    finally:
        detach(demo_model)
    assert plug.stats.calls == 2


def test_generate_still_describes_itself(model: Any) -> None:
    before = inspect.signature(model.generate)
    attach(model)
    assert inspect.signature(model.generate) == before


def test_two_calls_at_once(model: Any, expected: Any) -> None:
    plug = attach(model)
    results: list[Any] = []

    def call() -> None:
        results.append(model.generate(**prompt(model), **SETTINGS).tolist())

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 6
    assert plug.stats.calls == 6


def test_a_hook_counts_fewer_forward_passes(model: Any, expected: Any) -> None:
    inputs = prompt(model)
    attach(model, drafters=Replay(new_tokens(torch.tensor(expected), 30), siblings=0), nodes=32)
    count = Counting(model)
    model.generate(**inputs, **SETTINGS)  # runs the trial that a model with a hook needs
    before = count.forwards
    model.generate(**inputs, **SETTINGS)
    assert count.forwards - before == 2


def test_learned_state_is_saved_and_loaded(model: Any, tmp_path: Path) -> None:
    plug = attach(model, nodes=16)
    model.generate(**prompt(model), **SETTINGS)
    plug.save_state(tmp_path / "state.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]
    twin = SpecPlug()
    twin.load_state(tmp_path / "state.safetensors")
    for one, two in zip(plug.drafters, twin.drafters, strict=True):
        for key, array in one.state_dict().items():
            assert np.array_equal(array, two.state_dict()[key])
    assert (twin.drafters[1].state_dict()["ids"] >= 0).any()
    warm = attach(model, nodes=16)
    warm.load_state(tmp_path / "state.safetensors")
    model.generate(**prompt(model), **SETTINGS)
    assert warm.stats.accepted >= plug.stats.accepted


def test_state_that_does_not_fit(model: Any, tmp_path: Path) -> None:
    plug, path = SpecPlug(), tmp_path / "s.safetensors"
    good = {"format": "hf_specplug drafter state 1"}
    ids, probs = np.zeros((9, 8), np.int32), np.zeros((9, 8), np.uint16)
    bad: list[tuple[dict[str, Any], dict[str, str] | None, str]] = [
        ({"recycling/ids": ids, "recycling/probs": probs}, None, "not one of save_state"),
        ({"recycling/ids": ids}, good, "arrays ids and probs"),
        ({"recycling/ids": ids.astype(np.int64), "recycling/probs": probs}, good, "int32"),
        ({"recycling/ids": ids[:, :5], "recycling/probs": probs[:, :5]}, good, r"\[V, 8\]"),
        ({"recycling/ids": ids[:5], "recycling/probs": probs}, good, r"\[V, 8\]"),
        ({"recycling/ids": ids + 9, "recycling/probs": probs}, good, "must lie in"),
        ({"recycling/ids": ids - 2, "recycling/probs": probs}, good, "must lie in"),
        ({"rest/x": ids}, good, "holds"),
        ({"context/x": ids}, good, "keeps no state"),
    ]
    before = {key: array.copy() for key, array in plug.drafters[1].state_dict().items()}
    for tensors, metadata, message in bad:
        save_file(
            {key: np.ascontiguousarray(value) for key, value in tensors.items()},
            path,
            metadata=metadata,
        )
        with pytest.raises(StateError, match=message):
            plug.load_state(path)
    whole = path.read_bytes()
    for cut in (0, 3, 8, 20, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(StateError, match="cannot be read"):
            plug.load_state(path)
    with pytest.raises(FileNotFoundError):
        plug.load_state(tmp_path / "nowhere")
    for key, array in plug.drafters[1].state_dict().items():
        assert np.array_equal(array, before[key])


def test_state_of_another_vocabulary_is_started_anew(model: Any, expected: Any) -> None:
    plug = attach(model)
    plug.drafters[1].load_state_dict(
        {"ids": np.full((500, 8), 400, np.int32), "probs": np.ones((500, 8), np.uint16)}
    )
    assert model.generate(**prompt(model), **SETTINGS).tolist() == expected
    assert not plug.stats.dropped
    assert plug.drafters[1].state_dict()["ids"].shape == (model.config.vocab_size, 8)


def test_create_names() -> None:
    assert [drafter.name for drafter in create("context")] == ["context"]
    assert repr(SpecPlug("context", nodes=4)) == "SpecPlug(drafters=['context'], nodes=4)"


def test_detach_gives_back_a_generate_of_the_instances_own(model: Any) -> None:
    """`from_pretrained` sets `generate` as an attribute if the model's repository defines one."""

    def own(model: Any, *inputs: Any, **settings: Any) -> str:
        return "its own"

    model.generate = functools.partial(own, model)
    before = model.generate
    for _ in range(2):
        attach(model)
        assert model.generate(**prompt(model), **SETTINGS).shape[1] > 30
    copied = copy.deepcopy(model)
    detach(model)
    assert model.generate is before
    detach(copied)
    assert copied.generate() == "its own"
    assert copied.generate.args == (copied,)


def test_another_method_is_handed_the_assistant(model: Any) -> None:
    attach(model)
    given: list[Any] = []

    def method(model: Any, input_ids: Any, *, assistant: Any = None, **rest: Any) -> Any:
        given.append(assistant)
        return input_ids

    plug = SpecPlug()
    model.generate(**prompt(model), **SETTINGS, custom_generate=method, assistant=plug)
    model.generate(**prompt(model), **SETTINGS, custom_generate=method)
    assert given == [plug, None]
    detach(model)
