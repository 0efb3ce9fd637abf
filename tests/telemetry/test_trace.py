"""Traces: what was emitted is in them, in order, and is shown whatever tokens it is made of."""

from __future__ import annotations

import builtins
import copy
import pickle
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from rich.console import Console

from hf_specplug import DraftTree, SpecPlug, attach, detach
from hf_specplug.errors import OptionError, PlotError
from hf_specplug.telemetry.history import MAX_STEPS, CheckedStep, History, visible
from hf_specplug.telemetry.trace import SHOWN, Trace
from tests.helpers.oracle import Replay
from tests.helpers.runs import new_tokens, plain, plugged
from tests.helpers.zoo import make, prompt

NAMES = ("context", "recycling", "stand")
WORDS = ["def", " add", "(", "self", "_", "two", "\n"]


class Vocabulary:
    """A tokenizer of a few given texts."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def __len__(self) -> int:
        return len(self.words)

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(self.words[index] for index in ids)


def step(
    root: int, rows: list[tuple[int, int, float, int]], visited: list[int], emitted: list[int]
) -> CheckedStep:
    """A step from its nodes: token, parent, probability, sources."""
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    kinds = (np.int32, np.int32, np.float32, np.uint16)
    arrays = [np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return CheckedStep(root, DraftTree(*arrays), visited, emitted)


DRAFTED = step(
    0, [(1, -1, 0.62, 3), (4, 0, 0.11, 4), (2, 0, 0.9, 1), (5, 1, 0.25, 2)], [0, 1, 3], [1, 2, 3]
)
PLAIN = step(3, [], [0], [6])


def test_text_of_a_tree() -> None:
    trace = Trace([DRAFTED], NAMES, Vocabulary(WORDS), range(8, 9))
    assert str(trace) == (
        "step 8: 4 drafted, 2 accepted\n"
        "def\n"
        "└── ✓ ␣add 0.62 context, recycling\n"
        "    ├── ✓ ( 0.90 context ─ → self (the model's own)\n"
        "    └── _ 0.11 stand ─ two 0.25 recycling"
    )
    assert repr(trace) == str(trace)
    assert str(trace) in re.sub(r"\n {8}", "\n", Trace.__doc__ or "")  # as the documentation says


def test_text_without_a_tokenizer_and_of_plain_steps() -> None:
    trace = Trace([PLAIN, PLAIN, DRAFTED, PLAIN], NAMES)
    assert str(trace) == (
        "4 steps, 4 drafted, 2 accepted, 6 tokens\n\n"
        "steps 1 to 2: 2 plain steps: 66\n\n"
        "step 3: 4 drafted, 2 accepted\n"
        "0\n"
        "└── ✓ 1 0.62 context, recycling\n"
        "    ├── ✓ 2 0.90 context ─ → 3 (the model's own)\n"
        "    └── 4 0.11 stand ─ 5 0.25 recycling\n\n"
        "step 4: plain: 6"
    )


def test_text_in_colour() -> None:
    trace = Trace([DRAFTED], NAMES, Vocabulary(WORDS))
    console = Console(force_terminal=True, color_system="truecolor", width=80)
    with console.capture() as captured:
        console.print(trace)
    assert "\x1b[38;2;76;120;168mcontext\x1b[0m" in captured.get()  # 4c78a8
    assert re.sub(r"\x1b\[[\d;]*m", "", captured.get()).rstrip("\n") == str(trace)


def test_text_in_a_notebook_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace([DRAFTED], NAMES)
    expected = str(trace)
    shell = type("ZMQInteractiveShell", (), {})  # of Jupyter: there rich displays, not writes
    monkeypatch.setattr(builtins, "get_ipython", shell, raising=False)
    assert Console().is_jupyter
    assert str(trace) == expected


def test_a_long_trace_shows_its_beginning() -> None:
    trace = Trace([DRAFTED, PLAIN] * 20, NAMES)
    last = str(trace).splitlines()[-1]
    assert last == f"{40 - SHOWN} more steps: trace[5:10] shows the next"
    assert str(trace[5:10]).splitlines()[2].startswith("step 6: plain")
    assert last in trace._repr_html_()


def test_a_deep_tree_is_shown_whole() -> None:
    rows = [(token, token // 2 * 2 - 2 if token > 1 else -1, 0.5, 1) for token in range(120)]
    text = str(Trace([step(0, rows, [0], [7])], NAMES))
    assert all(f" {token} 0.50 context" in text for token in range(120))


def test_cutting() -> None:
    trace = Trace([DRAFTED, PLAIN, DRAFTED, PLAIN], NAMES)
    assert (len(trace), len(trace[1:3]), len(trace[2])) == (4, 2, 1)
    assert list(trace[1:3]) == [PLAIN, DRAFTED]
    assert list(trace[-1]) == [PLAIN]
    assert list(trace[1:][1].numbers) == [3]
    assert str(trace[2:][0]).startswith("step 3: ")
    with pytest.raises(IndexError):
        trace[4]
    root, tree, visited, emitted = next(iter(trace))
    assert (root, len(tree), visited, emitted) == (0, 4, [0, 1, 3], [1, 2, 3])


def test_an_end_that_was_drafted_is_shown_once() -> None:
    ended = step(0, [(2, -1, 0.5, 1), (4, -1, 0.4, 1)], [0], [4])
    assert str(Trace([ended], NAMES)).splitlines()[2:] == [
        "├── → 4 0.40 context",
        "└── 2 0.50 context",
    ]


def boxes(svg: str) -> dict[str, dict[str, str]]:
    """Of each node of a drawn tree its rectangle, by text."""
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    found = {}
    for group in root.iter(f"{space}g"):
        rect, text = group.find(f"{space}rect"), group.find(f"{space}text")
        if group.find(f"{space}title") is not None and rect is not None and text is not None:
            found[text.text or ""] = dict(rect.attrib)
    return found


def test_picture_of_a_tree(tmp_path: Path) -> None:
    Trace([DRAFTED], NAMES, Vocabulary(WORDS)).save(tmp_path / "tree.svg")
    svg = (tmp_path / "tree.svg").read_text("utf-8")
    found = boxes(svg)
    assert set(found) == {"def", "␣add", "(", "self", "_", "two"}
    top = [found[text] for text in ("def", "␣add", "(", "self")]
    assert len({rect["y"] for rect in top}) == 1  # what the model said is one row
    lefts = [float(rect["x"]) for rect in top]
    assert lefts == sorted(lefts)
    assert found["_"]["x"] == found["("]["x"]
    assert found["_"]["y"] == found["two"]["y"] > found["("]["y"]
    assert found["("]["fill"] == found["("]["stroke"] == "#4c78a8"
    assert float(found["("]["stroke-width"]) > float(found["_"].get("stroke-width", 1))
    assert found["self"]["fill"] == "none"
    stripes = found["␣add"]["fill"]
    assert stripes == "url(#stripes-4c78a8-ec8a1c)"
    assert 'id="stripes-4c78a8-ec8a1c"' in svg
    titles = [
        title.text
        for title in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}title")
    ]
    assert "(  (token 2)\naccepted, predicted 0.90, proposed by context" in titles
    assert "prefers-color-scheme: dark" in svg


def test_boxes_do_not_meet(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for count in (1, 5, 30, 64):
        parents = [int(generator.integers(-1, i)) if i else -1 for i in range(count)]
        rows = [(i, parent, 0.5, 1 + i % 7) for i, parent in enumerate(parents)]
        Trace([step(999, rows, [0], [998])], NAMES).save(tmp_path / "tree.svg")
        found = list(boxes((tmp_path / "tree.svg").read_text("utf-8")).values())
        assert len(found) == count + 2
        corners = [[float(rect[key]) for key in ("x", "y", "width", "height")] for rect in found]
        for i, (x, y, width, height) in enumerate(corners):
            for to_x, to_y, to_width, to_height in corners[:i]:
                aside = x + width <= to_x or to_x + to_width <= x
                assert aside or y + height <= to_y or to_y + to_height <= y


HOSTILE = [
    "<script>alert(1)</script>",
    "\x00\x1b[31m",
    "\ud800",
    "",
    "\u202e&\"'",
    "a" * 50,
    "[red]",
]


def test_hostile_tokens(tmp_path: Path) -> None:
    rows = [(i, -1, 0.5, 1) for i in range(len(HOSTILE))]
    trace = Trace([step(0, rows, [0, 1], [0, 99])], ["<b>"], Vocabulary(HOSTILE))
    trace.save(tmp_path / "t.svg")
    trace.save(tmp_path / "t.html")
    root = ElementTree.fromstring((tmp_path / "t.svg").read_text("utf-8"))
    shown = "".join(root.itertext())
    pages = [trace._repr_html_(), (tmp_path / "t.html").read_text("utf-8")]
    for text in (shown, str(trace)):
        for name in ("\\x00\\x1b[31m", "\\ud800", "<3>", "\\u202e&\"'", "[red]", "<99>", "a" * 50):
            assert name in text
    for page in (*pages, str(trace)):
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e\ud800-\udfff]", page)
    for page in pages:
        assert "<script" not in page
        assert "<b>" not in page
    assert "aaaaaaaaaaa…" in shown


def test_visible() -> None:
    assert visible(" a\tb\n\r\u00a0é\u4e2d") == "␣a⇥b⏎\\r\\xa0é\u4e2d"


def test_words_keep_the_space_that_belongs_to_them(tokenizer: Any) -> None:
    ids = tokenizer(" return x", add_special_tokens=False)["input_ids"]
    steps = [step(0, [], [0], [token]) for token in ids]
    assert str(Trace(steps, NAMES, tokenizer)).endswith(": ␣return␣x")
    beyond = Trace([step(len(tokenizer) + 5, [], [0], [len(tokenizer) + 5])], NAMES, tokenizer)
    assert str(beyond) == f"step 1: plain: <{len(tokenizer) + 5}>"


def test_files(tmp_path: Path) -> None:
    trace = Trace([DRAFTED, PLAIN] * 20, NAMES, Vocabulary(WORDS))
    trace.save(tmp_path / "t.HTML")
    page = (tmp_path / "t.HTML").read_text("utf-8")
    assert page.count("4 drafted, 2 accepted</text>") == 20  # all of them
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"(src|href)=", page)
    for svg in re.findall(r"<svg.*?</svg>", page):
        ElementTree.fromstring(svg)
    for name in ("t.png", "t", "t.svg.gz"):
        with pytest.raises(PlotError, match=r"saved as \.html or \.svg, not as"):
            trace.save(tmp_path / name)
    with pytest.raises(OSError):
        trace.save(tmp_path / "nowhere" / "t.html")


def test_a_tape_keeps_the_last_steps() -> None:
    history = History(NAMES)
    for token in range(MAX_STEPS + 10):
        history.append(step(token, [], [0], [token + 1]))
    trace = Trace.of(history)
    assert len(trace) == MAX_STEPS
    assert (trace.numbers[0], trace.numbers[-1]) == (11, MAX_STEPS + 10)
    assert str(trace[0]) == "step 11: plain: 11"
    history.append(PLAIN)
    assert trace.numbers[-1] == MAX_STEPS + 10  # a snapshot


@pytest.mark.parametrize("do_sample", [False, True])
def test_of_a_real_call(demo_model: Any, tokenizer: Any, do_sample: bool) -> None:
    chat = [{"role": "user", "content": "Write a Python class for a stack, and tests for it."}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    settings: dict[str, Any] = {"max_new_tokens": 60, "do_sample": do_sample}
    output, _, plug = plugged(demo_model, inputs, ["context", "recycling"], nodes=16, **settings)
    trace, stats = plug.trace(tokenizer), plug.stats
    answer = output[0, inputs["input_ids"].shape[1] :].tolist()
    assert [token for step in trace for token in step.emitted] == answer[1:]
    assert [step.root for step in trace] == [
        answer[0],
        *(step.emitted[-1] for step in list(trace)[:-1]),
    ]
    for root, tree, visited, emitted in trace:
        path = [root, *tree.tokens[np.array(visited[1:], int) - 1].tolist()]
        assert path[1:] == emitted[: len(path) - 1]
    assert len(trace) == stats.forwards
    assert sum(len(step.tree) for step in trace) == stats.drafted > 0
    assert sum(len(step.visited) - 1 for step in trace) == stats.accepted > 0
    drafted = next(i for i, step in enumerate(trace) if len(step.visited) > 2)
    text = str(trace[drafted])
    assert text.count("✓") == len(trace.steps[drafted].visited) - 1
    assert "→" in text
    named = re.findall(r"context|recycling", text)
    assert len(named) == sum(bin(source).count("1") for source in trace.steps[drafted].tree.sources)


def test_the_last_drafted_call_is_kept() -> None:
    model = make("llama")
    inputs, settings = prompt(model), {"max_new_tokens": 20, "do_sample": False}
    expected, _ = plain(model, inputs, **settings)
    plug = attach(model, drafters=Replay(new_tokens(expected, 20), siblings=0), nodes=5)
    try:
        with pytest.raises(PlotError, match=r"no call yet; run model\.generate first"):
            plug.trace()
        model.generate(**inputs, **settings)
        first = plug.trace()
        assert [len(step.visited) for step in first] == [5, 5, 5, 4]
        model.generate(**inputs, max_new_tokens=5, do_sample=False)
        model.generate(**inputs, **settings, num_beams=2)  # runs plainly
        assert [len(step.visited) for step in plug.trace()] == [4]
        assert len(first) == 4
        with pytest.raises(OptionError, match="not str"):
            plug.trace("gpt2")
    finally:
        detach(model)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda plug: pickle.loads(pickle.dumps(plug))])
def test_copies_start_without_a_trace(tokenizer: Any, copied: Any) -> None:
    model = make("llama")
    plug = SpecPlug(drafters=["context"], tokenizer=tokenizer)
    model.generate(**prompt(model), max_new_tokens=9, do_sample=False, custom_generate=plug)
    twin = copied(plug)
    with pytest.raises(PlotError, match="nothing to trace"):
        twin.trace()
    model.generate(**prompt(model), max_new_tokens=9, do_sample=False, custom_generate=twin)
    assert sum(len(step.emitted) for step in twin.trace()) == 8
    assert sum(len(step.emitted) for step in plug.trace()) == 8


def test_the_plugs_own_tokenizer(demo_model: Any, tokenizer: Any) -> None:
    plug = SpecPlug(drafters=["context"], tokenizer=tokenizer)
    ids = tokenizer("def add(a, b):", return_tensors="pt")
    torch.manual_seed(0)
    output = demo_model.generate(**ids, max_new_tokens=3, do_sample=False, custom_generate=plug)
    assert str(plug.trace()) == str(plug.trace(tokenizer))
    assert visible(tokenizer.decode(output[0, -1:])).strip("␣") in str(plug.trace())
    demo_model.generate(**ids, max_new_tokens=1, do_sample=False, custom_generate=plug)
    assert str(plug.trace()) == "0 steps, 0 drafted, 0 accepted, 0 tokens"  # the prompt gave it
    assert "0 steps" in plug.trace()._repr_html_()
