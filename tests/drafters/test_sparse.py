"""The drafter sparse: what followed some of the last three tokens, against a plain-Python twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_specplug.drafters.contract import TOP_K, Context, Frontier, Step, TopK
from hf_specplug.drafters.sparse import DECAY, PROMPT, SparseDrafter
from hf_specplug.errors import StateError
from hf_specplug.kernels import sparse as kernels
from hf_specplug.kernels import successors
from tests.helpers import context_twins

VOCAB = 30


def frontier(path: list[int]) -> Frontier:
    """The root and the nodes of a path, all to be expanded."""
    pool = np.zeros((len(path) + 1, 7), np.int32)
    for node, token in enumerate(path, start=1):
        pool[node, :3] = token, node - 1, node
    return Frontier(np.arange(len(path) + 1, dtype=np.int32), pool, 0)


def fed(drafter: SparseDrafter, context: Context, step: list[int], top: TopK | None) -> None:
    """One step of a request: these tokens are emitted, with a row of `top` for each."""
    context.append(step)
    before = len(context) - len(step) - 1
    root = np.array([0, *step[:-1]], np.int32)
    drafter.observe(Step.of_text(root, before, range(len(step)), step, top))


TOKENS = st.integers(-1, 4)


@given(
    st.lists(TOKENS, max_size=12),
    st.lists(st.lists(TOKENS, min_size=1, max_size=3), max_size=6),
    st.lists(st.integers(0, 4), max_size=5),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_pools_what_the_contexts_say(
    prompt: list[int], steps: list[list[int]], path: list[int], seed: int, shown: bool
) -> None:
    rng = np.random.default_rng(seed)
    drafter, context, twin = SparseDrafter(), Context(prompt, VOCAB), context_twins.Sparse(DECAY)
    drafter.begin(context)
    for place, token in enumerate(prompt):
        twin.learn(prompt[:place], token)
    for step in steps:
        ids = np.stack([rng.permutation(VOCAB)[:TOP_K] for _ in step]).astype(np.int32)
        probs = np.sort(rng.dirichlet(np.full(TOP_K, 0.3), len(step)))[:, ::-1].astype(np.float32)
        for place, token in enumerate(step):
            likely = list(zip(ids[place].tolist(), probs[place].tolist(), strict=True))
            text = [*context.tokens.tolist(), *step[:place]]
            twin.learn(text, token, likely if shown else ())
        fed(drafter, context, step, TopK(ids, probs) if shown else None)
    rows = drafter.expand(frontier(path)).tolist()
    for node in range(len(path) + 1):
        named = [(token, bucket) for of, token, bucket in rows if of == node]
        text = [*context.tokens.tolist(), *path[:node]]
        chances = twin.chances(text)
        limit = (16, 6)[node] if node < 2 else 0
        assert len(named) == min(limit, len(chances))
        likeliest = sorted(chances.values(), reverse=True)[: len(named)]
        assert [chances[token] for token, _ in named] == pytest.approx(likeliest, rel=1e-4)
        for token, bucket in named:
            nearest = [context_twins.score(chances[token] * (1 + e)) for e in (-1e-5, 0, 1e-5)]
            assert bucket - 40 * node in nearest


@given(
    st.lists(
        st.tuples(st.integers(-1, 6), st.sampled_from([0.0, 0.25, 0.5, 1.0, float("nan")])),
        max_size=20,
    )
)
def test_added_weights(given: list[tuple[int, float]]) -> None:
    ids, weights = np.full((1, 3), -1, np.int32), np.zeros((1, 3), np.float32)
    row: list[tuple[int, float]] = []
    for token, weight in given:
        successors.add(ids, weights, 0, token, np.float32(weight))
        row = context_twins.added(row, token, weight, 3)
        found = zip(ids[0].tolist(), weights[0].tolist(), strict=True)
        assert [pair for pair in found if pair[0] >= 0] == row


def test_a_token_that_was_left_out_is_remembered() -> None:
    """`b` followed `a x`; after `a y` only the context of two places back knows it."""
    a, x, y, b = 1, 2, 3, 4
    drafter, context = SparseDrafter(), Context([a, x, b, 9, 9, 9, a, y], VOCAB)
    drafter.begin(context)
    rows = drafter.expand(frontier([]))
    assert rows[:, 1].tolist() == [b]


def test_reads_as_much_of_a_prompt_as_other_drafters() -> None:
    """What it did not read, it would contradict where others copy it."""
    assert PROMPT >= 4096
    text = np.arange(PROMPT, dtype=np.int32) % (VOCAB - 1)
    drafter = SparseDrafter()
    drafter.begin(Context(text, VOCAB))
    missing = 5 + 4 + 2  # contexts of the first three tokens
    assert drafter.table.visits.sum() == len(kernels.CONTEXTS) * PROMPT - missing


def test_states_that_do_not_fit() -> None:
    drafter = SparseDrafter()
    drafter.begin(Context([1, 2, 3, 1, 2], VOCAB))
    state = drafter.state_dict()
    with pytest.raises(StateError, match="weights must lie"):
        drafter.load_state_dict({**state, "weights": state["weights"] + 50})
    assert len(drafter.expand(frontier([])))
