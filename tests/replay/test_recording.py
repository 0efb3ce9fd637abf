"""Recordings: written and read back, made by a model, damaged ones refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_specplug import DEMO_MODEL
from hf_specplug.drafters.contract import TOP_K, TopK
from hf_specplug.errors import RecordingError
from hf_specplug.replay.record import record
from hf_specplug.replay.recording import FORMAT, RecordedText, Recording, load

TEXTS = [
    {
        "task": "code",
        "prompt": "Write a function that adds.",
        "response": "def add(a, b):\n  a + b",
    },
    {"task": "code", "turns": ["Write a function that multiplies.", "Now one that divides."]},
    {"prompt": "What is a list?"},
]


def recorded(name: str, task: str, tokens: list[int], prompt: int) -> RecordedText:
    rng = np.random.default_rng(len(tokens))
    ids = rng.integers(0, 50, (len(tokens), TOP_K)).astype(np.int32)
    probs = rng.random((len(tokens), TOP_K)).astype(np.float16).astype(np.float32)
    return RecordedText(task, name, np.array(tokens, np.int32), prompt, TopK(ids, probs))


def recording() -> Recording:
    return Recording(
        "m", 50, [recorded("1", "a", [1, 2, 3], 2), recorded("2", "b", [4, 5, 6, 7], 1)]
    )


def test_round_trip(tmp_path: Path) -> None:
    made = recording()
    made.save(tmp_path / "r")
    back = load(tmp_path / "r")
    assert (back.model, back.vocab_size, len(back), back.answer_tokens) == ("m", 50, 2, 4)
    for one, other in zip(made, back, strict=True):
        assert (one.task, one.name, one.prompt_length) == (
            other.task,
            other.name,
            other.prompt_length,
        )
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.topk.ids, other.topk.ids)
        np.testing.assert_array_equal(one.topk.probs, other.topk.probs)
    assert [t.name for t in back.where(["b"])] == ["2"]
    with pytest.raises(RecordingError, match=r"no task \['c'\] here; there are \['a', 'b'\]"):
        back.where(["c"])
    Recording("m", 50, []).save(tmp_path / "none")
    assert len(load(tmp_path / "none")) == 0


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_bytes(b"nonsense")
    with pytest.raises(RecordingError, match="cannot be read as a recording"):
        load(path)
    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(RecordingError, match="make one with `specplug record`"):
        load(path)
    recording().save(path)
    whole = load_file(path)
    metadata = {"format": FORMAT, "model": "m", "vocab_size": "50", "tasks": '["a", "b"]'}
    metadata["names"] = '["1", "2"]'
    for key, value in {
        "lengths": np.array([3, 5]),
        "prompt_lengths": np.array([2, 9]),
        "tokens": np.full(7, 50, np.int32),
        "topk_ids": np.zeros((6, 8), np.int32),
        "topk_probs": np.zeros((7, 3), np.float16),
    }.items():
        save_file({**whole, key: value}, path, metadata=metadata)
        with pytest.raises(RecordingError, match="is a damaged recording"):
            load(path)
    save_file({key: whole[key] for key in list(whole)[1:]}, path, metadata=metadata)
    with pytest.raises(RecordingError, match="is a damaged recording"):
        load(path)
    for change in ({"tasks": "["}, {"tasks": '["a"]'}, {"vocab_size": "many"}):
        save_file(whole, path, metadata={**metadata, **change})
        with pytest.raises(RecordingError, match="is a damaged recording"):
            load(path)


def test_a_model_is_recorded(tmp_path: Path) -> None:
    texts, out = tmp_path / "t.jsonl", tmp_path / "r"
    texts.write_text("\n".join(map(json.dumps, TEXTS)))
    made = record(str(DEMO_MODEL), str(texts), str(out), 24, 0, "cpu")
    assert [t.task for t in made] == ["code", "code", "text"]
    back = load(out)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    assert tokenizer.decode(back.texts[0].answer) == TEXTS[0]["response"]
    for one in back:
        with torch.no_grad():
            probs = model(torch.tensor(one.tokens[None]).long()).logits[0].softmax(-1)
        best = probs.topk(TOP_K)
        np.testing.assert_allclose(one.topk.probs, best.values, atol=1e-3)
        if one is not back.texts[0]:  # its own answer: the likeliest token each time
            assert (one.topk.ids[one.prompt_length - 1 : -1, 0] == one.answer).all()


def test_an_interrupted_recording_goes_on(tmp_path: Path) -> None:
    texts, out = tmp_path / "t.jsonl", tmp_path / "r"
    texts.write_text("\n".join(map(json.dumps, TEXTS)))
    arguments = (str(DEMO_MODEL), str(texts), str(out), 8, 0, "cpu")

    def interrupted(lines: Iterable[Any], label: str) -> Iterator[Any]:
        yield from itertools.islice(lines, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(*arguments, progress=interrupted)
    begun = load(out)
    assert len(begun) == 2
    marked = [replace(text, task="marked") for text in begun]
    Recording(begun.model, begun.vocab_size, marked).save(out)
    made = record(*arguments)
    assert [text.task for text in made] == ["marked", "marked", "text"]  # nothing twice
    assert [text.task for text in load(out)] == ["marked", "marked", "text"]
    with pytest.raises(RecordingError, match=r"is a recording of .*; choose another --out"):
        record("elsewhere", *arguments[1:])
    with pytest.raises(RecordingError, match=r"begun with other --states; choose another --out"):
        record(*arguments, states=True)


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"task": "a"}', '{"turns": []}'])
def test_bad_texts(tmp_path: Path, line: str) -> None:
    texts = tmp_path / "t.jsonl"
    texts.write_text(f"{json.dumps(TEXTS[0])}\n{line}\n")
    with pytest.raises(RecordingError, match="line 2"):
        record(str(DEMO_MODEL), str(texts), str(tmp_path / "r"), 8, 0, "cpu")


def test_at_most_so_many_of_a_task(tmp_path: Path) -> None:
    texts = tmp_path / "t.jsonl"
    texts.write_text("\n".join(map(json.dumps, TEXTS)))
    made = record(str(DEMO_MODEL), str(texts), str(tmp_path / "r"), 8, 1, "cpu")
    assert [t.task for t in made] == ["code", "text"]
