"""`specplug bench`: what it asks, what it counts, what it keeps, and what it says."""

from __future__ import annotations

import copy
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import StoppingCriteria, StoppingCriteriaList
from typer.testing import CliRunner

from hf_specplug import DEMO_MODEL, Stats
from hf_specplug.bench import methods, page, prompts, results, tables
from hf_specplug.bench.compare import Benchmark, Options
from hf_specplug.bench.generation import first_difference
from hf_specplug.cli import app
from hf_specplug.errors import OptionError, RecordingError
from hf_specplug.hf.prompts import prompt_ids
from hf_specplug.telemetry import plots
from hf_specplug.tree import EMPTY, DraftTree
from tests.helpers.zoo import make


def bench(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def jsonl(path: Path, *lines: Any) -> Path:
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return path


TWO = [{"task": "qa", "id": "1", "turns": ["What is a loop?", "And a stack?"]}]
TWO += [{"task": "rag", "id": "2", "prompt": "Say hello."}]


def run(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "prompts": str(jsonl(tmp_path / "two.jsonl", *TWO)),
        "methods": "prompt-lookup,specplug:nodes=8:pack=no",
        "tokens": 14,
    }
    out = changes.pop("out", str(tmp_path / "out.json"))
    benchmark = Benchmark(Options(**{**asked, **changes}), out)
    benchmark.run()
    return benchmark.results


# what it asks


def test_the_built_in_prompts_have_every_task_of_spec_bench() -> None:
    asked = prompts.load(None)
    assert {question.task for question in asked} == set(prompts.TASKS)
    assert any(len(question.turns) == 2 for question in asked)
    assert len(prompts.load(None, per_task=1)) == len(prompts.TASKS)


def test_spec_benchs_own_lines_are_read_as_they_are(tmp_path: Path) -> None:
    lines = [
        {"question_id": n, "category": category, "turns": ["one", "two"], "reference": ["x"]}
        for n, category in enumerate(["writing", "stem", "translation", "humanities"])
    ]
    asked = prompts.load(str(jsonl(tmp_path / "question.jsonl", *lines)))
    assert [question.task for question in asked] == ["mt_bench"] * 3 + ["translation"]
    assert [question.name for question in asked] == ["0", "1", "3", "2"]
    assert asked[0].turns == ["one", "two"]


@given(st.integers(1, 30), st.integers(1, 30))
def test_prompts_are_spread_over_the_file(count: int, per_task: int) -> None:
    questions = [prompts.Question("a", str(n), ["x"]) for n in range(count)]
    names = [int(question.name) for question in prompts.spread(questions, per_task)]
    assert len(names) == min(count, per_task)
    gaps = {b - a for a, b in itertools.pairwise(names)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 1 is not JSON"),
        ([{"turns": ["a"]}, {"text": "b"}], "line 2 needs a text"),
        ([{"turns": ["a", ""]}], "must be texts"),
        ([{"turns": ["a", 3]}], "must be texts"),
        ([{"id": 1, "prompt": "a"}, {"id": 1, "prompt": "b"}], '"id" must be unique'),
        ([], "holds no prompts"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, lines: list[Any], message: str) -> None:
    path = jsonl(tmp_path / "bad.jsonl", *lines)
    result = bench("--prompts", path)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


# ways to decode


def test_methods_by_their_names() -> None:
    names = "specplug:-stand:+trigram:nodes=8:pack=no:static,prompt-lookup:3,specplug,static"
    plain, own, lookup, default, static = methods.parse(names)
    assert plain.name == "plain"
    assert plain.arguments == {"assistant": None}
    assert own.plug is not None
    assert [drafter.name for drafter in own.plug.drafters] == [
        "context",
        "recycling",
        "frequency",
        "sparse",
        "gumbel",
        "trigram",
    ]
    assert (own.plug.nodes, own.plug.pack) == (8, False)
    assert own.settings == static.settings == {"cache_implementation": "static"}
    assert lookup.settings == {"prompt_lookup_num_tokens": 3}
    assert default.plug is not None
    assert default.plug is not own.plug
    published = methods.parse("specplug:published=token-recycling")[1].plug
    assert published is not None
    assert published.published == "token-recycling"


@pytest.mark.parametrize(
    "name",
    [
        "eagle",
        "plain:x",
        "prompt-lookup:0",
        "specplug:-rest",
        "specplug:nodes=",
        "specplug:stand",
        "specplug:+nothing",
        "specplug:nodes=5000",
        "specplug:published=eagle",
    ],
)
def test_methods_that_are_none(name: str) -> None:
    with pytest.raises(OptionError):
        methods.parse(name)


# what it counts


trees = st.lists(st.tuples(st.integers(1, 9), st.floats(0.01, 1), st.integers(0, 9)), max_size=8)


def observed(steps: list[tuple[int, float, int]]) -> Stats:
    stats = Stats()
    for size, prob, hits in steps:
        path = DraftTree.path(torch.arange(size, dtype=torch.int32).numpy())
        path.probs[:] = prob
        visited = list(range(min(hits, size) + 1))
        stats.observe(path, visited, ["context", "stand"])
        stats.observe_rows([path, EMPTY], [visited, [0]], ["context", "stand"])
        stats.seconds["verify"] += prob
    stats.observe(EMPTY, [0], ["context", "stand"])
    stats.fallbacks["reason"] += len(steps)
    return stats


@given(trees, trees)
def test_counters_of_two_runs_add_up(one: Any, other: Any) -> None:
    both = results.merged(observed(one).to_dict(), observed(other).to_dict())
    whole = observed([*one, *other])
    whole.observe(EMPTY, [0], [])
    expected = whole.to_dict()
    assert both.pop("seconds") == pytest.approx(expected.pop("seconds"))
    assert both.pop("accept_length") == pytest.approx(expected.pop("accept_length"))
    bins, others = both.pop("calibration"), expected.pop("calibration")
    assert bins["ece"] == pytest.approx(others["ece"], abs=1e-3)
    assert bins["predicted"] == pytest.approx(others["predicted"], abs=1e-3)
    assert (bins["count"], bins["accepted"]) == (others["count"], others["accepted"])
    assert both == expected


def test_speeds_by_the_formulas() -> None:
    def row(name: str, task: str, plain: tuple[int, float], own: tuple[int, float]) -> Any:
        runs = {
            method: {"tokens": tokens, "seconds": seconds, "forwards": forwards, "differs_at": at}
            for method, (tokens, seconds), forwards, at in (
                ("plain", plain, plain[0], None),
                ("x", own, 5, 3 if task == "b" else None),
            )
        }
        return {"name": name, "task": task, "runs": runs}

    rows = [row("1", "a", (10, 1.0), (10, 0.5)), row("1", "a", (10, 1.0), (10, 0.5))]
    found = {"rows": [*rows, row("2", "b", (30, 1.0), (20, 1.0))]}
    on_a, whole = results.summary(found, "x", "a"), results.summary(found, "x")
    assert (on_a.speed, on_a.spec_bench, on_a.identical) == (2.0, 2.0, 2)
    assert whole.tokens_per_second == 40 / 2
    assert whole.speed == pytest.approx((40 / 2) / (50 / 3))
    assert whole.spec_bench == pytest.approx(((20 / 1 + 20) / 2) / ((20 / 2 + 30) / 2))
    assert whole.quartiles[1] == 2.0
    assert whole.tokens_per_forward == 40 / 15
    assert (whole.identical, whole.answers) == (2, 3)


def test_the_first_other_token() -> None:
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 3], [1, 2]) == 1
    assert first_difference([1], [1, 2]) == 1
    assert first_difference([1, 2, 3], [1, 2]) == 2


# runs


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(tmp_path)
    assert json.loads((tmp_path / "out.json").read_text()) == found
    assert [(row["name"], row["turn"]) for row in found["rows"]] == [("1", 0), ("1", 1), ("2", 0)]
    for row in found["rows"]:
        plain, lookup = row["runs"]["plain"], row["runs"]["prompt-lookup"]
        own = row["runs"]["specplug:nodes=8:pack=no"]
        assert plain["tokens"] == plain["forwards"] == len(row["answer"]) > 5
        assert lookup["differs_at"] is own["differs_at"] is None
        assert own["forwards"] <= plain["forwards"]
        assert lookup["forwards"] <= plain["forwards"]
    assert found["rows"][1]["prompt_tokens"] > found["rows"][0]["prompt_tokens"] + 5
    stats = found["stats"]["specplug:nodes=8:pack=no"]
    forwards = sum(row["runs"]["specplug:nodes=8:pack=no"]["forwards"] for row in found["rows"])
    assert stats["forwards"] == forwards - 3  # one prompt each
    assert stats["tokens"] == sum(len(row["answer"]) - 1 for row in found["rows"])
    assert set(found["milliseconds"]["by_width"]) == {"1", "8", "16", "32", "64"}
    labels = set(found["ablation"]["rows"])
    assert {"all", "context alone", "without stand"} <= labels
    assert not any("gumbel" in label for label in labels)
    assert found["machine"]["cpu"]
    tables.show(found, Console())
    text = capsys.readouterr().out
    assert "3 of 3" in text
    assert "Question Answering" in text
    assert "#Mean Accepted Tokens" in text


def test_sampled_answers_are_compared_with_the_same_seed(tmp_path: Path) -> None:
    found = run(tmp_path, temperature=1.0, methods="specplug")
    assert all(row["runs"]["specplug"]["differs_at"] is None for row in found["rows"])
    greedy = run(tmp_path, methods="specplug", out=None)
    assert found["rows"][0]["answer"] != greedy["rows"][0]["answer"]


def add_method(monkeypatch: pytest.MonkeyPatch, name: str, made: methods.Method) -> None:
    """Register a method, until the test has ended."""
    monkeypatch.setitem(methods.METHODS, name, (name, lambda *_: made))


class Interrupt(StoppingCriteria):
    """Ends the process's work as Control-C does, once the model answers a certain prompt."""

    def __init__(self, prompt: list[int]) -> None:
        self.prompt = prompt
        self.armed = True

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if self.armed and input_ids[0, : len(self.prompt)].tolist() == self.prompt:
            raise KeyboardInterrupt
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_what_was_measured_is_kept_and_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    interrupt = Interrupt(prompt_ids(tokenizer, TWO[1]["prompt"]))  # the second question
    settings = {"stopping_criteria": StoppingCriteriaList([interrupt])}
    add_method(monkeypatch, "interrupted", methods.Method("interrupted", settings))
    own = "specplug:nodes=8:pack=no"
    arguments = ["--prompts", jsonl(tmp_path / "two.jsonl", *TWO), "--tokens", "12"]
    arguments += ["--methods", f"{own},interrupted", "--out", tmp_path / "out.json"]
    result = bench(*arguments, "--html", tmp_path / "part.html")
    assert result.exit_code == 130
    assert "the same command continues" in result.stderr
    assert "2 of 2" in result.stdout
    begun = results.read(str(tmp_path / "out.json"))
    assert [row["name"] for row in begun["rows"]] == ["1", "1"]
    assert "2 of 2" in (tmp_path / "part.html").read_text()

    interrupt.armed = False
    assert bench(*arguments).exit_code == 0
    whole = results.read(str(tmp_path / "out.json"))
    assert whole["rows"][:2] == begun["rows"]
    assert [row["name"] for row in whole["rows"]] == ["1", "1", "2"]
    assert whole["stats"][own]["tokens"] == sum(len(row["answer"]) - 1 for row in whole["rows"])
    assert whole["ablation"]

    (tmp_path / "two.html").unlink(missing_ok=True)
    again = bench("report", tmp_path / "out.json", tmp_path / "two.html")
    assert again.exit_code == 0
    assert "3 of 3" in (tmp_path / "two.html").read_text()


def test_a_report_of_version_0_1_is_read(tmp_path: Path) -> None:
    """The results that the documentation holds, which an earlier version wrote."""
    (path,) = (Path(__file__).parents[2] / "docs" / "bench").glob("chat*.json")
    stats = next(iter(results.read(str(path))["stats"].values()))
    assert {"prepared", "preparing"} <= set(stats)
    again = bench("report", path, tmp_path / "report.html")
    assert again.exit_code == 0, again.output
    text = (tmp_path / "report.html").read_text()
    assert text.count("<figure>") == text.count("<svg") >= 4


def test_another_run_is_not_overwritten(tmp_path: Path) -> None:
    out = jsonl(tmp_path / "out.json", results.new({"machine": {}, "versions": {}}, {"tokens": 3}))
    result = bench("--out", out, "--tokens", "5")
    assert result.exit_code == 1
    assert "holds a run with other arguments (" in result.stderr
    assert "tokens" in result.stderr
    jsonl(out, {"rows": 3})
    result = bench("--out", out)
    assert result.exit_code == 1
    assert "is not what `specplug bench --out` writes" in result.stderr
    with pytest.raises(RecordingError):
        results.read(str(jsonl(out, "[]")))


def test_one_line_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in DEMO_MODEL.iterdir():
        if file.is_file():
            (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"no weights")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for arguments, message in (
        (["--model", tmp_path / "nowhere"], "cannot be loaded"),
        (["--model", broken], "cannot be loaded"),
        (["--prompts", tmp_path / "nowhere.jsonl"], "nowhere.jsonl"),
        (["--methods", "eagle"], "methods are plain"),
        (["--dtype", "int8"], "must be float32, bfloat16, float16 or float64"),
        (["--datastore", tmp_path], "datastore"),
        (["--out", tmp_path / "no" / "out.json"], "out.json"),
        (["--tokens", "100000"], "no prompt leaves the model room"),
        (["--batch", "2,none"], "--batch takes numbers of rows"),
        (["--samples", "2", "--batch", "2"], "--samples 2 needs --batch, and a --temperature"),
        (["--batch", "100"], "a batch of 100 rows needs as many prompts"),
        (["--html", tmp_path / "report.html"], 'pip install "hf-specplug[plot]"'),
    ):
        result = bench("--per-task", "1", "--methods", "plain", *arguments)
        assert result.exit_code == 1, result.output
        (line,) = [
            line for line in result.stderr.splitlines() if line.startswith("specplug bench:")
        ]
        assert message in line
        assert "Traceback" not in result.output


def test_a_method_that_cannot_run_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = "assisted generation is not supported with stateful models"

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError(refused)

    settings = {"stopping_criteria": StoppingCriteriaList([refuse])}
    add_method(monkeypatch, "refusing", methods.Method("refusing", settings))
    found = run(tmp_path, methods="refusing,specplug:nodes=8:pack=no")
    page.write(str(tmp_path / "report.html"), found)
    assert results.methods(found) == ["plain", "specplug:nodes=8:pack=no"]
    assert "refusing cannot run this model: ValueError" in results.notes(found)[0]
    assert "stateful models" in (tmp_path / "report.html").read_text()


def test_a_model_that_cannot_be_drafted(tmp_path: Path, tokenizer: Any) -> None:
    recurrent = make("mamba2")
    config = copy.deepcopy(recurrent.config)
    config.vocab_size = len(tokenizer)
    folder = tmp_path / "recurrent"
    type(recurrent)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = run(tmp_path, model=str(folder))
    page.write(str(tmp_path / "report.html"), found)
    assert results.methods(found) == ["plain", "specplug:nodes=8:pack=no"]
    assert not found["milliseconds"]
    assert not found["ablation"]
    notes = results.notes(found)
    assert notes[0].startswith("prompt-lookup cannot run this model: ValueError")
    assert "recurrent" in notes[1]
    for row in found["rows"]:
        own = row["runs"]["specplug:nodes=8:pack=no"]
        assert own["forwards"] == own["tokens"]
        assert own["differs_at"] is None
    assert "cannot run this model" in (tmp_path / "report.html").read_text()


def test_the_report_needs_nothing_else(tmp_path: Path) -> None:
    found = run(tmp_path, dtype="bfloat16")
    found["rows"][0]["runs"]["prompt-lookup"]["differs_at"] = 7
    found["arguments"]["model"] = "<script>alert(1)</script>"
    page.write(str(tmp_path / "again.html"), found)
    text = (tmp_path / "again.html").read_text()
    assert "<script" not in text
    assert "http://" not in text.replace("http://www.w3.org/", "")
    assert "https://" not in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("<figure>") == text.count("<svg") == 4
    assert "<td>prompt-lookup</td><td>1</td><td>1</td><td>8</td><td>14</td>" in text
    for word in ("Retrieval-aug. Generation", "#Mean Accepted Tokens", "ms per forward pass"):
        assert word in text
    ids = plots.re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
