"""Building on a cluster gives the same files, also if a worker dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_specplug import DEMO_MODEL
from hf_specplug.cli.run_build import LOADERS
from hf_specplug.datastore.building import build as build_module
from hf_specplug.datastore.building import executors
from hf_specplug.datastore.building.build import build
from hf_specplug.datastore.building.corpus import Corpus, find
from hf_specplug.datastore.building.job import prepare
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.kinds.suffix import SuffixIndex
from hf_specplug.datastore.store import Datastore
from hf_specplug.errors import CorpusError, OptionError, StoreError
from tests.datastore.test_datastore import files
from tests.helpers.stores import Letters, silent, stop, texts


class Deadly(Letters):
    """Kills the worker that uses it first."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self._marker, self._parent = marker, os.getpid()

    def __call__(self, texts: list[str], **settings: Any) -> dict[str, list[list[int]]]:
        kill_once(self._marker, self._parent)
        return super().__call__(texts, **settings)


class Heavy:
    """Says who calls it, as one that keeps a model there; kills the first."""

    runs_model = True

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder, self._parent = folder, os.getpid()

    def __call__(self, tokens: Any, vocab: int) -> Any:
        kill_once(self._folder / "killed", self._parent)
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        (self._folder / f"{os.getpid()} {gpu}").touch()
        return SuffixIndex.build(tokens, vocab)

    def workers(self) -> list[str]:
        """The GPU of each worker that called it, in order."""
        assert (self._folder / "killed").exists()
        return sorted(path.name.split(" ")[1] for path in self._folder.glob("* *"))


class Wrong:
    """Cannot be used, as a worker finds out."""

    runs_model = True

    def __call__(self, tokens: Any, vocab: int) -> Any:
        raise OptionError(f"nothing is made of {len(tokens)} tokens")


def kill_once(marker: Path, parent: int) -> None:
    """Kill this process, a worker, if it is the first to come here."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    assert os.getpid() != parent
    os.kill(os.getpid(), signal.SIGKILL)


def built(folder: Path, sources: list[str], **options: Any) -> Datastore:
    """A store as the command line builds it."""
    job = prepare(folder, sources, BuildOptions(**options), LOADERS)
    job.setup()
    return job.run(stop, silent)


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[executors.RayExecutor]:
    """Two workers on this machine, or what a test asks for."""
    ray = pytest.importorskip("ray")
    size = getattr(request, "param", {"num_cpus": 2})
    try:
        ray.init(**size, logging_level="error", include_dashboard=False, log_to_driver=False)
    except Exception as error:
        pytest.skip(f"no cluster can be started on this machine: {error}")
    try:
        yield executors.RayExecutor()
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of ray
def test_a_cluster_builds_the_same_files(
    tmp_path: Path, cluster: executors.RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "BATCH", 300)  # many small tasks
    corpus = Corpus(find([str(texts(tmp_path / "texts", 40))]))
    options = BuildOptions(shard_tokens=900)
    build(tmp_path / "local", corpus, Letters(), options, stop, silent)
    deadly = Deadly(tmp_path / "killed")
    build(tmp_path / "cluster", corpus, deadly, options, stop, silent, executor=cluster)
    assert (tmp_path / "killed").exists()
    assert len(Datastore(tmp_path / "local").shards) > 5
    assert files(tmp_path / "cluster") == files(tmp_path / "local")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of ray
@pytest.mark.parametrize(
    ("cluster", "workers"),
    [
        ({"num_cpus": 2, "num_gpus": 0}, [""]),
        ({"num_cpus": 1, "num_gpus": 0}, [""]),
        ({"num_cpus": 1, "num_gpus": 2}, ["0", "1"]),  # nobody looks whether they are there
    ],
    indirect=["cluster"],
    ids=["cores", "one core", "gpus"],
)
def test_few_workers_load_a_model_and_keep_it(
    tmp_path: Path, cluster: executors.RayExecutor, workers: list[str]
) -> None:
    corpus = Corpus(find([str(texts(tmp_path / "texts"))]))
    options = BuildOptions(shard_tokens=400)
    build(tmp_path / "local", corpus, Letters(), options, stop, silent)
    heavy = Heavy(tmp_path / "workers")
    build(
        tmp_path / "ray", corpus, Letters(), options, stop, silent, executor=cluster, builder=heavy
    )
    assert heavy.workers() == workers
    assert cluster.max_pending == len(workers)
    assert len(Datastore(tmp_path / "local").shards) > 5
    assert files(tmp_path / "ray") == files(tmp_path / "local")

    broken = tmp_path / "broken"
    with pytest.raises(OptionError, match=r"^nothing is made of \d+ tokens$"):
        build(broken, corpus, Letters(), options, stop, silent, executor=cluster, builder=Wrong())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of ray
@pytest.mark.usefixtures("cluster")
def test_a_cluster_embeds_as_this_process_does(tmp_path: Path) -> None:
    corpus = [str(texts(tmp_path / "texts", 60))]
    local, remote = (
        built(
            tmp_path / engine,
            corpus,
            engine=engine,
            kind="dense",
            model=str(DEMO_MODEL),
            index="Flat",
            shard_tokens=500,  # several parts
        ).shards[0]
        for engine in ("local", "ray")
    )
    assert len(local.tokens) > 2000
    np.testing.assert_array_equal(remote.tokens, local.tokens)
    np.testing.assert_array_equal(remote.transform, local.transform)
    (vectors,), (others,) = local.blocks(), remote.blocks()
    np.testing.assert_allclose(others, vectors, atol=1e-3)
    for vector in vectors[::50]:
        near, places = local.search(vector, 10)
        if near[0] > 0:  # not the end of a document
            close, same = remote.search(vector, 10)
            np.testing.assert_allclose(close, near, atol=1e-3)
            np.testing.assert_allclose(vectors[same] @ vector, vectors[places] @ vector, atol=1e-3)


def test_workers_must_know_how_states_are_projected(tmp_path: Path) -> None:
    options = {"engine": "ray", "kind": "dense", "model": str(DEMO_MODEL)}
    with pytest.raises(CorpusError, match="give files instead"):
        built(tmp_path / "new", ["-"], **options)
    assert not (tmp_path / "new").exists()


class Late(executors.LocalExecutor):
    """Indexes only when the result is wanted, several shards later, as a cluster may."""

    max_pending = 3

    def start_index(self, builder: executors.IndexBuilder, tokens: Any, vocab: int) -> Any:
        return lambda: builder(tokens, vocab)


def test_shards_that_come_late_are_listed_in_order(tmp_path: Path) -> None:
    corpus = Corpus(find([str(texts(tmp_path / "texts"))]))
    options = BuildOptions(shard_tokens=400)
    build(tmp_path / "local", corpus, Letters(), options, stop, silent)
    build(tmp_path / "late", corpus, Letters(), options, stop, silent, executor=Late())
    assert files(tmp_path / "late") == files(tmp_path / "local")
    seen = 0

    def interrupt(documents: int, tokens: int) -> None:
        nonlocal seen
        seen += documents
        if seen > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "broken", corpus, Letters(), options, stop, interrupt, executor=Late())
    build(tmp_path / "broken", corpus, Letters(), options, stop, silent, executor=Late())
    assert files(tmp_path / "broken") == files(tmp_path / "local")


def test_engines_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(executors.EXECUTORS["local"](), executors.LocalExecutor)
    with pytest.raises(StoreError, match="local, ray, not 'spark'"):
        BuildOptions(engine="spark")

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(executors, "import_module", missing)
    with pytest.raises(StoreError, match=r"pip install 'hf-specplug\[ray\]'"):
        executors.EXECUTORS["ray"]()
