"""The order of levels: who is asked, what is left out, and that each level stays what it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_specplug import attach, detach
from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters.contract import Context, Drafter, Frontier, Int32, Step, TopK
from hf_specplug.drafters.hierarchy import LIMIT, ORDER, HierarchyDrafter
from hf_specplug.drafters.registry import create
from hf_specplug.errors import DraftError, OptionError, StateError
from tests.helpers.runs import new_tokens, plain, plugged
from tests.helpers.stores import make as make_store
from tests.helpers.zoo import make, prompt

GREEDY: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}
POOL = np.zeros((40, 7), np.int32)


class Level(Drafter):
    """Names the same rows whenever it is asked, which it counts."""

    def __init__(self, name: str, rows: list[tuple[int, int, int]], buckets: int = 2) -> None:
        self.name = name  # type: ignore[misc]
        self.rows = np.array(rows, np.int32).reshape(-1, 3)
        self.priors = np.linspace(0.2, 0.4, buckets, dtype=np.float32)
        self.asked: list[int] = []

    def expand(self, frontier: Frontier) -> Int32:
        self.asked += frontier.nodes.tolist()
        return self.rows


def expand(drafter: Drafter, *nodes: int) -> list[tuple[int, ...]]:
    rows = drafter.expand(Frontier(np.array(nodes, np.int32), POOL, 3))
    return [tuple(row) for row in rows.tolist()]


def test_a_level_names_what_those_before_left_to_name() -> None:
    first = Level("first", [(2, token, 1) for token in range(LIMIT)] + [(5, 3, 0)])
    second = Level("second", [(5, 3, 1), (5, 8, 2), (2, 9, 0)], buckets=3)
    third = Level("third", [(5, token, 0) for token in range(20)])
    drafter = HierarchyDrafter([first, second, third])
    assert drafter.priors.tolist() == np.concatenate([d.priors for d in drafter.levels]).tolist()
    rows = expand(drafter, 2, 5)
    assert [row for row in rows if row[0] == 2] == [(2, token, 1) for token in range(LIMIT)]
    assert [row for row in rows if row[0] == 5] == [
        (5, 3, 0),
        (5, 8, 2 + 2),
        *((5, token, 2 + 3) for token in (0, 1, 2, 4, 5)),
    ]
    assert second.asked == third.asked == [2, 5]  # as they may keep state by node
    assert expand(HierarchyDrafter([second, first]), 2, 5)[0] == (5, 3, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((3, 1, 0), "a node that it was not asked about"),
        ((-1, 1, 0), "a node that it was not asked about"),
        ((1 << 20, 1, 0), "a node that it was not asked about"),
        ((0, 1, 2), "bucket that it has no prior for"),
        ((0, 1, -1), "bucket that it has no prior for"),
    ],
)
def test_a_level_that_breaks_its_contract_is_named(row: tuple[int, int, int], message: str) -> None:
    drafter = HierarchyDrafter([Level("good", [(0, 1, 0)]), Level("bad", [row])])
    with pytest.raises(DraftError, match=f"'bad' proposed .*{message}"):
        expand(drafter, 0)
    model, inputs = make("llama"), prompt(make("llama"))
    expected, _ = plain(model, inputs, **GREEDY)
    output, _, plug = plugged(model, inputs, drafter, **GREEDY)
    assert output.tolist() == expected.tolist()
    assert "bad" in plug.stats.dropped["hierarchy"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The answer of the zoo's llama: its beginning as a corpus, all of it as n-grams."""
    folder = tmp_path_factory.mktemp("stores")
    model = make("llama")
    answer = new_tokens(plain(model, prompt(model), **GREEDY)[0], 40)
    made = []
    for kind, tokens in (("suffix", answer[:25]), ("ngram", answer)):
        (folder / f"{kind}.txt").write_text("".join(chr(960 + token) for token in tokens))
        make_store(folder / kind, folder / f"{kind}.txt", kind=kind)
        made.append(folder / kind)
    return made


def test_the_levels_are_right_wherever_they_are_asked(stores: list[Path]) -> None:
    """Node by node and a frontier at once: as the levels alone say, in order."""
    model = make("llama")
    answer = new_tokens(plain(model, prompt(model), **GREEDY)[0], 40)
    drafter = HierarchyDrafter()
    for store in stores:
        drafter.add(Datastore(store))
    alone = copy.deepcopy(drafter).levels
    context = Context(answer[:20], 96)
    for each in (drafter, *alone):
        each.begin(context)
    pool = np.zeros((20, 7), np.int32)
    pool[1:9, 0], pool[1:9, 1] = answer[20:28], np.arange(8)
    pool[9:19, 0], pool[9:19, 1] = answer[21:31], 1
    named = 0
    for nodes in ([0], [1], *([node] for node in range(2, 9)), list(range(9, 19))):
        frontier = Frontier(np.array(nodes, np.int32), pool, context.last)
        expected: dict[int, dict[int, int]] = {node: {} for node in nodes}
        begin = 0
        for level in alone:
            for node, token, bucket in level.expand(frontier).tolist():
                if len(expected[node]) < LIMIT:
                    expected[node].setdefault(token, begin + bucket)
            begin += len(level.priors)
        found: dict[int, dict[int, int]] = {node: {} for node in nodes}
        for node, token, bucket in drafter.expand(frontier).tolist():
            found[node][token] = bucket
        assert found == expected
        named += sum(map(len, found.values()))
    assert named > 15


def test_stores_go_to_the_level_that_reads_them(stores: list[Path]) -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    expected, _ = plain(model, inputs, **GREEDY)
    plug = attach(model, drafters=["hierarchy"], datastores=stores, nodes=12)
    assert model.generate(**inputs, **GREEDY).tolist() == expected.tolist()
    detach(model)
    (drafter,) = plug.drafters
    assert isinstance(drafter, HierarchyDrafter)
    assert [level.name for level in drafter.levels] == list(ORDER)
    opened = [getattr(level, "stores", None) for level in drafter.levels]
    assert [stores and [each.manifest.kind for each in stores] for stores in opened] == [
        None,
        ["ngram"],
        ["suffix"],
    ]
    assert plug.stats.accepted_by["hierarchy"] > 25
    with pytest.raises(OptionError, match="no level of 'hierarchy' reads datastores of kind"):
        HierarchyDrafter(["context"]).add(Datastore(stores[0]))


def test_what_its_levels_need_and_learn() -> None:
    drafter = HierarchyDrafter(["context", "recycling"])
    assert drafter.needs == {"topk"}
    assert HierarchyDrafter().needs == frozenset()
    assert HierarchyDrafter().kinds == {"suffix", "phrases", "ngram"}
    drafter.begin(Context([1, 2, 3], 20))
    rows = np.arange(8, dtype=np.int32)[None]
    topk = TopK(rows, np.full((1, 8), 0.1, np.float32))
    one = np.zeros(1, np.int32)
    drafter.observe(Step.of_text(one + 3, 2, [0], one, topk))
    state = drafter.state_dict()
    assert set(state) == {"recycling.ids", "recycling.probs"}
    other = HierarchyDrafter(["context", "recycling"])
    other.load_state_dict({key: array.copy() for key, array in state.items()})
    for each in (drafter, other):
        each.begin(Context([9, 3], 20))
    assert expand(other, 0) == expand(drafter, 0) != []
    for wrong in ({"rest.ids": rows}, {"recycling.ids": rows}, {"ids": rows}):
        with pytest.raises(StateError):
            other.load_state_dict(wrong)
    with pytest.raises(OptionError, match="no drafter is called 'nowhere'"):
        create([HierarchyDrafter(["nowhere"])])
