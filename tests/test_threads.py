"""Concurrent calls on one model: all draft, outputs are identical, nothing hangs or leaks."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LogitsProcessor, StaticCache

from hf_specplug import SpecPlug, attach, detach
from hf_specplug.drafters.contract import Drafter, Frontier, Int32
from hf_specplug.drafting.drafter_sets import MAX_KEPT_SETS, DrafterSets
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.hf.hidden_states import HiddenStateHook
from hf_specplug.verify import packed, packing_trial
from tests.drafters.test_conformance import store
from tests.helpers.runs import plain
from tests.helpers.streamers import Collected
from tests.helpers.zoo import make
from tests.verify.test_packed import patched

WATCHDOG = 300.0  # seconds after which a thread is considered to hang


@pytest.fixture
def model() -> Iterator[Any]:
    made = make("llama")
    yield made
    detach(made)


@pytest.fixture
def _packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack tiny layers too, from the first forward pass on."""
    monkeypatch.setattr(packed, "PACK_AFTER", 1)
    monkeypatch.setattr(packed, "COMPARE_AFTER", 1)
    monkeypatch.setattr(packing_trial, "WORTHWHILE", float("inf"))


packs = pytest.mark.usefixtures("_packs")


class Gumbel(LogitsProcessor):
    """Samples with its own generator, because threads share torch's."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + torch.from_numpy(self.rng.gumbel(size=scores.shape)).to(scores)


class Act(LogitsProcessor):
    """Calls `act` once, before the `at`-th token."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.left, self.act = at, act

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            self.act()
        return scores


class Interrupted(BaseException):
    """Stands for a KeyboardInterrupt, in any thread."""


def interrupt() -> None:
    raise Interrupted


def stop(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
    return torch.tensor([bool(ids[0, -2:].sum() % 13 == 0)])


@dataclass(frozen=True)
class Case:
    """One kind of call. `cache` is "" (the default), "static", or "own" (made by the caller)."""

    prompt: tuple[int, ...]
    length: int
    seed: int | None
    stops: bool
    cache: str
    dies: int  # number of the token before which the call is interrupted; 0: never

    def settings(self, model: Any) -> dict[str, Any]:
        processors: list[Any] = [] if self.seed is None else [Gumbel(self.seed)]
        if self.dies:
            processors.append(Act(self.dies, interrupt))
        settings: dict[str, Any] = {
            "input_ids": torch.tensor([self.prompt]),
            "attention_mask": torch.ones(1, len(self.prompt), dtype=torch.int64),
            "max_new_tokens": self.length,
            "do_sample": False,
            "logits_processor": processors,
        }
        if self.stops:
            settings["stopping_criteria"] = [stop]
        if self.cache == "static":
            settings["cache_implementation"] = "static"
        elif self.cache:
            room = len(self.prompt) + self.length
            settings["past_key_values"] = StaticCache(config=model.config, max_cache_len=room)
        return settings


def cases(count: int, static: bool = False) -> list[Case]:
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        motif = rng.integers(3, 90, int(rng.integers(3, 8))).tolist()
        text = (motif * 6)[: int(rng.integers(4, 30))]
        made.append(
            Case(
                prompt=tuple(text),
                length=int(rng.integers(4, 28)),
                seed=None if number % 3 else number,
                stops=number % 4 == 1,
                cache=("", "static", "own")[number % 3] if static else "",
                dies=int(rng.integers(1, 12)) if number % 5 == 4 else 0,
            )
        )
    return made


def in_threads(*works: Callable[[], None]) -> None:
    """Run functions concurrently; raises the first of their exceptions, and fails if one hangs."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def run(model: Any, case: Case, expected: list[list[int] | None]) -> None:
    """Run one attached call, and compare its output with that of plain `generate`."""
    streamer = Collected()
    number = ALL.index(case)
    try:
        output = model.generate(**case.settings(model), streamer=streamer).tolist()
    except Interrupted:
        assert case.dies
        return
    assert output == [expected[number]]
    assert streamer.tokens == expected[number]
    assert streamer.ended


ALL: list[Case] = []


def references(model: Any, all_cases: list[Case]) -> list[Any]:
    """The outputs of plain `generate`; None for a call that is interrupted."""
    ALL[:] = all_cases
    outputs: list[Any] = []
    for case in all_cases:
        try:
            outputs.append(plain(model, {}, **case.settings(model))[0].tolist()[0])
        except Interrupted:
            outputs.append(None)
    return outputs


def stress(model: Any, all_cases: list[Case], threads: int, calls: int) -> SpecPlug:
    expected = references(model, all_cases)
    plug: SpecPlug = vars(model)["generate"].plug

    def work(first: int) -> Callable[[], None]:
        def calling() -> None:
            for call in range(calls):
                run(model, all_cases[(7 * first + call) % len(all_cases)], expected)

        return calling

    in_threads(*(work(first) for first in range(threads)))
    assert not plug._ensemble._sets._taken
    assert len(plug._ensemble._sets._kept) < MAX_KEPT_SETS
    assert patched(model) == 0
    assert not plug.stats.dropped
    return plug


@pytest.mark.slow
@packs
@pytest.mark.parametrize(
    ("pack", "interval"),
    [(True, 5e-3), (False, 5e-3), (True, 1e-5)],
    ids=["packed", "not", "races"],
)
def test_eight_threads(model: Any, pack: bool, interval: float) -> None:
    usual = sys.getswitchinterval()
    attach(model, drafters=["context", "recycling", "stand", "gumbel", "trigram"], pack=pack)
    sys.setswitchinterval(interval)
    try:
        plug = stress(model, cases(40), threads=8, calls=50)
    finally:
        sys.setswitchinterval(usual)
    assert plug.stats.calls == 400  # all of them were drafted
    assert not plug.stats.fallbacks
    assert plug.stats.accepted > 0


@pytest.mark.slow
@packs
def test_static_and_eager_calls_mixed(model: Any) -> None:
    plug = attach(model)
    stress(model, cases(24, static=True), threads=6, calls=20)
    assert plug.stats.calls == 120
    assert plug._runner.sessions[model].factories["static"]._thread == 0


def test_sampling_by_the_shared_generator(model: Any) -> None:
    """Threads draw from it in any order, so that only the lengths of outputs are known."""
    plug = attach(model)
    ids = torch.arange(3, 15)[None]

    def call() -> None:
        for _ in range(10):
            out = model.generate(ids, do_sample=True, max_new_tokens=20, min_new_tokens=20)
            assert out.shape == (1, 32)

    in_threads(*[call] * 6)
    assert plug.stats.calls == 60


@pytest.mark.slow
@packs
def test_memory_stays(model: Any) -> None:
    """Apart from the tables of n-grams, which grow to a bound as they fill."""
    plug = attach(model)
    few = [case for case in cases(12) if not case.dies]
    stress(model, few, threads=4, calls=10)
    tracemalloc.start()
    try:
        sizes = []
        for _ in range(2):
            stress(model, few, threads=4, calls=5)
            gc.collect()
            tables = [each.table for each in plug.drafters if hasattr(each, "table")]
            known = sum(array.nbytes for table in tables for array in table.arrays)
            sizes.append(tracemalloc.get_traced_memory()[0] - known)
    finally:
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 1 << 18


@packs
def test_two_plugs_on_one_model(model: Any) -> None:
    """The plugs share the packed weights; a plug with `pack=False` does not use them."""
    few = [case for case in cases(20) if not case.dies]
    expected = references(model, few)
    plugs = [attach(model), SpecPlug(), SpecPlug(pack=False)]

    def work(plug: SpecPlug) -> Callable[[], None]:
        def calling() -> None:
            for case, tokens in zip(few, expected, strict=True):
                output = model.generate(**case.settings(model), assistant=plug)
                assert output.tolist() == [tokens]

        return calling

    in_threads(*(work(plug) for plug in plugs))
    assert [plug.stats.calls for plug in plugs] == [len(few)] * 3
    one, two, three = (plug._runner.sessions[model]._packed for plug in plugs)
    assert one is two
    assert one is not None
    assert one._packed
    assert three is None
    assert patched(model) == 0


@packs
def test_others_get_the_layers_own_results_during_a_packed_call(model: Any) -> None:
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        expected = model(ids).logits
    seen: list[torch.Tensor] = []

    def look() -> None:
        assert patched(model)
        with torch.no_grad():
            seen.append(model(ids).logits)

    def act() -> None:
        look()
        in_threads(look)

    attach(model)
    model.generate(ids, max_new_tokens=9, do_sample=False, logits_processor=[Act(6, act)])
    assert [torch.equal(logits, expected) for logits in seen] == [True, True]


COPIED = """
import pytest, sys
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-n", "0", sys.argv[1]]))
"""
COPIERS = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m))}


@pytest.mark.slow
@packs
def test_a_pickle_made_during_a_packed_call() -> None:
    """Runs in a separate process: what torch.compile leaves of other tests cannot be pickled."""
    place = f"{__file__}::test_a_copy_made_during_a_packed_call[pickle]"
    environment = {**os.environ, "COPIED_APART": "1"}
    command = [sys.executable, "-c", COPIED, place]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@packs
@pytest.mark.parametrize("name", COPIERS)
def test_a_copy_made_during_a_packed_call(model: Any, name: str) -> None:
    if name == "pickle" and "COPIED_APART" not in os.environ:
        pytest.skip("runs in a process of its own, by the test above")
    copier = COPIERS[name]
    case = cases(4)[1]
    (expected,) = references(model, [case])
    copies: list[Any] = []

    def act() -> None:
        assert patched(model)
        copies.append(copier(model))

    attach(model)
    settings = case.settings(model)
    settings["logits_processor"].append(Act(3, act))
    assert model.generate(**settings).tolist() == [expected]
    (twin,) = copies
    assert patched(twin) == 0
    assert sum(type(module) is nn.Linear for module in twin.modules()) > 0
    assert twin.generate(**case.settings(twin)).tolist() == [expected]
    assert vars(twin)["generate"].plug.stats.calls == 1
    assert not vars(twin)["generate"].plug._ensemble._sets._taken


@packs
def test_weights_changed_in_place_during_a_call(model: Any) -> None:
    twin = copy.deepcopy(model)
    outputs = []
    for one in (twin, model):
        layer = one.model.layers[0].mlp.down_proj

        def act(layer: nn.Linear = layer) -> None:
            with torch.no_grad():
                layer.weight.mul_(-3.0)

        settings: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False}
        if one is model:
            attach(model, nodes=1)  # no draft: a pass over a draft would use the old weights
        ids = torch.arange(3, 15)[None]
        outputs.append(one.generate(ids, **settings, logits_processor=[Act(8, act)]).tolist())
    assert outputs[0] == outputs[1]
    assert outputs[0] != twin.generate(ids, **settings).tolist()


@packs
def test_a_call_inside_a_call(model: Any) -> None:
    inner, outer = cases(5)[2], cases(5)[1]
    expected = references(model, [inner, outer])
    plug = attach(model)
    numbers: list[list[int]] = []

    def act() -> None:
        numbers.append(sorted(plug._ensemble._sets._taken))
        run(model, inner, expected)

    settings = outer.settings(model)
    settings["logits_processor"].append(Act(2, act))
    assert model.generate(**settings).tolist() == [expected[1]]
    assert numbers == [[0]]
    assert plug.stats.calls == 2
    assert not plug.stats.fallbacks


def test_everything_else_meanwhile(model: Any, tmp_path: Path) -> None:
    """While calls draft, state is saved and loaded, and the plug is copied, read and warmed up."""
    few = [case for case in cases(20) if not case.dies]
    expected = references(model, few)
    plug = attach(model)
    model.generate(**few[0].settings(model))
    working = threading.Event()

    def call() -> None:
        for case in few:
            run(model, case, expected)
        working.set()

    def meddle() -> None:
        path = tmp_path / f"{threading.get_ident()}.safetensors"
        while not working.is_set():
            plug.save_state(path)
            plug.load_state(path)
            assert len(plug.trace()) >= 0
            assert repr(plug.stats)
            copy.deepcopy(plug)
            plug.get_candidates(torch.tensor([few[0].prompt]))
        plug.warmup(max_length=32)

    in_threads(call, call, meddle, meddle)
    assert not plug.stats.dropped
    assert not plug.stats.fallbacks


class Silent(Drafter):
    """Proposes nothing, and cannot be copied."""

    name = "silent"
    priors = np.array([0.5], np.float32)

    def expand(self, frontier: Frontier) -> Int32:
        return np.empty((0, 3), np.int32)

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("there can be only one")


def test_a_drafter_that_cannot_be_copied(model: Any) -> None:
    inner, outer = cases(5)[2], cases(5)[1]
    expected = references(model, [inner, outer])
    plug = attach(model, drafters=["context", Silent()])
    settings = outer.settings(model)
    settings["logits_processor"].append(Act(2, lambda: run(model, inner, expected)))
    assert model.generate(**settings).tolist() == [expected[1]]
    ((reason, count),) = plug.stats.fallbacks.items()
    assert "cannot be copied for calls at the same time (there can be only one)" in reason
    assert (count, plug.stats.calls) == (1, 1)


def test_drafter_sets() -> None:
    """The lowest free number is taken first; kept sets belong to the present drafters."""
    plug = SpecPlug(drafters=["context", "recycling"])
    drafter_sets, own, mixer = DrafterSets(), plug.drafters, Mixer(["context", "recycling"])
    first, second = drafter_sets.acquire(own, mixer), drafter_sets.acquire(own, mixer)
    assert first.drafters is own
    assert second.drafters[0] is not own[0]
    drafter_sets.release(first)
    drafter_sets.release(second)
    again = [drafter_sets.acquire(own, mixer) for _ in range(MAX_KEPT_SETS + 3)]
    assert [drafter_set.number for drafter_set in again] == list(range(MAX_KEPT_SETS + 3))
    assert again[1].drafters is second.drafters
    for drafter_set in again:
        drafter_sets.release(drafter_set)
    assert sorted(drafter_sets._kept) == list(range(1, MAX_KEPT_SETS))
    others = [*own]
    assert drafter_sets.acquire(others, mixer).drafters is others
    assert not drafter_sets._kept


def test_a_new_store_is_for_all_calls_from_the_next_on() -> None:
    plug = SpecPlug(drafters=["rest"])
    one, two = plug._runner.acquire(), plug._runner.acquire()
    assert one is not None
    assert two is not None
    plug._ensemble._sets.release(two)
    plug.add_datastore(store("suffix", 12))
    for _ in range(2):
        drafter_set = plug._runner.acquire()
        assert drafter_set is not None
        assert drafter_set.number > 0
        (drafter,) = drafter_set.drafters
        assert [opened.manifest.kind for opened in drafter.stores] == ["suffix"]
        assert len(drafter._shards) == 1
    plug.add_datastore(store("trigram", 12))
    later = plug._runner.acquire()
    assert later is not None
    assert [drafter.name for drafter in later.drafters] == ["rest", "trigram"]
    assert later.mixer.names == ["rest", "trigram"]
    assert one.mixer.names == ["rest"]


def test_a_hook_sees_its_own_thread_only(model: Any) -> None:
    with torch.no_grad(), HiddenStateHook(model) as watch:
        in_threads(lambda: model(torch.arange(5)[None]))
        assert watch.states is None
        model(torch.arange(3)[None])
        assert watch.states is not None
        mine = watch.states.clone()
        in_threads(lambda: model(torch.arange(7)[None]))
        assert torch.equal(watch.states, mine)


_FORKS = """
import os, sys, threading, time
import torch
torch.set_num_threads(1)  # else torch hangs in a forked process, without any plug
from hf_specplug import attach
from hf_specplug.verify import packed, packing_trial
from tests.verify.test_packed import patched
from tests.helpers.zoo import make

packed.PACK_AFTER, packed.COMPARE_AFTER, packing_trial.WORTHWHILE = 1, 1, float("inf")
model, ids = make("llama"), torch.arange(3, 15)[None]
settings = dict(max_new_tokens=24, do_sample=False)
if sys.argv[1] == "static":
    settings["cache_implementation"] = "static"
expected = model.generate(ids, **settings).tolist()
plug = attach(model)
for _ in range(2):
    model.generate(ids, **settings)
going = True

def calling():
    while going:
        assert model.generate(ids, **settings).tolist() == expected

def check():
    with torch.no_grad():
        plug.save_state(sys.argv[2])
        assert model.generate(ids, **settings).tolist() == expected
    assert not plug._ensemble._sets._taken and not patched(model)
    assert plug._runner.sessions[model].factories["static"]._thread == 0

def fork(goes_on=False):
    child = os.fork()
    if child == 0 and goes_on:
        return True
    if child == 0:
        code = 1
        try:
            assert not plug._ensemble._sets._taken and not patched(model)
            check()
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, status
            return False
        time.sleep(0.01)
    os.kill(child, 9)
    raise SystemExit("a child hangs")

threads = [threading.Thread(target=calling) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(6):
    fork()

in_child = False

def processor(ids, scores):
    global in_child
    if ids.shape[1] == 20:
        in_child = fork(goes_on=True)
        if in_child:
            assert len(plug._ensemble._sets._taken) == 1 and patched(model)
    return scores

same = model.generate(ids, **settings, logits_processor=[processor]).tolist() == expected
if in_child:  # the call during which the process forked goes on in parent and child
    os._exit(0 if same and not patched(model) else 1)
assert same
going = False
for thread in threads:
    thread.join()
check()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_forks_in_the_middle_of_calls(cache: str, tmp_path: Path) -> None:
    """Child processes generate independently of what other threads of the parent were doing."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKS, cache, str(tmp_path / "state.safetensors")],
        capture_output=True,
        text=True,
        check=False,
        timeout=WATCHDOG,
    )
    assert result.stdout == "done\n", result.stderr
