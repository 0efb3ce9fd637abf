"""STAND draws its drafts at random: rejection sampling then keeps the distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.stopping_criteria import MaxLengthCriteria

from hf_specplug import SpecPlug
from hf_specplug.drafters.contract import TOP_K, Context, Drafter, Step, TopK
from hf_specplug.drafters.stand import StandDrafter
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.published import PUBLISHED
from hf_specplug.published.stand import GumbelNoise, Stand
from hf_specplug.published.static_tree import Shape, wide_tree
from hf_specplug.verify.outputs import Outputs
from hf_specplug.verify.rejection import RejectionVerifier
from tests.helpers.runs import plain
from tests.helpers.zoo import make, prompt
from tests.verify.test_sampling import improbable, run

SIZE = 4


def fail(_: Drafter, error: Exception) -> None:
    raise error


class Small(Stand):
    """STAND in a tree of eight nodes."""

    @classmethod
    def shape(cls) -> Shape:
        return wide_tree(8, 3)


def taught(probs: list[list[float]]) -> StandDrafter:
    """A drafter that knows, after each token, this distribution over four tokens."""
    drafter = StandDrafter(1 << 8)
    drafter.begin(Context([0], SIZE))
    for first in range(SIZE):
        for second, row in enumerate(probs):
            order = np.argsort([-prob for prob in row], kind="stable")[:SIZE]
            ids = np.full((1, TOP_K), -1, np.int32)
            top = np.zeros((1, TOP_K), np.float32)
            ids[0, : len(order)], top[0, : len(order)] = order, np.array(row)[order]
            drafter._context = Context([first], SIZE)
            seen = np.array([second], np.int32)
            drafter.observe(Step.of_text(seen, 1, [], [], TopK(ids, top)))
    return drafter


def next_two(
    probs: list[list[float]],
    runs: int,
    suppressed: tuple[int, ...] = (),
    generator_of: Callable[[RejectionVerifier], Any] = lambda verifier: verifier.generator,
) -> tuple[Any, Any, int]:
    """(how often each pair of tokens was emitted, its true probability, drafted ones accepted)"""
    logits = torch.from_numpy(np.random.default_rng(5).normal(0, 1.5, (SIZE, SIZE))).float()
    true = torch.softmax(logits, -1).double().numpy()
    counts, accepted = np.zeros((SIZE, SIZE)), 0
    drafter = taught(probs)
    search = Small([drafter], Mixer(["stand"]), SIZE, fail)
    config = GenerationConfig(do_sample=True)
    start = torch.zeros((1, 2), dtype=torch.int64)
    for seed in range(runs):
        torch.manual_seed(seed)
        criteria = StoppingCriteriaList([MaxLengthCriteria(4)])
        verifier = RejectionVerifier(start, LogitsProcessorList(), criteria, config, None)
        text = Context([0, 0], SIZE, suppressed=suppressed)
        search.begin(text)
        emitted: list[int] = [0]
        while not verifier.finished:
            tree = search.grow(emitted[-1], 8, 2, generator=generator_of(verifier))
            assert not np.isin(tree.tokens, suppressed).any()
            rows = [emitted[-1], *tree.tokens.tolist()]
            visited, new = verifier.accept(Outputs(logits[rows]), tree, search.proposal)
            accepted += len(visited) - 1
            text.append(new)
            emitted += new
        counts[emitted[1], emitted[2]] += 1
    return counts.ravel(), (true[0][:, None] * true).ravel(), accepted


FLAT = [[0.25] * 4] * 4
WRONG = [
    [0.9, 0.05, 0.03, 0.02],
    [0.02, 0.03, 0.05, 0.9],
    [0.4, 0.0, 0.3, 0.0],
    [0.1, 0.2, 0.3, 0.1],
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("probs", "suppressed"), [(FLAT, ()), (WRONG, ()), (WRONG, (2,))], ids=["flat", "wrong", "less"]
)
def test_drafts_keep_the_distribution(probs: Any, suppressed: tuple[int, ...]) -> None:
    counts, expected, accepted = next_two(probs, 5000, suppressed)
    assert not improbable(counts, expected)
    assert accepted > 1000


@pytest.mark.slow
def test_ranked_drafts_would_not() -> None:
    """The control: the likeliest tokens, accepted as if they were drawn."""
    counts, expected, _ = next_two(WRONG, 5000, generator_of=lambda _: None)
    assert improbable(counts, expected)


@pytest.mark.slow
def test_the_same_noise_in_every_request_would_not() -> None:
    """The control: the drafts must be as random as the acceptance, from one request to the next."""
    made = {}

    def same(verifier: RejectionVerifier) -> Any:
        if made.get("of") is not verifier:
            made.update(of=verifier, generator=np.random.default_rng(0))
        return made["generator"]

    counts, expected, _ = next_two(WRONG, 5000, generator_of=same)
    assert improbable(counts, expected)


def test_what_is_proposed_is_what_was_drawn() -> None:
    drafter = taught(WRONG)
    search = Small([drafter], Mixer(["stand"]), SIZE, fail)
    search.begin(Context([0, 0], SIZE))
    tree = search.grow(0, 8, 3, generator=np.random.default_rng(1))
    for node in range(len(tree) + 1):
        tokens, probs, children = search.proposal(node)
        drawn = tree.tokens[np.array(children, np.intp) - 1].tolist()
        assert tokens[: len(children)].tolist() == drawn
        assert (tree.parents[np.array(children, np.intp) - 1] == node - 1).all()
        if children:
            last = int(tree.tokens[node - 1]) if node else 0
            for token, prob in zip(tokens.tolist(), probs.tolist(), strict=True):
                assert prob == np.float32(WRONG[last][token])


def test_first_draws_are_as_frequent_as_they_are_likely() -> None:
    search = Small([taught(WRONG)], Mixer(["stand"]), SIZE, fail)
    search.begin(Context([0, 3], SIZE))
    generator = np.random.default_rng(0)
    firsts = np.zeros(SIZE)
    for _ in range(4000):
        tree = search.grow(3, 8, 1, generator=generator)
        assert len(set(tree.tokens.tolist())) == len(tree) == 3  # without replacement
        firsts[tree.tokens[0]] += 1
    assert not improbable(firsts, np.array(WRONG[3]) / sum(WRONG[3]))


def test_noise_is_drawn_ahead_and_used_once() -> None:
    noise, whole = (GumbelNoise(np.random.default_rng(3)) for _ in range(2))
    taken = [noise.take(count) for count in (1, 10, 0, 4085, 10, 5000)]
    assert np.concatenate(taken[:4]).tolist() == whole.take(4096).tolist()
    numbers = np.concatenate(taken).tolist()
    assert len(set(numbers)) == len(numbers) == 9106
    assert abs(np.mean(numbers) - np.euler_gamma) < 0.1


def test_rejection_is_for_drafts_that_are_drawn() -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    settings: dict[str, Any] = {"max_new_tokens": 40, "temperature": 0.5}

    def sampled(seed: int) -> tuple[Any, SpecPlug]:
        plug = SpecPlug(nodes=16, published="stand", verification="rejection")
        model.generate(**inputs, max_new_tokens=40, do_sample=False, custom_generate=plug)  # learn
        return run(model, inputs, plug, seed, **settings), plug

    (one, plug), (two, _), (three, _) = sampled(0), sampled(0), sampled(1)
    assert one.tolist() == two.tolist() != three.tolist()
    assert plug.stats.accepted
    assert not plug.stats.dropped
    assert [name for name, search in PUBLISHED.items() if search.stochastic] == ["stand"]


@pytest.mark.parametrize("verification", ["seeded", "rejection"])
def test_greedy_calls_draw_no_noise(verification: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GumbelNoise, "take", None)
    model, inputs = make("llama"), prompt(make("llama"))
    plug = SpecPlug(nodes=16, published="stand", verification=verification)
    settings = {"max_new_tokens": 40, "do_sample": False}
    expected, state = plain(model, inputs, **settings)
    for _ in range(2):  # the second time it has learned
        output = model.generate(**inputs, **settings, custom_generate=plug)
        assert output.tolist() == expected.tolist()
        assert torch.equal(torch.get_rng_state(), state)
    assert plug.stats.drafted
