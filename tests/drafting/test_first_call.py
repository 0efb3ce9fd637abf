"""The first call: each kernel is compiled once, ahead of the call or by it, and never twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hf_specplug import DEMO_MODEL, SpecPlug
from hf_specplug.drafters.contract import Drafter
from hf_specplug.drafting import precompile
from hf_specplug.kernels import compile_cache

RUN = """
import json, pkgutil, sys, torch
from importlib import import_module
from transformers import AutoModelForCausalLM
from hf_specplug import attach, kernels
from hf_specplug.drafting import precompile

torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
ids = torch.arange(5, 69)[None]
common = dict(attention_mask=torch.ones_like(ids), max_new_tokens=24)

def answers():
    for sample in (False, True):
        torch.manual_seed(0)
        yield model.generate(ids, **common, do_sample=sample).tolist()

def dispatchers():
    for module in pkgutil.iter_modules(kernels.__path__):
        for name, value in vars(import_module(f"hf_specplug.kernels.{module.name}")).items():
            if hasattr(value, "nopython_signatures"):
                yield f"{module.name}.{name}", value

def signatures():
    return {name: len(kernel.nopython_signatures) for name, kernel in dispatchers()}

plain = list(answers())
plug = attach(model, **json.loads(sys.argv[2]))
report = {"started": len(precompile._processes)}
if "warmup" in sys.argv:
    plug.warmup()
before = signatures()
report["same"] = list(answers()) == plain
report["signatures"], report["after warmup"] = signatures(), before
report["drafted"] = plug.stats.forwards, plug.stats.accept_length
report["misses"] = [name for name, kernel in dispatchers() if kernel.stats.cache_misses]
report["hits"] = [name for name, kernel in dispatchers() if kernel.stats.cache_hits]
report["ended"] = [process.wait(300) for process in precompile._processes]
print(json.dumps(report))
"""
NO_FOLDER = """
from numba.core.caching import CacheImpl, UserProvidedCacheLocator
CacheImpl._locator_classes = [UserProvidedCacheLocator]
"""


def run(folder: Path, *arguments: str, before: str = "", **options: Any) -> dict[str, Any]:
    """Run the first calls in a new process; returns its report."""
    command = [sys.executable, "-c", before + RUN, str(DEMO_MODEL), json.dumps(options), *arguments]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


@pytest.mark.slow
def test_nothing_is_compiled_twice(tmp_path: Path) -> None:
    """A process with an empty cache folder, then a second process, then one that warms up."""
    first = run(tmp_path)
    assert first["same"]
    assert first["drafted"][0] > 0
    assert first["started"] == 1
    assert first["ended"] == [0]
    assert len(list(tmp_path.rglob("*.compiled"))) == 1
    assert not list(tmp_path.rglob("*.lock"))
    assert set(first["signatures"].values()) == {0, 1}  # one signature, read-only array or not

    second = run(tmp_path)
    assert second["same"]
    assert second["started"] == 0
    assert not second["misses"]
    assert len(second["hits"]) > 10

    third = run(tmp_path, "warmup")
    assert third["same"]
    assert not third["misses"]
    assert third["signatures"] == third["after warmup"]  # for greedy and sampled calls


@pytest.mark.slow
def test_without_a_folder_each_process_compiles_for_itself(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    report = run(file / "folder", before=NO_FOLDER, drafters="recycling")
    assert report["same"]
    assert report["drafted"][0] > 0
    assert report["started"] == 0
    assert file.read_bytes() == b""


class Started(list[list[str]]):
    """Records the commands of processes instead of starting them."""

    def __call__(self, command: list[str], **_: Any) -> Any:
        self.append(command)
        return type("Ended", (), {"poll": lambda self: 0})()


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mark = tmp_path / "all.compiled"
    monkeypatch.setattr(compile_cache, "mark", lambda names: mark)
    return mark


@pytest.fixture
def started(mark: Path, monkeypatch: pytest.MonkeyPatch) -> Started:
    started = Started()
    monkeypatch.setattr(precompile, "CompileProcess", started)
    return started


def test_a_plug_starts_one_process_if_the_cache_is_not_filled(mark: Path, started: Started) -> None:
    SpecPlug(drafters=["context", "gumbel"])
    assert [command[-2:] for command in started] == [["context", "gumbel"]]
    mark.with_suffix(".lock").touch()  # the process is compiling
    SpecPlug(drafters=["context", "gumbel"])
    mark.with_suffix(".lock").unlink()
    mark.touch()  # the process is done
    SpecPlug(drafters=["context", "gumbel"])
    assert len(started) == 1


def test_the_lock_of_a_killed_process_expires(mark: Path, started: Started) -> None:
    lock = mark.with_suffix(".lock")
    lock.touch()
    long_ago = time.time() - 2 * precompile._LONGEST
    os.utime(lock, (long_ago, long_ago))
    precompile.start(["context"])
    assert len(started) == 1
    with precompile._alone(mark) as alone, precompile._alone(mark) as other:
        assert (alone, other) == (True, False)
    assert not lock.exists()


@pytest.mark.parametrize(
    "executable", ["", None, "/opt/blender/blender", "/usr/bin/uwsgi"], ids=str
)
def test_only_an_interpreter_is_started(
    executable: str | None, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    precompile.start(["context"])
    assert not started


def test_no_frozen_program_is_started(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    precompile.start(["context"])
    assert not started


def test_a_process_that_cannot_be_started_is_no_error(
    mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(mark.parent / "python-that-is-gone"))
    precompile.start(["context"])
    assert not mark.exists()


def test_only_built_in_drafters_are_precompiled() -> None:
    class Own(Drafter):
        name = "own"

        def expand(self, frontier: Any) -> Any:
            raise AssertionError

    plug = SpecPlug(drafters=["gumbel", Own(), "context"])
    assert precompile.built_in(plug.drafters) == ["gumbel", "context"]


def test_the_mark_changes_with_what_code_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine code depends on drafters, releases, processor and source files."""
    marks = [
        compile_cache.mark(["context"]),
        compile_cache.mark(["gumbel"]),
        compile_cache.mark(["gumbel", "context"]),
    ]
    for target, name in (
        (compile_cache.numba, "__version__"),
        (compile_cache.llvm, "get_host_cpu_name"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, "0.0" if name == "__version__" else lambda: "other")
            compile_cache._version.cache_clear()
            marks.append(compile_cache.mark(["context"]))
    with monkeypatch.context() as patch:
        patch.setattr(compile_cache, "__file__", __file__)
        compile_cache._version.cache_clear()
        marks.append(compile_cache.mark(["context"]))
    compile_cache._version.cache_clear()
    assert len(set(marks)) == len(marks)
    assert compile_cache.mark(["context"]) == marks[0]
