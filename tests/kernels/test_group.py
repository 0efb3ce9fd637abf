"""The n-grams of a prompt, against two tables without a limit."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hf_specplug.drafters.successor_table import SuccessorTable
from hf_specplug.kernels import group, successors
from tests.helpers import twins

WIDTH = 3
TEXT = st.lists(st.integers(-1, 2), max_size=6)
LEARNED = st.lists(st.tuples(TEXT, st.integers(0, 2), st.permutations(range(4)), st.booleans()))


def frozen(values: list[int], kind: type = np.int32) -> np.ndarray:
    array = np.array(values, kind)
    array.flags.writeable = False
    return array


@given(LEARNED, TEXT, st.integers(2**32, 2**64 - 1))
def test_prompts_n_grams_come_first(
    learned: list[tuple[list[int], int, list[int], bool]], text: list[int], prompt: int
) -> None:
    table, twin = SuccessorTable(1 << 12, WIDTH, 1.0), twins.GroupGrams(WIDTH)
    table.clear(5)
    shares = [0.5, 0.2, 0.1, 0.05]
    probs = np.array([shares], np.float32)
    for before, token, ids, of_prompt in learned:
        shown = frozen(before), frozen([token]), frozen([-1]), np.array([ids], np.int32), probs
        table.clock = successors.learn(*table.arrays, table.clock, *shown)
        twin.any.learn([*before, token], ids, probs[0].tolist())
        if of_prompt:
            table.clock = group.learn(*table.arrays, table.clock, np.uint64(prompt), *shown)
            twin.own.learn([*before, token], ids, probs[0].tolist())
    out = np.empty((WIDTH, 3), np.int32)
    arrays = table.keys, table.visits, table.ids, table.weights
    count = group.expand(
        *arrays,
        np.uint64(prompt),
        np.zeros((1, 8), np.int32),
        frozen([0]),
        frozen(text),
        np.empty(group.SCRATCH, np.uint64),
        out,
    )
    assert sorted(map(tuple, out[:count, 1:].tolist())) == sorted(twin.named(text))
