"""`install`: plugs for models that were never attached, and transformers restored afterwards."""

from __future__ import annotations

import copy
import gc
import inspect
import os
import pickle
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GenerationMixin, pipeline

from hf_specplug import SpecPlug, attach, detach, install, plug_of, uninstall
from hf_specplug.errors import OptionError, StoreError
from tests.helpers.oracle import Replay
from tests.helpers.runs import new_tokens, plain
from tests.helpers.streamers import Collected
from tests.helpers.zoo import make, prompt

ORIGINAL = GenerationMixin.generate
SETTINGS: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False}


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    uninstall()
    assert GenerationMixin.generate is ORIGINAL


@pytest.fixture
def model() -> Any:
    return copy.deepcopy(make("llama"))


def drafted(model: Any, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return model.generate(**prompt(model), **{**SETTINGS, **arguments})


def test_any_model_takes_a_plug(model: Any) -> None:
    expected, _ = plain(model, prompt(model), **SETTINGS)
    plug = SpecPlug()
    with pytest.raises(ValueError, match="assistant"):
        drafted(model, assistant=plug)
    install()
    for calls, name in enumerate(("assistant", "assistant_model", "custom_generate"), 1):
        assert drafted(model, **{name: plug}).tolist() == expected.tolist()
        assert plug.stats.calls == calls
    assert drafted(model).tolist() == expected.tolist()
    assert drafted(model, assistant=None).tolist() == expected.tolist()
    assert (plug.stats.calls, plug_of(model), vars(model).get("generate")) == (3, None, None)
    with pytest.raises(OptionError, match="draft model goes to assistant_model"):
        drafted(model, assistant=copy.deepcopy(model))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "whisper", "bloom", "t5", "mamba2"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_every_family_from_its_first_call(name: str, do_sample: bool) -> None:
    """Whisper has a `generate` of its own, and is reached through it."""
    model = copy.deepcopy(make(name))
    settings = {**SETTINGS, "do_sample": do_sample}
    expected, state = plain(model, prompt(model), **settings)
    install(default=True)
    for _ in range(2):
        output = drafted(model, do_sample=do_sample)
        assert output.tolist() == expected.tolist()
        assert torch.equal(torch.get_rng_state(), state)
    plug = plug_of(model)
    assert plug is not None
    assert plug.model is model
    if name == "mamba2":
        assert sum(plug.stats.fallbacks.values()) == 2
    else:
        assert plug.stats.calls == 2


class Captioner(torch.nn.Module):
    """A composite model: its `generate` embeds what it reads and calls that of its decoder."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def generate(self, input_ids: torch.Tensor, **settings: Any) -> Any:
        embedded = self.decoder.get_input_embeddings()(input_ids)
        return self.decoder.generate(inputs_embeds=embedded, **settings)


def test_composite_models_are_reached_through_their_decoder(model: Any) -> None:
    captioner = Captioner(model)
    expected = captioner.generate(**prompt(model), **SETTINGS)
    install(default=True)
    assert captioner.generate(**prompt(model), **SETTINGS).tolist() == expected.tolist()
    assert plug_of(model).stats.calls == 1  # type: ignore[union-attr]
    assert plug_of(captioner) is None


def test_composite_models_whose_decoder_is_tried(model: Any) -> None:
    """transformers leaves its hooks in a model that has shown hidden states: it gets a trial.

    The embeddings that the composite model passes on require a gradient.
    """
    captioner = Captioner(model)
    expected = captioner.generate(**prompt(model), **SETTINGS)
    captioner.generate(
        **prompt(model), **SETTINGS, return_dict_in_generate=True, output_hidden_states=True
    )
    install(default=True)
    assert captioner.generate(**prompt(model), **SETTINGS).tolist() == expected.tolist()
    plug = plug_of(model)
    assert plug is not None
    assert (plug.stats.calls, dict(plug.stats.fallbacks)) == (1, {})


def test_right_drafts_save_forward_passes(model: Any) -> None:
    expected, _ = plain(model, prompt(model), **SETTINGS)
    replay = Replay(new_tokens(expected, 30))
    install(default=True, drafters=replay, nodes=12)
    other = copy.deepcopy(model)
    for each in (model, other):
        assert drafted(each).tolist() == expected.tolist()
        assert plug_of(each).stats.forwards < 10  # type: ignore[union-attr]
    assert plug_of(model) is not plug_of(other)
    assert plug_of(model).drafters[0] is not plug_of(other).drafters[0]  # type: ignore[union-attr]


def test_one_method_is_replaced_and_restored(model: Any) -> None:
    before = dict(vars(GenerationMixin))
    install()
    install()
    install(default=True)
    replaced = {name for name, value in vars(GenerationMixin).items() if before[name] is not value}
    assert replaced == {"generate"}
    assert inspect.signature(GenerationMixin.generate) == inspect.signature(ORIGINAL)
    assert GenerationMixin.generate.__doc__ == ORIGINAL.__doc__
    uninstall()
    assert dict(vars(GenerationMixin)) == before
    uninstall()
    with pytest.raises(ValueError, match="assistant"):
        drafted(model, assistant=SpecPlug())


def test_with_restores_what_was_before(model: Any) -> None:
    with install(default=True):
        drafted(model)
        outer = plug_of(model)
        assert outer is not None
        with install(default=True, nodes=4):
            drafted(model)
            assert plug_of(model).nodes == 4  # type: ignore[union-attr]
            with install():  # keeps what is installed
                drafted(model)
            assert plug_of(model).stats.calls == 2  # type: ignore[union-attr]
        assert plug_of(model) is outer
        with install(default=True):  # the same options keep the plugs
            assert plug_of(model) is outer
    assert plug_of(model) is None
    assert GenerationMixin.generate is ORIGINAL
    with pytest.raises(ZeroDivisionError), install():
        raise ZeroDivisionError
    assert GenerationMixin.generate is ORIGINAL


def test_wrong_options_are_said_at_once() -> None:
    with pytest.raises(OptionError, match="default=True"):
        install(nodes=8)
    with pytest.raises(OptionError, match="contxt"):
        install(default=True, drafters=["contxt"])
    with pytest.raises(StoreError, match="nowhere"):
        install(default=True, datastores=["nowhere"])
    with pytest.raises(TypeError, match="noodles"):
        install(default=True, noodles=3)
    assert GenerationMixin.generate is ORIGINAL


def test_others_may_wrap_it_meanwhile(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = plain(model, prompt(model), **SETTINGS)
    install(default=True)
    ours, seen = GenerationMixin.generate, []

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(type(self).__name__)
        return ours(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(GenerationMixin, "generate", theirs)
        assert drafted(model).tolist() == expected.tolist()
        assert plug_of(model).stats.calls == 1  # type: ignore[union-attr]
        uninstall()
        assert GenerationMixin.generate is theirs
        assert drafted(model).tolist() == expected.tolist()  # plainly
        install(default=True)
        assert drafted(model).tolist() == expected.tolist()
        assert plug_of(model).stats.calls == 1  # type: ignore[union-attr]
        uninstall()
    assert seen == ["LlamaForCausalLM"] * 3
    GenerationMixin.generate = ORIGINAL


def test_attached_models_keep_their_plug(model: Any) -> None:
    expected, _ = plain(model, prompt(model), **SETTINGS)
    attached = attach(model)
    install(default=True)
    assert drafted(model).tolist() == expected.tolist()
    assert type(model).generate(model, **prompt(model), **SETTINGS).tolist() == expected.tolist()
    assert (attached.stats.calls, plug_of(model)) == (2, attached)
    assert drafted(model, assistant=None).tolist() == expected.tolist()
    drafted(model, num_beams=2)
    assert attached.stats.calls == 2
    detach(model)
    assert plug_of(model) is None
    drafted(model)
    assert plug_of(model) is not attached


def test_what_transformers_drafts_itself(model: Any) -> None:
    """The draft model of an assisted call is left alone, too."""
    expected, _ = plain(model, prompt(model), **SETTINGS)
    draft_model = copy.deepcopy(model)
    install(default=True)
    assert drafted(model, assistant_model=draft_model).tolist() == expected.tolist()
    assert drafted(model, prompt_lookup_num_tokens=3).tolist() == expected.tolist()
    assert plug_of(draft_model) is None
    stats = plug_of(model).stats  # type: ignore[union-attr]
    assert stats.calls == 0
    assert sum(stats.fallbacks.values()) == 2
    drafted(draft_model)  # on its own, it drafts
    assert plug_of(draft_model).stats.calls == 1  # type: ignore[union-attr]


def test_a_method_of_the_users_own(model: Any) -> None:
    def mine(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return input_ids

    install(default=True)
    assert drafted(model, custom_generate=mine).tolist() == prompt(model)["input_ids"].tolist()
    assert plug_of(model) is None


def test_streamers_processors_and_everything_returned(model: Any) -> None:
    wanted = {"return_dict_in_generate": True, "output_scores": True, "repetition_penalty": 1.1}
    expected, _ = plain(model, prompt(model), **SETTINGS, **wanted)
    install(default=True)
    streamer = Collected()
    output = drafted(model, **wanted, streamer=streamer)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert streamer.tokens == expected.sequences[0].tolist()
    assert len(output.scores) == 30


def test_plugs_live_as_long_as_their_models() -> None:
    install(default=True)
    model = copy.deepcopy(make("llama"))
    drafted(model)
    watch, plug = weakref.ref(model), weakref.ref(plug_of(model))  # type: ignore[type-var]
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    assert [plug_of(each) for each in copies] == [None, None]
    for each in copies:
        assert drafted(each).tolist() == drafted(model).tolist()
        assert plug_of(each) is not plug()
    del model, each
    gc.collect()
    assert watch() is None
    assert plug() is None


def test_first_calls_in_many_threads(model: Any) -> None:
    expected, _ = plain(model, prompt(model), **SETTINGS)
    install(default=True)
    outputs: list[Any] = []
    barrier = threading.Barrier(6)

    def work() -> None:
        barrier.wait()
        outputs.append(model.generate(**prompt(model), **SETTINGS).tolist())

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == [expected.tolist()] * 6
    assert plug_of(model).stats.calls == 6  # type: ignore[union-attr]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_forked_children_draft(model: Any) -> None:
    expected, _ = plain(model, prompt(model), **SETTINGS)
    install(default=True)
    drafted(model)
    child = os.fork()
    if not child:
        same = drafted(model).tolist() == expected.tolist()
        os._exit(0 if same and plug_of(model).stats.calls == 2 else 1)  # type: ignore[union-attr]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_pipelines(demo_model: Any, tokenizer: Any) -> None:
    model = copy.deepcopy(demo_model)
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    settings = {"max_new_tokens": 40, "do_sample": False}
    expected = pipe("def add(a, b):\n", **settings)
    install(default=True, nodes=16)
    assert pipe("def add(a, b):\n", **settings) == expected
    assert plug_of(model).stats.accept_length > 1  # type: ignore[union-attr]
