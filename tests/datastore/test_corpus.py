"""Reading corpora: every kind of file, in order, and errors that name file and line."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hf_specplug.datastore.building import corpus as corpora
from hf_specplug.datastore.building.corpus import Corpus, find
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.building.recipe import load
from hf_specplug.errors import CorpusError
from tests.helpers.stores import stop

ROWS = [{"text": "one"}, {"text": "two\nlines", "other": 3}]
LINES = "\n".join(map(json.dumps, ROWS)) + "\n\n"


def read(*patterns: Path | str, field: str = "text") -> list[str]:
    return list(Corpus(find([str(each) for each in patterns]), field).documents(stop))


def test_every_kind(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.txt").write_text("plain é")
    (tmp_path / "b.jsonl").write_text(LINES)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress(LINES.encode()))
    parquet.write_table(arrow.table({"text": ["one", "two\nlines"]}), tmp_path / "e.parquet")
    both = ["one", "two\nlines"]
    assert read(tmp_path / "a.txt") == ["plain é"]
    for name in ("b.jsonl", "c.jsonl.gz", "d.jsonl.zst", "e.parquet"):
        assert read(tmp_path / name) == both, name
    assert read(tmp_path) == ["plain é", *both * 4]
    assert read(tmp_path / "*.jsonl", tmp_path / "b.jsonl") == both


def test_folders(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.md", ".git/config", "a/__pycache__/x.pyc", "a/.hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    assert read(tmp_path) == ["a/z.md", "b.py"]
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    assert read(tmp_path / "latin.txt") == ["\ufffd"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="contains no text files"):
        find([str(tmp_path / "empty")])
    with pytest.raises(CorpusError, match="matches no file or folder"):
        find([str(tmp_path / "*.nothing")])


def test_chats_and_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}))
    assert read(tmp_path / "chat.jsonl", field="messages") == ["hi\n\nhello"]
    stdin = SimpleNamespace(buffer=io.BytesIO(b"typed"))
    monkeypatch.setattr(corpora.sys, "stdin", stdin)
    assert read("-") == ["typed"]


def test_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, split: str, streaming: bool) -> Any:
        assert (path, split, streaming) == ("me/chats", "test", True)
        return iter(ROWS)

    module = SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setattr(corpora, "import_module", lambda name: module)
    assert read("hf://me/chats:test") == ["one", "two\nlines"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": ', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"content": "x"}', "line 1: no text in 'text' .*it has content"),
        ("a.jsonl", b'{"text": 3}', "line 1: no text in 'text'"),
        ("a.jsonl", b"[1]", "it has no fields"),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-9], "a.jsonl.gz, after line"),
        ("a.jsonl.gz", b"no gzip at all", "a.jsonl.gz cannot be read"),
        ("a.parquet", b"PAR1 not really", "cannot be read as parquet"),
    ],
)
def test_errors_name_the_place_and_can_be_skipped(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "z.txt").write_text("after")
    with pytest.raises(CorpusError, match=message):
        read(tmp_path / name)
    errors: list[CorpusError] = []
    texts = list(Corpus(find([str(tmp_path)])).documents(errors.append))
    assert texts[-1] == "after"
    assert len(errors) == 1


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    monkeypatch.setattr(corpora, "import_module", missing)
    with pytest.raises(CorpusError, match=r"needs zstandard: pip install 'hf-specplug\[corpora\]'"):
        read(tmp_path / "a.jsonl.zst")


def test_fingerprints(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    first = Corpus(find([str(tmp_path)])).fingerprint()
    assert Corpus(find([str(tmp_path)])).fingerprint() == first
    assert Corpus(find([str(tmp_path)]), "other").fingerprint() != first
    (tmp_path / "a.txt").write_text("longer")
    assert Corpus(find([str(tmp_path)])).fingerprint() != first


def test_recipes(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("note")
    path = tmp_path / "recipe.toml"
    path.write_text('tokenizer = "here"\ncorpus = ["notes/*.md"]\nmax_tokens = 50\ndedup = true')
    corpus, options = load([str(path)], BuildOptions())
    assert list(corpus.documents(stop)) == ["note"]
    assert (options.tokenizer, options.max_tokens, options.dedup) == ("here", 50, True)
    path.write_text('corpus = ["{stdlib}"]')
    assert any(
        name.endswith("dataclasses.py") for name in load([str(path)], BuildOptions())[0].files
    )
    for content, message in (
        ("corpus = [", "not TOML"),
        ("", "names no corpus"),
        ('corpus = ["x"]\ncorpsu = 3', "'corpsu' is unknown"),
        ('corpus = "x"', "must be of type list"),
        ('corpus = ["notes"]\nmax_tokens = true', "must be of type int"),
    ):
        path.write_text(content)
        with pytest.raises(CorpusError, match=message):
            load([str(path)], BuildOptions())
