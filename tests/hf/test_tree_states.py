"""Trees through real model files with recurrent layers, against walking every path."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hf_specplug.hf import delta_rule, seams, selective_scan, tree_windows
from hf_specplug.hf.tree_states import TreeStates, recurrent_layers
from tests.helpers import tree_models, walks

NOISE = 1e-3
"""In standard deviations of the logits: what the model files' own two rules differ by, at most."""


KINDS = ["qwen3_5", "kimi_linear", "bamba"]  # decays per head and per channel, and no rule


class Walk:
    """A prompt, a tree after it, and what plain steps along each path give."""

    def __init__(self, name: str, count: int, near: int, length: int = 20) -> None:
        self.model = tree_models.make(name)
        self.parents = walks.random_parents(count, near, near)
        self.paths, self.seen = walks.paths(self.parents), walks.seen(self.parents)
        self.tokens = tree_models.text(count, near)[0]
        self.length = length
        with torch.no_grad():
            self.before = self.model(tree_models.text(length), use_cache=True).past_key_values
            self.logits, self.caches = self._steps()

    def _steps(self) -> tuple[torch.Tensor, list[Any]]:
        logits, caches = [], []
        for node, path in enumerate(self.paths):
            parent = self.parents[node]
            cache = copy.deepcopy(self.before if parent < 0 else caches[parent])
            output = self.model(
                self.tokens[node].view(1, 1),
                past_key_values=cache,
                use_cache=True,
                position_ids=torch.tensor([[self.length + len(path) - 1]]),
            )
            logits.append(output.logits[0, -1])
            caches.append(cache)
        return torch.stack(logits), caches

    def tree(self, seen: NDArray[np.bool_] | None = None) -> tuple[torch.Tensor, TreeStates, Any]:
        """(logits of one pass over the tree, the states that wait, the cache)"""
        cache = copy.deepcopy(self.before)
        states = TreeStates(self.model, cache)
        past = np.ones((len(self.seen), self.length), bool)
        mask = torch.from_numpy(np.concatenate([past, self.seen], axis=1))
        depths = torch.tensor([len(path) - 1 for path in self.paths])
        with torch.no_grad(), states.at(self.seen if seen is None else seen):
            output = self.model(
                self.tokens[None],
                past_key_values=cache,
                use_cache=True,
                position_ids=self.length + depths[None],
                attention_mask=mask[None, None],
            )
        return output.logits[0], states, cache

    def error(self, found: torch.Tensor) -> float:
        return float((found - self.logits).abs().max() / self.logits.std())


def state_error(found: Any, expected: Any) -> float:
    """The largest error of recurrent states and convolution windows, beside their size."""
    worst = []
    for ours, theirs in zip(recurrent_layers(found), recurrent_layers(expected), strict=True):
        for name in ("recurrent_states", "conv_states"):
            a, b = getattr(ours, name)[0], getattr(theirs, name)[0]
            worst.append((a - b).abs().max() / b.abs().max())
    return float(max(worst))


@pytest.mark.parametrize("name", tree_models.FAMILIES)
@pytest.mark.parametrize(("count", "near"), [(64, 3), (33, 64), (9, 1)])
def test_a_tree_is_all_its_paths(name: str, count: int, near: int) -> None:
    walk = Walk(name, count, near)
    logits, _, _ = walk.tree()
    assert walk.error(logits) < NOISE
    for node in {0, 1, count // 2, count - 1}:
        _, states, cache = walk.tree()
        assert states.pending
        states.keep(walk.paths[node])
        assert not states.pending
        assert state_error(cache, walk.caches[node]) < 1e-4


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65])
def test_prompts_of_any_length(length: int) -> None:
    walk = Walk("qwen3_5", 12, 3, length)
    logits, states, cache = walk.tree()
    assert walk.error(logits) < NOISE
    states.keep(walk.paths[-1])
    assert state_error(cache, walk.caches[-1]) < 1e-4


@pytest.mark.parametrize("name", KINDS)
def test_siblings_that_see_each_other_are_noticed(name: str) -> None:
    walk = Walk(name, 20, 3)
    logits, _, _ = walk.tree(np.tri(20, dtype=bool))
    assert walk.error(logits) > 30 * NOISE


@pytest.mark.parametrize("name", KINDS)
def test_convolutions_by_slot_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(name, 20, 3)
    real = tree_windows.windows
    monkeypatch.setattr(
        tree_windows, "windows", lambda seen, *sizes: real(np.tri(len(seen), dtype=bool), *sizes)
    )
    logits, _, _ = walk.tree()
    assert walk.error(logits) > 30 * NOISE


@pytest.mark.parametrize("name", KINDS)
def test_the_state_of_another_path_is_noticed(name: str) -> None:
    walk = Walk(name, 20, 3)
    _, states, cache = walk.tree()
    states.keep(walk.paths[-1])
    other = next(path[-1] for path in walk.paths if len(path) == len(walk.paths[-1]) - 1)
    assert state_error(cache, walk.caches[other]) > 1e-2


def _functions(name: str) -> dict[str, Any]:
    module = __import__(type(tree_models.make(name)).__module__, fromlist=["x"])
    return {key: value for key, value in vars(module).items() if callable(value)}


@pytest.mark.parametrize("name", tree_models.FAMILIES)
def test_the_functions_are_found_and_left_as_they_were(name: str) -> None:
    before = _functions(name)
    walk = Walk(name, 5, 2)
    # a convolution, and the rule for many and for single tokens or a scan for many
    assert len(seams.switches(walk.model)) == (3 if name in tree_models.DELTAS else 2)
    walk.tree()
    assert _functions(name) == before


class Stop(Exception):
    pass


@pytest.mark.parametrize("layer", range(4))
def test_a_pass_that_raises_leaves_everything_as_it_was(layer: int) -> None:
    walk = Walk("qwen3_5", 6, 2)
    before, cache = _functions("qwen3_5"), copy.deepcopy(walk.before)
    states = TreeStates(walk.model, cache)

    def stop(*_: Any) -> None:
        raise Stop

    hook = walk.model.model.layers[layer].register_forward_hook(stop)
    try:
        with torch.no_grad(), pytest.raises(Stop), states.at(walk.seen):
            walk.model(walk.tokens[None], past_key_values=cache, use_cache=True)
    finally:
        hook.remove()
    assert _functions("qwen3_5") == before
    assert not states.pending
    assert state_error(cache, walk.before) == 0


@pytest.mark.parametrize("name", KINDS)
def test_a_rule_that_raises_leaves_the_states_as_they_were(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = Walk(name, 6, 2)
    module, key = (selective_scan, "scan") if name == "bamba" else (delta_rule, "solve")
    real, left = getattr(module, key), [len(recurrent_layers(walk.before)) - 1]

    def last_raises(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return real(*args)

    monkeypatch.setattr(module, key, last_raises)
    cache = copy.deepcopy(walk.before)
    with torch.no_grad(), pytest.raises(Stop), TreeStates(walk.model, cache).at(walk.seen):
        walk.model(walk.tokens[None], past_key_values=cache, use_cache=True)
    assert state_error(cache, walk.before) == 0


def test_a_layer_that_computes_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk("qwen3_5", 6, 2)
    layer = walk.model.model.layers[0].linear_attn
    monkeypatch.setattr(layer, "forward", lambda hidden_states, **_: hidden_states)
    with pytest.raises(RuntimeError, match="2 of 3 recurrent layers"):
        walk.tree()


def test_a_state_that_is_not_the_caches_is_noticed() -> None:
    walk = Walk("qwen3_5", 6, 2)
    states = TreeStates(walk.model, copy.deepcopy(walk.before))
    other = copy.deepcopy(walk.before)
    with pytest.raises(RuntimeError, match="not the one in the cache"), states.at(walk.seen):
        walk.model(walk.tokens[None], past_key_values=other, use_cache=True)


@pytest.mark.parametrize("name", ["llama", "mamba", "lfm2", "minimax"])
def test_other_models_have_no_seam(name: str) -> None:
    from tests.sweep.recipe import build

    assert seams.switches(build("causal", name)) == []


def test_a_rule_that_is_not_this_one_has_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tree_models.make("olmo_hybrid")
    scope = vars(__import__(type(model).__module__, fromlist=["x"]))
    real = scope["torch_chunk_gated_delta_rule"]

    def other(query, key, value, g, beta, initial_state=None, output_final_state=False, **rest):  # type: ignore[no-untyped-def]
        return real(query, key, value, g, beta * 0.9, 64, initial_state, output_final_state, **rest)

    monkeypatch.setitem(scope, "torch_chunk_gated_delta_rule", other)
    seams._switches.cache_clear()
    try:
        assert seams.switches(model) == []
    finally:
        monkeypatch.undo()
        seams._switches.cache_clear()
    assert len(seams.switches(model)) == 3


def test_other_threads_compute_plainly() -> None:
    walk = Walk("qwen3_5", 12, 3)
    expected, _, _ = walk.tree()
    ids = tree_models.text(30, 5)
    with torch.no_grad():
        plain = walk.model(ids, use_cache=True).logits
    wrong: list[str] = []
    done = threading.Event()

    def plainly() -> None:
        while not done.is_set():
            with torch.no_grad():
                if not torch.equal(walk.model(ids, use_cache=True).logits, plain):
                    wrong.append("plain")

    def trees() -> None:
        for _ in range(30):
            logits, states, cache = walk.tree()
            states.keep(walk.paths[-1])
            if not torch.equal(logits, expected):
                wrong.append("tree")
            if state_error(cache, walk.caches[-1]) > 1e-4:
                wrong.append("state")

    before = _functions("qwen3_5")
    plains, treed = threading.Thread(target=plainly), [threading.Thread(target=trees) for _ in "ab"]
    for thread in (plains, *treed):
        thread.start()
    for thread in treed:
        thread.join()
    done.set()
    plains.join()
    assert not wrong
    assert _functions("qwen3_5") == before
