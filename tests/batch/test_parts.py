"""The parts of a batch by themselves: slots, masks, noise, widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig

from hf_specplug.drafting.budget import Budget, Decision
from hf_specplug.hf.row_cache import RowCache
from hf_specplug.hf.slot_cache import SlotCache
from hf_specplug.tree import EMPTY, DraftTree
from hf_specplug.verify import lockstep
from hf_specplug.verify.lockstep import LockstepNoise, foreseen
from hf_specplug.verify.masks import SlotMasks
from hf_specplug.verify.row_masks import RowMasks
from tests.helpers.zoo import make

CPU = torch.device("cpu")


def tree(parents: list[int], probs: list[float]) -> DraftTree:
    count = len(parents)
    return DraftTree(
        np.arange(count, dtype=np.int32),
        np.array(parents, np.int32),
        np.array(probs, np.float32),
        np.ones(count, np.uint16),
    )


STEPS = st.lists(
    st.tuples(st.integers(1, 5), st.lists(st.sets(st.integers(1, 4)), min_size=3, max_size=3)),
    max_size=8,
)


@given(st.integers(1, 6), STEPS, st.sampled_from([None, [2, 0], [1]]))
def test_slots_follow_each_rows_text(
    length: int, steps: list[tuple[int, list[set[int]]]], left: list[int] | None
) -> None:
    """Against a list of values per row: written, kept in part, grown, and rows that leave."""
    source = DynamicCache(config=LlamaConfig(num_hidden_layers=2))
    values = torch.arange(1.0, 3 * length + 1).view(3, 1, length, 1)
    for layer in range(2):
        source.update(values + 1000 * layer, -values, layer)
    cache = RowCache(source, length)
    texts = [row.flatten().tolist() for row in values]
    mark = 100.0
    for number, (width, chosen) in enumerate(steps):
        if left is not None and number == len(steps) // 2 and len(texts) == 3:
            cache.select(left)
            texts = [texts[row] for row in left]
        cache.aim(width)
        new = mark + torch.arange(float(len(texts) * width)).view(len(texts), 1, width, 1)
        mark += 100
        for layer in range(2):
            keys, held = cache.update(new + 1000 * layer, -new, layer)
            assert keys.shape == held.shape == (len(texts), 1, cache.get_seq_length() + width, 1)
        kept = [[0, *sorted(i for i in own if i < width)] for own in chosen[: len(texts)]]
        for row, own in enumerate(kept):
            texts[row] += new[row, 0, own, 0].tolist()
        cache.keep(kept)
        assert cache.lengths.tolist() == [len(text) for text in texts]
        for row, text in enumerate(texts):
            for layer in range(2):
                keys = cache.layers[layer].keys[row, 0, : len(text), 0]
                assert (keys - 1000 * layer).tolist() == text
                assert cache.layers[layer].values[row, 0, : len(text), 0].neg().tolist() == text


@given(
    st.integers(1, 6),
    STEPS,
    st.lists(st.sampled_from([[2, 0], [1], [0, 1], [3, 1, 2]]), max_size=2),
    st.integers(0, 3),
)
def test_slots_at_fixed_addresses_follow_each_rows_text(
    length: int, steps: list[tuple[int, list[set[int]]]], leave: list[list[int]], spare: int
) -> None:
    """Five rows; some leave, in any order; slots grow; all come back. Padding rows are written."""
    source = DynamicCache(config=LlamaConfig(num_hidden_layers=2))
    values = torch.arange(1.0, 5 * length + 1).view(5, 1, length, 1)
    for layer in range(2):
        source.update(values + 1000 * layer, -values, layer)
    cache = SlotCache(source, 5 + spare, 60)
    cache.beside = [(torch.arange(5 + spare), 0)]
    cache.load(source, length)
    texts = [row.flatten().tolist() for row in values]
    live, mark = list(range(5)), 100.0
    for number, (width, chosen) in enumerate(steps):
        if number % 3 == 2 and leave and max(leave[0]) < len(live):
            rows = leave.pop(0)
            cache.select(rows)
            live = [live[row] for row in rows]
            assert cache.size < 2 * len(live) or cache.size == 1
        if number == 5:
            smaller, cache = cache, SlotCache(cache, cache.rows, 90)
            cache.beside = smaller.beside
            cache.continue_from(smaller)
        size = cache.size
        cache.target.slots = torch.from_numpy(cache.ends[:size, None] + np.arange(width))
        new = mark + torch.arange(float(size * width)).view(size, 1, width, 1)
        mark += 100
        for layer in range(2):
            keys, held = cache.update(new + 1000 * layer, -new, layer)
            assert keys.shape == held.shape == (size, 1, cache.capacity, 1)
        kept = [[0, *sorted(i for i in own if i < width)] for own in (chosen * 2)[: len(live)]]
        for row, place, own in zip(live, cache.places, kept, strict=True):
            assert cache.beside[0][0][place] == row  # what belongs to a row moves with it
            texts[row] += new[place, 0, own, 0].tolist()
        cache.keep(kept)
        assert cache.lengths.tolist() == [len(texts[row]) for row in live]
        for row, place in zip(live, cache.places, strict=True):
            assert cache.layers[0].keys[place, 0, : len(texts[row]), 0].tolist() == texts[row]
    cache.restore()
    assert cache.places == list(range(5))
    for row, text in enumerate(texts):
        for layer in range(2):
            keys = cache.layers[layer].keys[row, 0, : len(text), 0]
            assert (keys - 1000 * layer).tolist() == text
            assert cache.layers[layer].values[row, 0, : len(text), 0].neg().tolist() == text


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3", "llama4"])
@pytest.mark.parametrize("additive", [False, True])
@given(lengths=st.lists(st.integers(20, 40), min_size=1, max_size=3), data=st.data())
def test_masks_computed_on_the_device(
    name: str, additive: bool, lengths: list[int], data: st.DataObject
) -> None:
    """The masks of `SlotMasks` are those of `RowMasks`, and hide the slots behind them."""
    config, rows = make(name).config, len(lengths)
    shown = torch.ones((rows, 20), dtype=torch.int64)
    for row in range(rows):
        shown[row, : data.draw(st.integers(0, 19))] = 0
    drawn = st.lists(st.integers(0, 100), min_size=4, max_size=4)
    seen, depths = np.zeros((rows, 5, 5), np.bool_), np.zeros((rows, 5), np.int64)
    for row in range(rows):
        parents = [draw % (place + 1) - 1 for place, draw in enumerate(data.draw(drawn))]
        seen[row], depths[row] = tree(parents, [1.0] * 4).ancestors()
    on_host = RowMasks(config, torch.float32, additive, CPU, shown, rows, longest=1 << 30)
    on_device = SlotMasks(config, torch.float32, additive, CPU, rows + 1, capacity=64)
    on_device.pad(shown)
    one = on_host.build(seen, depths, np.array(lengths))
    slots = torch.from_numpy(np.array(lengths)[:, None] + np.arange(5))
    other = on_device.build(torch.from_numpy(seen), torch.from_numpy(depths), slots)
    ones, others = ({"": each} if isinstance(each, torch.Tensor) else each for each in (one, other))
    assert ones.keys() == others.keys()
    for kind, mask in ones.items():
        rest = others[kind][..., mask.shape[-1] :]
        assert torch.equal(others[kind][..., : mask.shape[-1]], mask)
        assert (rest == on_device._lowest).all() if additive else not rest.any()


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3", "llama4"])
@pytest.mark.parametrize("additive", [False, True])
def test_masks_are_those_of_each_path_as_text(name: str, additive: bool) -> None:
    """By definition: a token attends to the text and its ancestors within its layer's reach."""
    config = make(name).config
    shown = torch.ones((3, 20), dtype=torch.int64)
    shown[0, :5], shown[1, :19] = 0, 0
    masks = RowMasks(config, torch.float32, additive, CPU, shown, 3, longest=64)
    lengths = np.array([31, 20, 40])
    parents = [[-1, 0, 1, 1, 0], [-1, 0, 1, 2, 3], [-1, 0, 0, 0, 0]]
    seen, depths = np.zeros((3, 5, 5), np.bool_), np.zeros((3, 5), np.int64)
    for row, own in enumerate(parents):
        for node in range(5):
            up, path = node, [node]
            while own[up] >= 0:
                up = own[up]
                path.append(up)
            seen[row, node, path], depths[row, node] = True, len(path) - 1
    built = masks.build(seen, depths, lengths)
    kinds = built if isinstance(built, dict) else {"": built}
    assert set(kinds) == set(config.layer_types if isinstance(built, dict) else [""])
    for kind, mask in kinds.items():
        assert mask.shape == (3, 1, 5, 45)
        visible = mask if not additive else mask == 0
        for row, length in enumerate(lengths.tolist()):
            padding = int(shown[row].argmax())
            for node in range(5):
                slots = [*range(padding, length), *range(length, length + 5)]
                for slot in range(45):
                    expected = slot in slots and (slot < length or seen[row, node, slot - length])
                    place = length + depths[row, node]
                    at = slot if slot < length else length + depths[row, max(0, slot - length) % 5]
                    if "sliding" in kind or name == "mistral-window":
                        expected &= place - at < 16
                    if "chunked" in kind:
                        expected &= (place - padding) // 16 == (at - padding) // 16
                    assert bool(visible[row, 0, node, slot]) == bool(expected)


@given(st.lists(st.integers(0, 2), max_size=40), st.sampled_from([0, 100, 300, 1 << 20]))
def test_rows_take_the_noise_of_their_steps_in_any_order(order: list[int], held: int) -> None:
    """Whichever row advances, and however little is kept: multinomial's tokens and final state."""
    generator = torch.Generator().manual_seed(1)
    probs = torch.randn((41, 3, 9), generator=generator).softmax(-1)
    torch.manual_seed(7)
    expected, states = [], [torch.get_rng_state()]
    for each in probs:
        expected.append(torch.multinomial(each, 1).flatten().tolist())
        states.append(torch.get_rng_state())
    torch.manual_seed(7)
    noise, steps = LockstepNoise(CPU, 3, held), [0, 0, 0]
    for row in order:
        step = steps[row]
        assert noise.pick([row], [step], probs[step, row : row + 1]) == [expected[step][row]]
        steps[row] += 1
        rows, first = noise.ahead(row)
        for place in range(len(rows)):
            later = min(steps[row] + place, 40)
            if later == steps[row] + place:
                foreseen_noise = -np.log1p(-rows[(first + place) % len(rows)])
                favoured = probs[later, row].double().numpy() / foreseen_noise
                assert favoured[expected[later][row]] > 0.999 * favoured.max()
        assert torch.equal(torch.get_rng_state(), states[max(steps)])
    for row in range(3):
        noise.leave(row)


def test_probabilities_that_are_not_finite_raise_as_in_plain_sampling() -> None:
    noise = LockstepNoise(CPU, 2)
    with pytest.raises(RuntimeError, match="probability tensor"):
        noise.pick([0], [0], torch.tensor([[float("nan"), 0.5]]))


def test_a_device_whose_numbers_differ_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert foreseen(CPU, 50)
    multinomial = torch.multinomial
    monkeypatch.setattr(
        torch, "multinomial", lambda probs, n, **own: multinomial(probs.flip(-1), n, **own)
    )
    assert not foreseen(CPU, 51)
    monkeypatch.setattr(lockstep, "generator_state", lambda device: 1 / 0)
    assert not foreseen(CPU, 52)


def timed_budget(rows: int) -> Budget:
    """A budget that knows: a forward pass takes 10 ms, and 1 ms more per token of a row."""
    budget = Budget("auto", 1)
    decision = Decision(DraftTree.forest([EMPTY] * rows), promise=None)
    for _ in range(9):
        for width in (1, 6, 8, 12, 16, 24):
            budget.observe(decision, 0, 100, 0.01 + 0.001 * (width - 1), width)
    return budget


def test_one_width_for_all_rows_by_their_mean() -> None:
    sure = tree(list(range(-1, 10)), [0.98] * 11)
    poor = tree(list(range(-1, 10)), [0.02] * 11)
    alone, _ = timed_budget(1).fit_rows([sure], 100)
    assert len(alone[0]) == 11
    few, decision = timed_budget(4).fit_rows([sure, poor, poor, poor], 100)
    assert len(few[0]) <= 11
    assert decision.promise is not None
    none, _ = timed_budget(4).fit_rows([poor] * 4, 100)
    assert [len(each) for each in none] == [0, 0, 0, 0]
    mixed, decision = timed_budget(3).fit_rows([sure, EMPTY, sure], 100)
    assert [len(each) for each in mixed][1] == 0
    assert len(decision.tree) == sum(len(each) for each in mixed)


def test_a_batch_of_one_is_sized_like_a_single_row() -> None:
    drafted = tree([-1, 0, 1, -1, 3, 0, 2, 6], [0.9, 0.8, 0.7, 0.3, 0.9, 0.2, 0.9, 0.9])
    one, several = timed_budget(1), timed_budget(1)
    for _ in range(70):  # probes included
        single, (cut, decision) = one.fit(drafted, 100), several.fit_rows([drafted], 100)
        assert single.tree.tokens.tolist() == cut[0].tokens.tolist()
        assert (single.promise, single.saved) == (decision.promise, decision.saved)
        one.observe(single, 2, 100, 0.012)
        several.observe(decision, 2, 100, 0.012)


def test_a_forest_keeps_each_trees_paths() -> None:
    trees = [tree([-1, 0, 0], [0.5, 0.5, 0.25]), EMPTY, tree([-1, -1, 1], [0.5, 0.125, 0.5])]
    forest = DraftTree.forest(trees)
    assert forest.parents.tolist() == [-1, 0, 0, -1, -1, 4]
    expected = [prob for each in trees for prob in each.path_probs().tolist()]
    assert forest.path_probs().tolist() == expected
