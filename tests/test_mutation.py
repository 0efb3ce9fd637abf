"""The identity tests notice: each of these mutations of the verification changes the output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hf_specplug.hf import cache as cache_module
from hf_specplug.hf.reach import Reach
from hf_specplug.hf.slot_cache import SlotCache
from hf_specplug.tree import DraftTree
from hf_specplug.verify.acceptance import Verifier
from hf_specplug.verify.eager import EagerEngine
from hf_specplug.verify.masks import SlotMasks
from hf_specplug.verify.outputs import Outputs
from tests.helpers.oracle import Replay
from tests.helpers.runs import new_tokens, plain, plugged
from tests.helpers.zoo import make, prompt


def outputs_differ(name: str, rank: int = 2, **more: Any) -> bool:
    model, inputs = make(name), prompt(make(name))
    settings: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False, **more}
    expected, _ = plain(model, inputs, **settings)
    drafter = Replay(new_tokens(expected, 40), rank=rank)
    output, _, _ = plugged(model, inputs, drafter, nodes=16, **settings)
    return output.tolist() != expected.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma2", "gpt2", "whisper"])
def test_unmutated(name: str) -> None:
    assert not outputs_differ(name)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma2", "gpt2", "whisper"])
def test_a_causal_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = DraftTree.ancestors

    def causal(self: DraftTree) -> Any:
        seen, depths = right(self)
        return np.tril(np.ones_like(seen)), depths

    monkeypatch.setattr(DraftTree, "ancestors", causal)
    assert outputs_differ(name)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma2", "gpt2", "whisper"])
def test_compaction_without_gather(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_move", lambda *arguments: None)
    assert outputs_differ(name)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "whisper"])
def test_positions_by_slot(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = EagerEngine._inputs

    def by_slot(self: EagerEngine, tokens: Any, depths: Any, branches: bool) -> Any:
        return inputs(self, tokens, np.arange(len(depths)), branches)

    monkeypatch.setattr(EagerEngine, "_inputs", by_slot)
    assert outputs_differ(name)


@pytest.mark.parametrize("name", ["mistral-window", "gemma3", "llama4"])
def test_a_mask_without_windows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reach, "first", lambda self, slots, padding: np.zeros_like(slots))
    assert outputs_differ(name, rank=0)


STATIC = {"cache_implementation": "static"}


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma2", "gpt2"])
def test_static_unmutated(name: str) -> None:
    assert not outputs_differ(name, **STATIC)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma2", "gpt2"])
def test_slots_without_compaction(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SlotCache, "keep", lambda *arguments: None)
    assert outputs_differ(name, **STATIC)


@pytest.mark.parametrize("name", ["mistral-window", "gemma3", "llama4"])
def test_slot_masks_without_windows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    init = SlotMasks.__init__

    def wide(self: SlotMasks, *arguments: Any) -> None:
        init(self, *arguments)
        self._reaches = dict.fromkeys(self._reaches, Reach())

    monkeypatch.setattr(SlotMasks, "__init__", wide)
    assert outputs_differ(name, rank=0, **STATIC)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_slot_masks_without_siblings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = SlotMasks.build

    def causal(self: SlotMasks, seen: torch.Tensor, *rest: Any) -> Any:
        return build(self, torch.ones_like(seen).tril(), *rest)

    monkeypatch.setattr(SlotMasks, "build", causal)
    assert outputs_differ(name, **STATIC)


def test_a_verifier_that_trusts_the_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = Verifier.accept

    def trusting(self: Verifier, outputs: Outputs, tree: DraftTree, *rest: Any) -> Any:
        if len(tree):
            logits = outputs.logits.clone()
            logits[0, int(tree.tokens[0])] += 1e6
            outputs = Outputs(logits)
        return accept(self, outputs, tree, *rest)

    monkeypatch.setattr(Verifier, "accept", trusting)
    assert outputs_differ("llama")


def test_an_additional_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    pick = Verifier._pick

    def twice(self: Verifier, *args: Any) -> int:
        torch.rand(1)
        return pick(self, *args)

    monkeypatch.setattr(Verifier, "_pick", twice)
    model, inputs = make("llama"), prompt(make("llama"))
    expected, state = plain(model, inputs, max_new_tokens=20, do_sample=True)
    output, after, _ = plugged(model, inputs, ["context"], max_new_tokens=20, do_sample=True)
    assert output.tolist() != expected.tolist()
    assert not torch.equal(after, state)
