"""Sampling: known noise changes only the speed; rejection sampling keeps the distribution."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.stopping_criteria import MaxLengthCriteria

from hf_specplug import SpecPlug
from hf_specplug.drafters.contract import NO_NOISE, Context, Drafter, Frontier, Int32
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.errors import OptionError
from hf_specplug.tree import EMPTY
from hf_specplug.verify import noise
from hf_specplug.verify.acceptance import Verifier
from hf_specplug.verify.outputs import Outputs
from hf_specplug.verify.rejection import RejectionVerifier, pick
from tests.helpers.runs import plain
from tests.helpers.zoo import make, prompt

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    noise.known.cache_clear()
    yield
    noise.known.cache_clear()


class Everything(Drafter):
    """Proposes all tokens with the same prior: only the noise tells which one will be picked."""

    name: ClassVar[str] = "everything"

    def __init__(self) -> None:
        self.priors = np.array([0.01], np.float32)

    def expand(self, frontier: Frontier) -> Int32:
        rows = [(node, token, 0) for node in frontier.nodes.tolist() for token in range(64)]
        return np.array(rows, np.int32)


@pytest.mark.parametrize("width", [5, 96, 16_000, 151_936])
def test_the_next_picks_are_foreseen(width: int) -> None:
    assert noise.known(CPU, width)
    probs = torch.softmax(torch.randn(1, width, generator=torch.Generator().manual_seed(0)), -1)
    ahead = noise.NoiseLookahead(CPU, width)
    torch.manual_seed(7)
    for round_number in range(12):
        rows, first = ahead.ahead()
        state = torch.get_rng_state()
        for place in range(3):
            e = -torch.log1p(-torch.from_numpy(rows[(first + place) % len(rows)]))
            assert int(torch.multinomial(probs, 1)) == int((probs[0] / e.float()).argmax())
        torch.set_rng_state(state)
        for _ in range(1 + round_number % 2):
            torch.multinomial(probs, 1)
        if round_number == 6:  # other code uses the generator, too
            torch.rand(1)


def run(model: Any, inputs: Any, plug: SpecPlug | None, seed: int, **settings: Any) -> Any:
    torch.manual_seed(seed)
    return model.generate(**inputs, do_sample=True, custom_generate=plug, **settings)


def test_noise_says_which_of_many_likely_tokens_comes() -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    settings = {"max_new_tokens": 100, "temperature": 3.0, "top_k": 0}
    accepted = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("peeking", "blind"):
            plug = SpecPlug([Everything()], nodes=4)
            for seed in range(4):
                output = run(model, inputs, plug, seed, **settings)
                expected, _ = plain(model, inputs, seed, do_sample=True, **settings)
                assert output.tolist() == expected.tolist()
            accepted[name] = plug.stats.accepted
            patch.setattr(Verifier, "noise", lambda self: NO_NOISE)
    assert accepted["peeking"] > 5 * accepted["blind"]


def test_greedy_calls_look_at_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "draw", None)
    model, inputs = make("llama"), prompt(make("llama"))
    model.generate(**inputs, max_new_tokens=20, do_sample=False, custom_generate=SpecPlug(nodes=4))


@pytest.mark.parametrize("change", ["other noise", "more of it", "no generator"])
def test_where_sampling_works_otherwise_drafts_are_blind(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.multinomial

    def other(probs: torch.Tensor, *args: Any, generator: Any = None, **named: Any) -> torch.Tensor:
        if change == "no generator" and generator is not None:
            raise RuntimeError("no such generator")
        if change == "more of it":
            torch.rand(1, generator=generator)
        if change == "other noise":
            return real(probs.flip(-1), 1, generator=generator).neg() + probs.shape[-1] - 1
        return real(probs, 1, generator=generator)

    monkeypatch.setattr(torch, "multinomial", other)
    assert not noise.known(CPU, 96)
    model, inputs = make("llama"), prompt(make("llama"))
    settings = {"max_new_tokens": 40, "top_k": 0}
    expected, state = plain(model, inputs, 3, do_sample=True, **settings)
    plug = SpecPlug([Everything()], nodes=4)
    monkeypatch.setattr(noise.NoiseLookahead, "ahead", None)
    assert run(model, inputs, plug, 3, **settings).tolist() == expected.tolist()
    assert torch.equal(torch.get_rng_state(), state)


# rejection sampling: chi-square tests of the distribution


def improbable(counts: np.ndarray, expected: np.ndarray) -> bool:
    """Whether the chi-square test gives the counts a p-value below 1e-4."""
    total = counts.sum()
    assert not counts[expected == 0].any()
    wanted = expected[expected > 0] * total
    statistic = ((counts[expected > 0] - wanted) ** 2 / wanted).sum()
    freedom = torch.tensor((len(wanted) - 1) / 2, dtype=torch.float64)
    p_value = torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64))
    return bool(p_value < 1e-4)


TARGET = np.array([0.5, 0.25, 0.15, 0.07, 0.03, 0.0])
PROPOSALS = {
    "uniform": np.full(6, 1 / 6),
    "peaked on a wrong token": np.array([0.01, 0.01, 0.01, 0.01, 0.95, 0.01]),
    "equal": TARGET + 1e-9,
    "disjoint": np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0]),
    "partly disjoint": np.array([0.0, 0.0, 0.0, 0.4, 0.3, 0.3]),
    "opposite": TARGET[::-1] + 0.01,
}


def drawn(proposal: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    keys = rng.gumbel(size=len(proposal)) + np.log(proposal + 1e-300)
    possible = int((proposal > 0).sum())
    return np.argsort(-keys)[: min(count, possible)].tolist()


def published(target: torch.Tensor, _: torch.Tensor, tokens: list[int]) -> int:
    """The acceptance of REST and ADED: one draw from p per candidate, then a last one from p."""
    for token in tokens:
        if int(torch.multinomial(target, 1)) == token:
            return token
    return int(torch.multinomial(target, 1))


Pick = Callable[[torch.Tensor, torch.Tensor, list[int]], int]


def counted(accept: Pick, proposal: np.ndarray, children: int) -> np.ndarray:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    counts = np.zeros(6)
    for _ in range(20_000):
        tokens = drawn(proposal, children, rng)
        counts[accept(torch.from_numpy(TARGET), torch.from_numpy(proposal.copy()), tokens)] += 1
    return counts


@pytest.mark.parametrize("children", [1, 2, 4])
@pytest.mark.parametrize("name", list(PROPOSALS))
def test_rejection_is_exact(name: str, children: int) -> None:
    assert not improbable(counted(pick, PROPOSALS[name], children), TARGET)


def test_the_published_acceptance_is_not_and_the_test_sees_it() -> None:
    for name in ("peaked on a wrong token", "equal", "opposite"):
        assert improbable(counted(published, PROPOSALS[name], 2), TARGET)


def test_rejection_accepts_what_it_can() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    for _ in range(200):  # a proposal equal to the target is never rejected
        tokens = drawn(TARGET, 1, rng)
        assert pick(torch.from_numpy(TARGET), torch.from_numpy(TARGET.copy()), tokens) == tokens[0]


SIZE = 4


class Wrong(Drafter):
    """Proposes the same tokens with the same priors everywhere, whatever the target."""

    name: ClassVar[str] = "wrong"

    def __init__(self, odds: list[float]) -> None:
        self.priors = np.array(odds, np.float32)

    def expand(self, frontier: Frontier) -> Int32:
        tokens = range(len(self.priors))
        rows = [(node, token, token) for node in frontier.nodes.tolist() for token in tokens]
        return np.array(rows, np.int32)


def first_two(
    odds: list[float],
    nodes: int,
    runs: int,
    chain: bool,
    drawn_by: Callable[[RejectionVerifier], Any] = lambda verifier: verifier.generator,
) -> tuple[Any, Any]:
    """(how often each pair of tokens was emitted, its true probability)"""
    rng = np.random.default_rng(5)
    logits = torch.from_numpy(rng.normal(0, 1.5, (SIZE, SIZE))).float()  # by previous token
    probs = torch.softmax(logits, -1).double().numpy()
    counts = np.zeros((SIZE, SIZE))
    drafter = Wrong(odds)
    search = TreeSearch([drafter], Mixer([drafter.name]), SIZE, lambda *_: None)
    config = GenerationConfig(do_sample=True)
    for seed in range(runs):
        torch.manual_seed(seed)
        criteria = StoppingCriteriaList([MaxLengthCriteria(3)])
        start = torch.zeros((1, 1), dtype=torch.int64)
        verifier = RejectionVerifier(start, LogitsProcessorList(), criteria, config, None)
        emitted = [0]
        drafter.begin(Context([0], SIZE))
        while not verifier.finished:
            tree = search.grow(emitted[-1], nodes, 2, chain, generator=drawn_by(verifier))
            rows = [emitted[-1], *tree.tokens.tolist()]
            emitted += verifier.accept(Outputs(logits[rows]), tree, search.proposal)[1]
        counts[emitted[1], emitted[2]] += 1
    return counts.ravel(), (probs[0][:, None] * probs).ravel()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("odds", "nodes", "chain"),
    [
        ([0.2, 0.2, 0.2, 0.2], 5, False),
        ([0.9, 0.02, 0.02, 0.02], 3, False),
        ([0.01, 0.01, 0.5, 0.3], 8, False),
        ([0.4, 0.4], 2, False),
        ([0.3, 0.3, 0.1, 0.1], 2, True),
    ],
)
def test_drawn_trees_keep_the_distribution(odds: list[float], nodes: int, chain: bool) -> None:
    counts, expected = first_two(odds, nodes, 5000, chain)
    assert not improbable(counts, expected)


def test_what_an_earlier_step_drew_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = Wrong([0.3, 0.3])
    search = TreeSearch([drafter], Mixer([drafter.name]), SIZE, lambda *_: None)
    config, start = GenerationConfig(do_sample=True), torch.zeros((1, 1), dtype=torch.int64)
    criteria = StoppingCriteriaList([MaxLengthCriteria(9)])
    verifier = RejectionVerifier(start, LogitsProcessorList(), criteria, config, None)
    tree = search.grow(0, 3, 2, generator=verifier.generator)
    verifier.accept(Outputs(torch.zeros(len(tree) + 1, SIZE)), tree, search.proposal)
    monkeypatch.setattr(TreeSearch, "proposal", None)
    assert verifier.accept(Outputs(torch.zeros(1, SIZE)), EMPTY, search.proposal)[0] == [0]


@pytest.mark.slow
def test_ranked_trees_would_not() -> None:
    """The control: the same acceptance, but with the most likely children, not drawn ones."""
    counts, expected = first_two([0.4, 0.2, 0.1, 0.1], 3, 5000, False, drawn_by=lambda _: None)
    assert improbable(counts, expected)


def test_rejection_follows_its_seed_and_leaves_greedy_calls_unchanged() -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    outputs = [
        run(model, inputs, SpecPlug(nodes=8, verification="rejection"), seed, max_new_tokens=40)
        for seed in (0, 0, 1)
    ]
    assert outputs[0].tolist() == outputs[1].tolist() != outputs[2].tolist()
    greedy: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}
    plug = SpecPlug(nodes=8, verification="rejection")
    expected = model.generate(**inputs, **greedy)
    assert model.generate(**inputs, **greedy, custom_generate=plug).tolist() == expected.tolist()
    result = run(
        model,
        inputs,
        plug,
        0,
        max_new_tokens=20,
        return_dict_in_generate=True,
        output_scores=True,
        top_k=5,
    )
    assert len(result.scores) == 20
    for scores, token in zip(result.scores, result.sequences[0, -20:], strict=True):
        assert torch.isfinite(scores[0, token])  # no token that top_k excluded


def test_only_what_is_drawn_can_be_rejected() -> None:
    with pytest.raises(OptionError, match="'rejection', 'seeded'"):
        SpecPlug(verification="exact")
    for paper in ("aded", "dresd", "hierarchy", "rasd", "rest", "token-recycling"):
        with pytest.raises(OptionError, match="drawn at random"):
            SpecPlug(verification="rejection", published=paper)
    assert copy.deepcopy(SpecPlug(verification="rejection")).verification == "rejection"
