"""transformers' own assisted loop, with a plug as its candidate generator."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.candidate_generator import CandidateGenerator

from hf_specplug import SpecPlug, attach, detach
from hf_specplug.drafters.contract import Context, Drafter, Frontier, Int32, Step
from tests.helpers.oracle import Replay
from tests.helpers.runs import Counting, new_tokens, plain
from tests.helpers.zoo import FAMILIES, VOCAB, make, prompt

GREEDY: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False}


@pytest.fixture
def model() -> Iterator[Any]:
    torch.manual_seed(0)
    made = FAMILIES["llama"].build().eval()
    made.generation_config.eos_token_id = None
    yield made
    detach(made)


class Assisted:
    """A model whose assisted loop takes its candidates from `generator`.

    Attributes:
        forwards: forward passes of the last call.
    """

    def __init__(self, model: Any, generator: Any) -> None:
        self.model, self.generator, self.forwards = model, generator, 0

    def __call__(self, inputs: dict[str, Any], seed: int = 0, **settings: Any) -> torch.Tensor:
        """Run `generate` with the loop; returns its output."""
        model = self.model
        model._get_candidate_generator = lambda **arguments: self.generator
        count = Counting(model)
        try:
            torch.manual_seed(seed)
            return type(model).generate(model, **inputs, **settings, prompt_lookup_num_tokens=1)
        finally:
            count.remove()
            self.forwards = count.forwards
            del model._get_candidate_generator


LOOPS = ["llama", "qwen2", "gpt2", "mistral-window", "gemma3", "mixtral", "bloom", "t5", "whisper"]


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("name", LOOPS)
def test_greedy_text_is_that_of_plain_generate(name: str, attached: bool) -> None:
    model = make(name)
    inputs = prompt(model)
    expected, _ = plain(model, inputs, **GREEDY)
    drafters = ["stand"]  # alone, it repeats what the first call taught
    plug = attach(model, drafters, 16) if attached else SpecPlug(drafters, 16)
    try:
        assisted = Assisted(model, plug)
        forwards = []
        for _ in range(2):
            assert assisted(inputs, **GREEDY).tolist() == expected.tolist()
            forwards.append(assisted.forwards)
    finally:
        detach(model)
    assert not plug.stats.dropped
    assert forwards[1] < forwards[0] <= 30


def test_the_best_and_the_worst_drafts(model: Any) -> None:
    inputs = prompt(model)
    expected, _ = plain(model, inputs, **GREEDY)
    reference = new_tokens(expected, 30)
    counted = []
    for drafter in (Replay(reference, siblings=0), Replay(reference, wrong=lambda place: True)):
        assisted = Assisted(model, attach(model, drafters=drafter, nodes=16))
        assert assisted(inputs, **GREEDY).tolist() == expected.tolist()
        counted.append(assisted.forwards)
    assert counted == [2, 30]


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 3},
        {"bad_words_ids": [[5], [6, 7]]},
        {"min_new_tokens": 12, "eos_token_id": 9},
        {"output_scores": True, "return_dict_in_generate": True},
    ],
    ids=str,
)
def test_processors(model: Any, settings: dict[str, Any]) -> None:
    inputs = prompt(model)
    expected, _ = plain(model, inputs, **GREEDY, **settings)
    plug = attach(model, nodes=16)
    for _ in range(2):
        output = Assisted(model, plug)(inputs, **GREEDY, **settings)
        if isinstance(expected, torch.Tensor):
            assert output.tolist() == expected.tolist()
        else:
            assert output.sequences.tolist() == expected.sequences.tolist()
            for ours, theirs in zip(output.scores, expected.scores, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


SAMPLED: dict[str, Any] = {"max_new_tokens": 30, "do_sample": True, "temperature": 0.8}


def test_sampled_text_follows_the_random_numbers_of_the_loop(model: Any) -> None:
    """The loop draws once per verified token, plain `generate` once per emitted token."""
    inputs = prompt(model)
    expected, state = plain(model, inputs, seed=7, **SAMPLED)
    right = Replay(new_tokens(expected, 30), siblings=0)
    for drafter, forwards in ((right, 2), (Silent(), 30)):
        assisted = Assisted(model, attach(model, drafters=drafter, nodes=16))
        assert assisted(inputs, seed=7, **SAMPLED).tolist() == expected.tolist()
        assert assisted.forwards == forwards
    assert torch.equal(torch.get_rng_state(), state)
    texts = [Assisted(model, SpecPlug(nodes=16))(inputs, seed=7, **SAMPLED) for _ in range(2)]
    assert texts[0].tolist() == texts[1].tolist()


def test_more_is_accepted_than_of_prompt_lookup(demo_model: Any, tokenizer: Any) -> None:
    code = "def add(one, other):\n    return one + other\n\n\n"
    code += code.replace("add", "subtract").replace("+", "-")
    inputs = dict(tokenizer(code + "def multiply(one, other):\n", return_tensors="pt"))
    settings = {"max_new_tokens": 100, "do_sample": False}
    expected, _ = plain(demo_model, inputs, **settings)
    count = Counting(demo_model)
    lookup, _ = plain(demo_model, inputs, **settings, prompt_lookup_num_tokens=10)
    count.remove()
    assisted = Assisted(demo_model, SpecPlug(nodes=16))
    output = assisted(inputs, **settings)
    assert output.tolist() == lookup.tolist() == expected.tolist()
    assert assisted.forwards < count.forwards
    assert assisted(inputs, **settings).tolist() == expected.tolist()
    assert assisted.forwards < count.forwards / 2  # what the first call taught


class Silent(Drafter):
    """Proposes nothing; keeps what it observes."""

    name = "silent"
    needs = frozenset({"topk"})

    def __init__(self) -> None:
        self.priors = np.array([0.5], np.float32)
        self.vocab = 0
        self.steps: list[Step] = []

    def begin(self, context: Context) -> None:
        self.vocab = context.vocab_size
        self.text = context

    def expand(self, frontier: Frontier) -> Int32:
        return np.empty((0, 3), np.int32)

    def observe(self, step: Step) -> None:
        self.steps.append(step)


def test_what_drafters_see_of_the_scores(model: Any) -> None:
    """The same as in a plain forward pass over the text: at the root and at every node."""
    inputs = prompt(model)
    expected, _ = plain(model, inputs, **GREEDY)
    watch = Silent()
    replay = Replay(new_tokens(expected, 30), wrong=lambda place: place % 4 == 3)
    plug = SpecPlug(drafters=[replay, watch], nodes=6)
    Assisted(model, plug)(inputs, **GREEDY)
    assert watch.vocab == VOCAB
    assert watch.text.tokens.tolist() == expected[0].tolist()
    assert sum(len(step.emitted) for step in watch.steps) == 30
    assert any(len(step.visited) < len(step.tokens) for step in watch.steps)
    for step in watch.steps:
        before = step.before
        path = torch.tensor([[*expected[0, :before].tolist(), *step.tokens.tolist()]])
        best = model(path).logits[0, before:].softmax(-1).topk(8)
        assert step.topk is not None
        assert step.topk.ids.tolist() == best.indices.tolist()
        np.testing.assert_allclose(step.topk.probs, best.values.detach(), rtol=1e-3)
        count = len(step.emitted)
        assert step.emitted.tolist() == expected[0, before + 1 : before + 1 + count].tolist()
    assert plug.stats.calls == 1
    assert plug.stats.tokens == 30 - len(watch.steps[0].emitted)
    assert len(plug.trace()) == plug.stats.forwards == len(watch.steps) - 1


def test_what_is_learned_serves_later_calls(model: Any) -> None:
    inputs = prompt(model)
    counts = []
    for taught in (False, True):
        plug = attach(model, drafters=["recycling", "stand"], nodes=16)
        if taught:
            Assisted(model, plug)(inputs, **GREEDY)
            state = plug.drafters[0].state_dict()["ids"]
            assert (state >= 0).any(1).sum() > 10
            plug.stats.reset()
        model.generate(**inputs, **GREEDY)
        counts.append(plug.stats.forwards)
        assert plug.stats.fallbacks == {}
    assert plug.drafters[0].state_dict()["ids"] is state
    assert counts[1] < counts[0]


class _Log:
    """Passes on the attributes of a generator, and records their names."""

    def __init__(self, generator: Any) -> None:
        self._generator, self._names = generator, set[str]()

    def __getattr__(self, name: str) -> Any:
        self._names.add(name)
        return getattr(self._generator, name)


def test_the_loop_reads_nothing_else(model: Any) -> None:
    plug = SpecPlug(nodes=8)
    assert isinstance(plug, CandidateGenerator)
    assert not plug.requires_model_outputs
    log = _Log(plug)
    Assisted(model, log)(prompt(model), **GREEDY)
    expected = {"requires_model_outputs", "get_candidates", "update_candidate_strategy"}
    assert log._names == expected


def test_candidates_are_one_chain_after_the_text(model: Any) -> None:
    plug = attach(model, drafters=["context"], nodes=11)
    ids = torch.tensor([[5, 6, 7, 8, 9, 5, 6]])
    out, logits = plug.get_candidates(ids)
    assert logits is None
    assert out[0].tolist()[: ids.shape[1] + 3] == [5, 6, 7, 8, 9, 5, 6, 7, 8, 9]
    longer = torch.cat([ids, torch.tensor([[7, 3, 5]])], dim=1)
    out, _ = plug.get_candidates(longer)
    assert out[0, longer.shape[1]] == 6
    fresh = attach(model, drafters=["context"], nodes=11)
    assert out.tolist() == fresh.get_candidates(longer)[0].tolist()
    other, _ = plug.get_candidates(torch.tensor([[1, 2, 1]]))  # an unrelated text
    assert other[0, 3] == 2
    shorter, _ = plug.get_candidates(torch.tensor([[1, 2]]))
    assert shorter.tolist() == [[1, 2]]


def test_request_borders(model: Any) -> None:
    watch = Silent()
    plug = attach(model, drafters=watch, nodes=8)
    scores = torch.randn(1, 1, VOCAB)

    def step(*text: int) -> Context:
        plug.get_candidates(torch.tensor([text[:-1]]))
        plug.update_candidate_strategy(torch.tensor([text]), scores, 0)
        return watch.text

    first = step(3, 4, 5)
    assert step(3, 4, 5, 6) is first
    assert first.tokens.tolist() == [3, 4, 5, 6]
    assert step(3, 4, 5, 6, 7, 8) is first  # the loop skipped `update_candidate_strategy`
    shorter = step(3, 4, 5)
    assert shorter is not first
    other = step(9, 4, 5, 6)
    assert other is not shorter
    assert other.tokens.tolist() == [9, 4, 5, 6]


def test_the_vocabulary_is_that_of_the_scores(model: Any) -> None:
    watch, ids = Silent(), torch.tensor([[5, 6, 5, 6, 5]])
    plug = SpecPlug(drafters=["context", watch], nodes=8)
    assert plug.get_candidates(ids)[0].tolist() == ids.tolist()  # unknown before the first scores
    for vocab in (40, 60):
        ids = torch.cat([ids, torch.tensor([[6, 5]])], 1)
        plug.update_candidate_strategy(ids, torch.randn(1, 2, vocab), torch.tensor(1))
        assert watch.vocab == vocab
        assert plug.get_candidates(ids)[0].shape[1] > ids.shape[1]
    plug.get_candidates(torch.tensor([[5, 6, 5]]))  # perhaps a text of another model
    assert watch.vocab == 60
    assert plug.get_candidates(torch.tensor([[5, 6, 5]]))[0].shape[1] == 3
    attached = attach(model, drafters=watch)
    attached.get_candidates(ids)
    assert watch.vocab == VOCAB


def test_scores_of_another_draft_teach_what_is_known() -> None:
    watch = Silent()
    plug = SpecPlug(drafters=watch, nodes=8)
    plug.update_candidate_strategy(torch.tensor([[5, 6, 7, 8]]), torch.randn(1, 5, 30), 1)
    (step,) = watch.steps
    assert step.tokens.tolist() == [6, 7]
    assert step.emitted.tolist() == [7, 8]
    assert step.topk is not None
    assert step.topk.ids.shape == (2, 8)


def test_tokens_that_the_processors_exclude_are_not_learned() -> None:
    watch = Silent()
    plug = SpecPlug(drafters=watch, nodes=8)
    scores = torch.full((1, 1, 30), -torch.inf)
    scores[0, 0, [4, 9]] = torch.tensor([0.0, 1.0])
    plug.update_candidate_strategy(torch.tensor([[5, 9]]), scores, 0)
    (step,) = watch.steps
    assert step.topk is not None
    assert step.topk.ids.tolist() == [[9, 4, *([-1] * 6)]]


def test_drafts_end_with_the_positions_of_the_model() -> None:
    model = make("gpt2")  # more than 256 positions would be an IndexError
    inputs = prompt(model, 250)
    inputs["input_ids"][0, 100:200] = inputs["input_ids"][0, :100]
    inputs["input_ids"][0, 200:] = inputs["input_ids"][0, :50]
    settings = {"max_new_tokens": 6, "do_sample": False}
    expected, _ = plain(model, inputs, **settings)
    try:
        output = Assisted(model, attach(model, nodes=32))(inputs, **settings)
    finally:
        detach(model)
    assert output.tolist() == expected.tolist()


def test_threads_and_copies(model: Any) -> None:
    plug = attach(model, nodes=8)
    model._get_candidate_generator = lambda **arguments: plug
    texts = [prompt(model, seed=seed) for seed in range(4)]
    expected = [plain(model, text, **GREEDY)[0].tolist() for text in texts]
    found: dict[int, list[Any]] = {}
    working = threading.Event()

    def call(number: int) -> None:
        found[number] = [
            model.generate(**texts[number], **GREEDY, prompt_lookup_num_tokens=1).tolist()
            for _ in range(4)
        ]

    def meddle() -> None:
        while not working.is_set():
            twin = copy.deepcopy(plug)
            assert twin.get_candidates(texts[0]["input_ids"])[0].shape[1] == 24  # not attached
            model.generate(**texts[0], **GREEDY)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    other = threading.Thread(target=meddle)
    for thread in (*threads, other):
        thread.start()
    for thread in threads:
        thread.join()
    working.set()
    other.join()
    del model._get_candidate_generator
    assert [found[number] for number in range(4)] == [[text] * 4 for text in expected]
    assert not plug.stats.dropped
    sets = plug._ensemble._sets._taken
    assert sets == {}  # threads that have ended hold no drafters


def test_a_call_takes_the_drafters_of_its_thread_back(model: Any) -> None:
    only = Uncopyable()
    plug = attach(model, drafters=only, nodes=8)
    Assisted(model, plug)(prompt(model), **GREEDY)
    model.generate(**prompt(model), **GREEDY)
    assert not [why for why in plug.stats.fallbacks if "copied" in why]


class Uncopyable(Silent):
    name = "uncopyable"

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("there can be only one")
