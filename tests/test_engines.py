"""Building on a cluster gives the same files, also if a worker dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_specplug.datastore import build as build_module
from hf_specplug.datastore import engines
from hf_specplug.datastore.build import Plan, build
from hf_specplug.datastore.corpus import Corpus, find
from hf_specplug.datastore.store import Datastore
from hf_specplug.errors import StoreError
from tests.stores import Letters, silent, stop, texts
from tests.test_datastore import files


class Deadly(Letters):
    """Kills the worker that uses it first."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self._marker, self._parent = str(marker), os.getpid()

    def __call__(self, texts: list[str], **settings: Any) -> dict[str, list[list[int]]]:
        try:
            os.close(os.open(self._marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return super().__call__(texts, **settings)
        assert os.getpid() != self._parent
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.fixture
def cluster() -> Iterator[engines.OnRay]:
    """Two workers on this machine."""
    ray = pytest.importorskip("ray")
    try:
        ray.init(num_cpus=2, logging_level="error", include_dashboard=False, log_to_driver=False)
    except Exception as error:
        pytest.skip(f"no cluster can be started on this machine: {error}")
    try:
        yield engines.OnRay()
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of ray
def test_a_cluster_builds_the_same_files(
    tmp_path: Path, cluster: engines.OnRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "_BATCH", 300)  # many small tasks
    corpus = Corpus(find([str(texts(tmp_path / "texts", 40))]))
    plan = Plan(shard_tokens=900)
    build(tmp_path / "local", corpus, Letters(), plan, stop, silent)
    deadly = Deadly(tmp_path / "killed")
    build(tmp_path / "cluster", corpus, deadly, plan, stop, silent, engine=cluster)
    assert (tmp_path / "killed").exists()
    assert len(Datastore(tmp_path / "local").shards) > 5
    assert files(tmp_path / "cluster") == files(tmp_path / "local")


class Late(engines.Local):
    """Indexes only when the result is wanted, several shards later, as a cluster may."""

    ahead = 3

    def indexing(self, build: engines.Build, tokens: Any, vocab: int) -> Any:
        return lambda: build(tokens, vocab)


def test_shards_that_come_late_are_listed_in_order(tmp_path: Path) -> None:
    corpus = Corpus(find([str(texts(tmp_path / "texts"))]))
    plan = Plan(shard_tokens=400)
    build(tmp_path / "local", corpus, Letters(), plan, stop, silent)
    build(tmp_path / "late", corpus, Letters(), plan, stop, silent, engine=Late())
    assert files(tmp_path / "late") == files(tmp_path / "local")
    seen = 0

    def interrupt(documents: int, tokens: int) -> None:
        nonlocal seen
        seen += documents
        if seen > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "broken", corpus, Letters(), plan, stop, interrupt, engine=Late())
    build(tmp_path / "broken", corpus, Letters(), plan, stop, silent, engine=Late())
    assert files(tmp_path / "broken") == files(tmp_path / "local")


def test_engines_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(engines.make("local"), engines.Local)
    with pytest.raises(StoreError, match="local, ray, not 'spark'"):
        engines.make("spark")

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(engines, "import_module", missing)
    with pytest.raises(StoreError, match=r"pip install 'hf-specplug\[ray\]'"):
        engines.make("ray")
