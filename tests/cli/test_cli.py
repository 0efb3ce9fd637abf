"""The command line, as a user would call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_specplug import DEMO_MODEL, __version__
from hf_specplug.bench.demo import Recorder
from hf_specplug.cli.demo import run
from tests.helpers.oracle import Replay
from tests.helpers.runs import new_tokens, plain, plugged
from tests.helpers.zoo import make, prompt


def specplug(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hf_specplug.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


COMMANDS = ["demo", "record", "simulate", "tune-tree", "learn-priors", "bench", "bench report"]
COMMANDS += ["bench engine", "audit", "build", "append", "merge", "info", "check", "query"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command: str) -> None:
    result = specplug(*command.split(), "--help")
    assert result.returncode == 0
    assert f"Example: specplug {command}" in result.stdout


def test_help_names_every_command() -> None:
    for arguments, code in ((["--help"], 0), ([], 2)):
        result = specplug(*arguments)
        assert result.returncode == code
        text = result.stdout + result.stderr
        assert all(
            command in text for command in ("demo", "record", "simulate", "bench", "Example:")
        )


def test_version() -> None:
    assert specplug("--version").stdout.strip() == f"hf-specplug {__version__}"


def test_demo() -> None:
    arguments = ["--tokens", "40", "--prompt", "Add two numbers.", "--threads", "1"]
    result = specplug("demo", *arguments)
    assert result.returncode == 0, result.stderr
    assert "identical" in result.stdout
    assert "DIFFERENT" not in result.stdout
    assert "accept" in result.stdout
    assert "Add two numbers." in result.stdout


def test_bad_input_is_one_friendly_line(tmp_path: Path) -> None:
    for arguments, message in (
        (["--dtype", "int8"], "must be float32, bfloat16, float16 or float64"),
        (["--model", str(tmp_path / "nowhere")], "nowhere"),
    ):
        result = specplug("demo", *arguments)
        assert result.returncode == 1
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    assert specplug("demo", "--tokens", "x").returncode == 2


def test_demo_reports_identity(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert run(None, ["Write a loop."], 20, "float32", threads, color=True, store=False)
    assert "Write a loop." in capsys.readouterr().out


def test_the_recorder_knows_where_tokens_came_from() -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    recorder = Recorder()
    settings = {"max_new_tokens": 40, "do_sample": False}
    expected, _ = plain(model, inputs, **settings)
    replay = Replay(new_tokens(expected, 40), wrong=lambda p: p % 3 == 0)
    output, _, plug = plugged(model, inputs, [replay, recorder], nodes=8, **settings)
    assert output.tolist() == expected.tolist()
    assert len(recorder.origins) == 40
    assert sum(origin & 1 for origin in recorder.origins) == plug.stats.accepted > 0


@pytest.mark.slow
def test_bench_engine(tmp_path: Path) -> None:
    texts, out = tmp_path / "answers.jsonl", tmp_path / "figures.json"
    answer = "The sum of two numbers is written with a plus sign between the two numbers. " * 3
    lines = [{"task": task, "prompt": "Add two numbers.", "response": answer} for task in "ab"]
    texts.write_text("\n".join(map(json.dumps, lines)))
    arguments = ["--model", str(DEMO_MODEL), "--texts", str(texts), "--per-task", "1"]
    arguments += ["--tokens", "40", "--contexts", "30", "--dtype", "float32", "--out", str(out)]
    result = specplug("bench", "engine", *arguments)
    assert result.returncode == 0, result.stderr
    for word in ("prompt lookup", "static cache", "specplug eager", "x generate", "folded heads"):
        assert word in result.stdout
    report = json.loads(out.read_text())
    assert len(report["rows"]) == 2
    assert all(row["specplug"] > 0 for row in report["rows"])
    assert report["versions"]["torch"] == torch.__version__
    assert set(report["milliseconds by width"]["specplug at 30"]) == {"1", "8", "16", "32", "64"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--dtype", "int8"], "float32, bfloat16, float16 or float64"),
        (["--contexts", "12,many"], "numbers of tokens"),
        (["--tokens", "400"], "no answer of 96 tokens"),
        (["--texts", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bench_engine_says_what_is_wrong(tmp_path: Path, change: list[str], message: str) -> None:
    texts = tmp_path / "answers.jsonl"
    texts.write_text('{"task": "a", "prompt": "Hello.", "response": "Hi."}')
    arguments = ["--model", str(DEMO_MODEL), "--texts", str(texts), "--dtype", "float32", *change]
    result = specplug("bench", "engine", *arguments)
    assert result.returncode == 1
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr


TOKENIZER = ["--tokenizer", str(DEMO_MODEL)]


@pytest.mark.slow
def test_a_store_from_the_command_line(tmp_path: Path) -> None:
    """Build, info, query, append, merge, check: as in the README."""
    corpus, store = tmp_path / "texts", str(tmp_path / "my.store")
    corpus.mkdir()
    (corpus / "a.py").write_text("def add(one, other):\n    return one + other\n" * 30)
    (corpus / "b.jsonl").write_text('{"text": "a text"}\n' * 3)
    result = specplug("build", store, str(corpus), *TOKENIZER, "--dedup", "--memory", "64M")
    assert result.returncode == 0, result.stderr
    assert "complete" in result.stdout
    info = json.loads(specplug("info", store, "--format", "json").stdout)
    assert (info["documents"], info["shards"]) == (2, 1)
    assert info["tokens"] > 100
    rows = json.loads(specplug("query", store, "    return one", "--format", "json").stdout)
    assert rows[0]["parent"] == -1
    assert "+" in "".join(row["text"] for row in rows)
    assert "%" in specplug("query", store, "    return one").stdout
    assert "nothing" in specplug("query", store, "zebra quartz").stdout
    (corpus / "c.txt").write_text("more text")
    assert specplug("append", store, str(corpus / "c.txt")).returncode == 0
    assert specplug("merge", store).returncode == 0
    assert "unchanged since it was written" in specplug("check", store, "--deep").stdout
    info = json.loads(specplug("info", store, "--format", "json").stdout)
    assert (info["documents"], info["shards"]) == (3, 1)
    result = specplug("simulate", str(tmp_path / "no.rec"), "--datastore", store)
    assert result.returncode == 1
    for path in Path(store).glob("*.tokens.npy"):
        raw = bytearray(path.read_bytes())
        raw[-2] ^= 1
        path.write_bytes(raw)
    result = specplug("check", store)
    assert result.returncode == 1
    assert "changed since it was written" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing/*.txt"], "matches no file"),
        (["a.jsonl"], "a.jsonl, line 2: not JSON"),
        (["a.jsonl", "--memory", "much"], "--memory is a size"),
        (["a.jsonl", "--on-error", "ask"], "stop or skip"),
    ],
)
def test_build_says_what_is_wrong(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\nnot json\n')
    arguments = [str(tmp_path / arguments[0]), *arguments[1:]]
    result = specplug("build", str(tmp_path / "store"), *arguments, *TOKENIZER)
    assert result.returncode == 1
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_command_that_failed_can_be_corrected(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('not json\n{"text": "one"}\n')
    store, corpus = str(tmp_path / "store"), str(tmp_path / "a.jsonl")
    assert specplug("build", store, corpus, *TOKENIZER, "--kind", "trigram").returncode == 1
    result = specplug("build", store, corpus, *TOKENIZER, "--on-error", "skip")
    assert result.returncode == 0, result.stderr
    assert json.loads(specplug("info", store, "--format", "json").stdout)["kind"] == "suffix"


@pytest.mark.slow
def test_build_skips_what_it_is_told_to_skip(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\nnot json\n{"text": "two"}\n')
    store = str(tmp_path / "store")
    arguments = [str(tmp_path / "a.jsonl"), *TOKENIZER, "--on-error", "skip"]
    result = specplug("build", store, *arguments)
    assert result.returncode == 0
    assert "line 2" in result.stderr
    assert json.loads(specplug("info", store, "--format", "json").stdout)["documents"] == 2
    result = specplug("build", str(tmp_path / "other"), str(tmp_path / "a.jsonl"))
    assert "--tokenizer NAME_OR_PATH" in result.stderr
