"""The folder `custom_generate`, loaded by transformers as it loads a repository of the Hub."""

from __future__ import annotations

import copy
import gc
import re
import shutil
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, StaticCache, dynamic_module_utils

import hf_specplug
from hf_specplug import CUSTOM_GENERATE, DEMO_MODEL, SpecPlug, attach, detach
from hf_specplug.errors import OptionError, StoreError
from tests.helpers.oracle import Replay
from tests.helpers.runs import new_tokens, plain
from tests.helpers.stores import Letters
from tests.helpers.zoo import make, prompt
from tests.test_generate import Recorder, question

ROOT = Path(__file__).parent.parent
SOURCE = CUSTOM_GENERATE
SETTINGS: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the folder; what transformers caches of it goes to the temporary folder, too."""
    folder = tmp_path / "specplug"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield folder
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.fixture
def model() -> Any:
    return copy.deepcopy(make("llama"))


@pytest.fixture
def chat(demo_model: Any) -> Any:
    return copy.deepcopy(demo_model)


def hub(model: Any, inputs: dict[str, Any], repository: Path, **settings: Any) -> tuple[Any, Any]:
    """(what `generate` returns by way of the repository, the final state of the generator)"""
    torch.manual_seed(0)
    method = {"custom_generate": str(repository), "trust_remote_code": True}
    return model.generate(**inputs, **settings, **method), torch.get_rng_state()


def plug_of(model: Any) -> SpecPlug:
    return vars(model)["_specplug_custom_generate"][1].plug


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "whisper", "bloom", "t5", "mamba2"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_the_same_tokens(repository: Path, name: str, do_sample: bool) -> None:
    model, inputs = copy.deepcopy(make(name)), prompt(make(name))
    settings = {**SETTINGS, "do_sample": do_sample}
    expected, state = plain(model, inputs, **settings)
    replay = Replay(new_tokens(expected, 30), wrong=lambda p: p % 5 == 4)
    for options in ({}, {"drafters": replay, "nodes": 12}):
        output, after = hub(model, inputs, repository, **settings, **options)
        assert output.tolist() == expected.tolist()
        assert torch.equal(after, state)
    stats = plug_of(model).stats
    if name == "mamba2":
        assert stats.fallbacks
    else:
        assert (stats.calls, stats.dropped) == (1, {})
        assert stats.forwards < 20
    assert "generate" not in vars(model)


def test_everything_returned(repository: Path, model: Any) -> None:
    inputs = prompt(model)
    wanted = {"return_dict_in_generate": True, "output_scores": True, "repetition_penalty": 1.1}
    expected, _ = plain(model, inputs, **SETTINGS, **wanted)
    output, _ = hub(model, inputs, repository, **SETTINGS, **wanted)
    assert type(output) is type(expected)
    assert output.sequences.tolist() == expected.sequences.tolist()
    for ours, theirs in zip(output.scores, expected.scores, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert output.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length()


@pytest.mark.parametrize("given", [True, False])
def test_static_caches(repository: Path, model: Any, given: bool) -> None:
    def cache() -> dict[str, Any]:
        if given:
            return {"past_key_values": StaticCache(config=model.config, max_cache_len=80)}
        return {"cache_implementation": "static", "disable_compile": True}

    expected, _ = plain(model, prompt(model), **SETTINGS, **cache())
    replay = Replay(new_tokens(expected, 30))
    options = {"drafters": replay, "nodes": 12}
    output, _ = hub(model, prompt(model), repository, **SETTINGS, **cache(), **options)
    assert output.tolist() == expected.tolist()
    assert plug_of(model).stats.forwards < 10


def test_streamers_and_stop_strings(repository: Path, chat: Any, tokenizer: Any) -> None:
    inputs = question(tokenizer)
    whole, _ = plain(chat, inputs, **SETTINGS)
    text = tokenizer.decode(new_tokens(whole, 30))
    settings = {**SETTINGS, "stop_strings": [text[len(text) // 2 :][:4]], "tokenizer": tokenizer}
    one, two = Recorder(), Recorder()
    expected, _ = plain(chat, inputs, **settings, streamer=one)
    output, _ = hub(chat, inputs, repository, **settings, streamer=two)
    assert output.tolist() == expected.tolist()
    assert expected.shape[1] < whole.shape[1]
    assert two.events == one.events
    assert two.events[-1] == "end"
    assert plug_of(chat).stats.calls == 1


@pytest.mark.parametrize(
    "settings",
    [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}, {"do_sample": True, "top_k": 5}],
    ids=["beams", "lookup", "top-k"],
)
def test_other_ways_of_decoding(repository: Path, model: Any, settings: dict[str, Any]) -> None:
    expected, state = plain(model, prompt(model), max_new_tokens=12, **settings)
    output, after = hub(model, prompt(model), repository, max_new_tokens=12, **settings)
    assert output.tolist() == expected.tolist()
    assert torch.equal(after, state)


def test_one_plug_is_kept_until_the_options_change(repository: Path, model: Any) -> None:
    inputs = prompt(model)
    fixed = {"nodes": 16}  # whatever the machine is busy with
    hub(model, inputs, repository, **SETTINGS, **fixed)
    first = plug_of(model)
    before = first.stats.forwards
    hub(model, inputs, repository, **SETTINGS, **fixed, revision="main", token=False)
    assert plug_of(model) is first
    assert first.stats.calls == 2
    assert first.stats.forwards < 2 * before  # what it learned stayed
    names = ["context"]
    hub(model, inputs, repository, **SETTINGS, drafters=names, nodes=8)
    second = plug_of(model)
    assert second is not first
    assert ([drafter.name for drafter in second.drafters], second.nodes) == (["context"], 8)
    hub(model, inputs, repository, **SETTINGS, nodes=8, drafters=["context"])
    assert plug_of(model) is second
    names.append("recycling")
    hub(model, inputs, repository, **SETTINGS, drafters=names, nodes=8)
    assert [drafter.name for drafter in plug_of(model).drafters] == ["context", "recycling"]


@pytest.mark.parametrize("name", ["llama", "whisper"])
def test_a_plug_of_ones_own_and_none(repository: Path, name: str) -> None:
    model, own = copy.deepcopy(make(name)), SpecPlug()
    expected, _ = plain(model, prompt(model), **SETTINGS)
    output, _ = hub(model, prompt(model), repository, **SETTINGS, assistant=own)
    assert output.tolist() == expected.tolist()
    assert own.stats.calls == 1
    output, _ = hub(model, prompt(model), repository, **SETTINGS, assistant=None)
    assert output.tolist() == expected.tolist()
    assert (own.stats.calls, plug_of(model).stats.calls) == (1, 0)


def test_an_attached_model_keeps_its_plug(repository: Path, model: Any) -> None:
    plug = attach(model)
    mine = vars(model)["generate"]
    expected, _ = plain(model, prompt(model), **SETTINGS)
    output, _ = hub(model, prompt(model), repository, **SETTINGS)
    assert output.tolist() == expected.tolist()
    assert plug.stats.calls == 1
    assert "_specplug_custom_generate" not in vars(model)
    hub(model, prompt(model), repository, **SETTINGS, nodes=8)  # said for this call
    assert (plug.stats.calls, plug_of(model).stats.calls) == (1, 1)
    assert vars(model)["generate"] is mine
    detach(model)
    assert "generate" not in vars(model)


def test_the_plug_goes_with_the_model(repository: Path) -> None:
    model = copy.deepcopy(make("llama"))
    hub(model, prompt(model), repository, **SETTINGS)
    expected, _ = plain(model, prompt(model), **SETTINGS)
    twin = copy.deepcopy(model)
    plugs = [weakref.ref(plug_of(each)) for each in (model, twin)]
    assert plugs[0]() is not plugs[1]()
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert [alive(), plugs[0]()] == [None, None]
    output, _ = hub(twin, prompt(twin), repository, **SETTINGS)
    assert output.tolist() == expected.tolist()
    assert plugs[1]().stats.calls == 2  # type: ignore[union-attr]


def test_datastores(repository: Path, chat: Any, tokenizer: Any) -> None:
    store = {"datastores": [ROOT / "datastores" / "sample.store"]}
    inputs = question(tokenizer)
    expected, _ = plain(chat, inputs, **SETTINGS)
    output, _ = hub(chat, inputs, repository, **SETTINGS, **store, tokenizer=tokenizer)
    assert output.tolist() == expected.tolist()
    assert plug_of(chat).stats.drafted_by["rest"] > 0
    with pytest.raises(StoreError, match="tokenizer"):
        hub(chat, inputs, repository, datastores=store["datastores"] * 2, tokenizer=Letters())


def test_wrong_use_is_said_clearly(repository: Path, model: Any) -> None:
    inputs = prompt(model)
    for options, message in (
        ({"drafters": ["contxt"]}, "'contxt'"),
        ({"nodes": 0}, "nodes must be"),
        ({"assistant": model}, "draft model goes to assistant_model"),
        ({"stop_strings": ["x"]}, "tokenizer"),
    ):
        with pytest.raises(OptionError, match=message):
            hub(model, inputs, repository, **SETTINGS, **options)
    with pytest.raises(ValueError, match="not used by the model"):
        hub(model, inputs, repository, **SETTINGS, noodles=3)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        model.generate(**inputs, custom_generate=str(repository), trust_remote_code=False)
    assert "generate" not in vars(model)


def test_requirements(repository: Path, model: Any) -> None:
    name, _, version = (SOURCE / "custom_generate/requirements.txt").read_text().partition(">=")
    assert name == "hf-specplug"
    assert _numbers(version) <= _numbers(hf_specplug.__version__)
    (repository / "custom_generate/requirements.txt").write_text("hf-specplug>=99.0\n")
    installed = re.escape(f"hf-specplug>=99.0 (installed: {hf_specplug.__version__})")
    with pytest.raises(ImportError, match=f"Missing requirements(.|\n)*{installed}"):
        hub(model, prompt(model), repository)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def test_a_model_that_has_the_folder_is_loaded_with_it(repository: Path, chat: Any) -> None:
    chat.save_pretrained(repository)
    expected, _ = plain(chat, {"inputs": torch.tensor([[5, 6, 7]])}, **SETTINGS)
    untrusted = AutoModelForCausalLM.from_pretrained(repository)
    assert "generate" not in vars(untrusted)
    loaded = AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True).eval()
    ids = torch.tensor([[5, 6, 7]])
    for arguments in ((ids,), (ids, loaded.generation_config)):
        assert loaded.generate(*arguments, **SETTINGS).tolist() == expected.tolist()
    assert loaded.generate(input_ids=ids, **SETTINGS).tolist() == expected.tolist()
    output, _ = hub(loaded, {"input_ids": ids}, repository, **SETTINGS)  # no endless circle
    assert output.tolist() == expected.tolist()
    assert plug_of(loaded).stats.calls == 4
    attached = attach(loaded)
    loaded.generate(ids, **SETTINGS)
    assert attached.stats.calls == 1


def test_from_the_cache_of_the_hub(repository: Path, model: Any, tmp_path: Path) -> None:
    """By its name, as it lies in the cache after a download."""
    home = tmp_path / "hub" / "models--me--specplug"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(repository, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    expected, _ = plain(model, prompt(model), **SETTINGS)
    where = {"cache_dir": str(tmp_path / "hub"), "local_files_only": True}
    output, _ = hub(model, prompt(model), Path("me/specplug"), **SETTINGS, **where)
    assert output.tolist() == expected.tolist()
    assert plug_of(model).stats.calls == 1


def test_the_card(repository: Path, chat: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Its front matter is what the Hub asks for, it names every option, and its code runs."""
    _, front, text = (repository / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["library_name"] == "transformers"
    assert card["license"] == "apache-2.0"
    assert "custom_generate" in card["tags"]
    method = chat.load_custom_generate(str(repository), trust_remote_code=True)
    options = re.findall(r"^\| `(\w+)` \(", text, re.MULTILINE)
    assert set(options) == {*method.__globals__["OPTIONS"], "assistant"}
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        for name, value in (("REPOSITORY", repository), ("MODEL", DEMO_MODEL)):
            code = re.sub(rf'(?m)^{name} = "[^"]*"', f"{name} = {str(value)!r}", code)
        exec(code.replace("256", "24"), names)
    assert "def factorial(n):" in capsys.readouterr().out
    expected, _ = plain(chat, dict(names["inputs"]), max_new_tokens=24)
    assert names["output"].tolist() == expected.tolist()
    assert plug_of(names["model"]).stats.calls == 2
