"""The texts of the comparison: split by prompt, recorded, and put into datastores.

A prompt's SHA-256 decides its part, so that no prompt is in two of them, whoever answered it:

    tested   one fifth: what is replayed
    learned  one fifth: priors, mixing weights and STAND's tree are learned from it
    stored   the rest: the datastores
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from hf_specplug.cli.run_build import LOADERS
from hf_specplug.datastore.building.job import prepare
from hf_specplug.datastore.building.options import BuildOptions
from hf_specplug.datastore.manifest import NAME
from hf_specplug.datastore.store import Datastore
from hf_specplug.errors import CorpusError
from hf_specplug.hf import loading
from hf_specplug.hf.prompts import read_prompts
from hf_specplug.replay.record import record
from hf_specplug.replay.recording import Recording

OWN, OTHERS = "own", "others"
PER_TASK = {
    (OWN, "tested"): 8,
    (OWN, "learned"): 8,
    (OWN, "stored"): 20,
    (OTHERS, "tested"): 8,
    (OTHERS, "learned"): 8,
    (OTHERS, "stored"): 0,
}
"""Answers of each task; 0: all."""

TOKENS = 160
"""Tokens of an answer at most."""

KINDS = ("suffix", "trigram", "ngram", "dense")

LONGEST_PROMPT = 3000
"""Characters of a prompt at most; longer ones are left out."""


def part(prompt: str) -> str:
    """The part that a prompt belongs to; white space and case make no difference.

    Example:
        >>> part("Name a river.") == part("  name a RIVER. ")
        True
    """
    words = " ".join(prompt.lower().split())
    fifth = int(hashlib.sha256(words.encode()).hexdigest(), 16) % 5
    return {0: "tested", 1: "learned"}.get(fifth, "stored")


def split(paths: list[str], whose: str, folder: Path) -> dict[str, Path]:
    """Write the lines of each part to a file of its own; own answers lose what others answered."""
    kept: dict[str, list[dict[str, Any]]] = {"tested": [], "learned": [], "stored": []}
    taken: Counter[tuple[str, str]] = Counter()
    for path in paths:
        for _, line in read_prompts(path):
            where = part(line["prompt"])
            task = str(line.get("task", "text"))
            most = PER_TASK[whose, where]
            if len(line["prompt"]) > LONGEST_PROMPT or (most and taken[where, task] == most):
                continue
            taken[where, task] += 1
            answer = {"response": line["response"]} if whose == OTHERS else {}
            kept[where].append({"task": task, "prompt": line["prompt"], **answer})
    files = {where: folder / f"{whose}-{where}.jsonl" for where in kept}
    for where, lines in kept.items():
        _write(files[where], lines)
    return files


def recorded(model: str, files: dict[str, Path], folder: Path) -> dict[str, Recording]:
    """Record each part with hidden states, or continue where an earlier run has stopped."""
    return {
        where: record(
            model, str(file), str(folder / f"{file.stem}.safetensors"), TOKENS, states=True
        )
        for where, file in files.items()
    }


def stores(model: str, own: Recording, others: Path, folder: Path) -> list[Datastore]:
    """Datastores of all `KINDS` from the stored answers; "ngram" has the model's own ones only."""
    tokenizer = loading.tokenizer(model)
    answers = [{"text": tokenizer.decode(text.answer.tolist())} for text in own]
    lines = [json.loads(line) for line in others.read_text(encoding="utf-8").splitlines()]
    _write(folder / "own-answers.jsonl", answers)
    _write(folder / "answers.jsonl", [*answers, *({"text": line["response"]} for line in lines)])
    opened = []
    for kind in KINDS:
        corpus = folder / ("own-answers.jsonl" if kind == "ngram" else "answers.jsonl")
        if not (folder / kind / NAME).exists():
            options = BuildOptions(kind, model, model=model if kind == "dense" else None)
            job = prepare(folder / kind, [str(corpus)], options, LOADERS)
            job.setup()
            job.run(_stop, lambda *_: None)
        opened.append(Datastore(folder / kind))
    return opened


def _stop(error: CorpusError) -> None:
    raise error


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
