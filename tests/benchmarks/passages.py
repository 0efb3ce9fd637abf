"""What matching given passages as text costs, in microseconds per step, by their number.

    python -m tests.benchmarks.passages --model NAME_OR_PATH --corpus FOLDER

Passages are functions and classes of the first half of a folder's Python files; the text that is
followed, token by token, is the other half. "matching" is the automaton's part of a step,
"decoding" the tokenizer's. Some steps also tokenize the rest of a passage: see the mean.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from hf_specplug.bench import environment
from hf_specplug.drafters.contract import Context, Frontier, Step
from hf_specplug.drafters.passages import PassagesDrafter
from hf_specplug.drafters.text_tail import TextTail
from hf_specplug.hf import loading

NONE = np.empty(0, np.int32)


def passages(files: list[Path], most: int) -> list[str]:
    """Different functions and classes, or if there are too few, their lines as well."""
    blocks = (block.strip() for file in files for block in read(file).split("\n\n"))
    found = dict.fromkeys(block for block in blocks if block.startswith(("def ", "class ", "@")))
    lines = (line.strip() for file in files for line in read(file).split("\n"))
    found |= dict.fromkeys(line for line in lines if len(line) >= 20)
    return list(found)[:most]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def timed(texts: list[list[int]], tokenizer: Any, strings: list[str]) -> dict[str, float]:
    """Microseconds per step: medians, but for the matching, which is a mean."""
    start = time.perf_counter()
    drafter = PassagesDrafter(tokenizer=tokenizer, passages=strings)
    build = time.perf_counter() - start
    spent: dict[str, list[float]] = {"matching": [], "decoding": []}

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments)
            spent[name].append(1e6 * (time.perf_counter() - begin))
            return result

        return call

    steps: list[float] = []
    drafter._say = counted("matching", drafter._say)  # type: ignore[method-assign]
    pool = np.zeros((1, 3), np.int32)
    for tokens in texts:
        context = Context(tokens[:1], len(tokenizer))
        drafter.begin(context)
        for token in tokens[1:]:
            begin = time.perf_counter()
            drafter.expand(Frontier(np.zeros(1, np.int32), pool, 0))
            new = np.array([token], np.int32)
            context.append(new)
            drafter.observe(Step.of_text(NONE, 0, [], new, None))
            steps.append(1e6 * (time.perf_counter() - begin))
    tail = TextTail(drafter._codec, [])  # type: ignore[arg-type]
    follow = counted("decoding", tail.append)
    for token in texts[0]:
        follow([token])
    return {
        "s to build": build,
        "matching": statistics.fmean(spent["matching"]),
        "decoding": statistics.median(spent["decoding"]),
        "step, median": statistics.median(steps),
        "step, mean": statistics.fmean(steps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder or Hub name of a tokenizer")
    parser.add_argument("--corpus", required=True, help="folder of Python files")
    parser.add_argument("--strings", default="200,5000,50000")
    parser.add_argument("--files", type=int, default=20, help="files that are followed")
    parser.add_argument("--out")
    args = parser.parse_args()
    tokenizer = loading.tokenizer(args.model)
    files = sorted(Path(args.corpus).rglob("*.py"))
    known, followed = files[::2], files[1::2]
    step = max(1, len(followed) // args.files)
    texts = [tokenizer(read(file))["input_ids"][:1000] for file in followed[::step]]
    texts = [tokens for tokens in texts if len(tokens) > 100]
    figures = {}
    for number in map(int, args.strings.split(",")):
        strings = passages(known, number)
        figures[str(len(strings))] = timed(texts, tokenizer, strings)
        row = ", ".join(f"{name} {value:.1f}" for name, value in figures[str(len(strings))].items())
        print(f"{len(strings):6,} passages: {row}")
    if args.out:
        environment.write(args.out, vars(args), figures=figures)


if __name__ == "__main__":
    main()
