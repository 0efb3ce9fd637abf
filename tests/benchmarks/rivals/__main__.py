"""Compare drafting methods on the same recorded answers in one run: ours, and those of others.

    specplug record --model MODEL --texts answers.jsonl --out answers.safetensors
    python -m tests.benchmarks.rivals answers.safetensors --stores-texts texts.jsonl --out out.json

The README of this folder has the settings of each method, and how to install it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from hf_specplug.bench import environment
from hf_specplug.errors import OptionError, SpecPlugError
from hf_specplug.hf import loading
from hf_specplug.replay.recording import Recording, load
from tests.benchmarks.rivals import memory, tables, texts
from tests.benchmarks.rivals.base import Given, Rival
from tests.benchmarks.rivals.methods import Method, chosen, missing
from tests.benchmarks.rivals.replay import Score, replay

Plan = dict[tuple[str, int], Method]
"""By name and tokens per forward pass, the last accepted one included."""

_PART = 4  # memory is measured on every fourth text


def numbers(text: str) -> list[int]:
    """The sizes in `--nodes`, ascending.

    Raises:
        OptionError: a part is not such a number.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 1 for part in parts):
        raise OptionError(f"--nodes takes numbers of at least 2, with commas, not {text!r}")
    return sorted({int(part) for part in parts})


def planned(methods: dict[str, Method], sizes: list[int]) -> list[Plan]:
    """A plan for each size, ascending; a method with a size of its own is in the next larger's.

    Example:
        >>> [list(plan) for plan in planned(chosen(["context", "prompt-lookup"]), [8, 16])]
        [[('context', 8)], [('context', 16), ('prompt-lookup', 11)]]
    """
    plans: dict[int, Plan] = {size: {} for size in sizes}
    for name, method in methods.items():
        if method.nodes is None:
            for size, plan in plans.items():
                plan[name, size] = method
        else:
            larger = (size for size in sizes if size >= method.nodes)
            plans[next(larger, sizes[-1])][name, method.nodes] = method
    return list(plans.values())


def compared(recording: Recording, plan: Plan, given: Given) -> dict[tuple[str, int], Score]:
    """Replay text by text, every time through all methods; another one begins each time."""
    rivals = {key: method.make(given) for key, method in plan.items()}
    scores = {key: Score() for key in plan}
    order = list(plan)
    for number, text in enumerate(recording):
        first = number % len(order)
        for key in order[first:] + order[:first]:
            replay(rivals[key], text, key[1] - 1, recording.vocab_size, scores[key])
    return scores


def taken(recording: Recording, plans: list[Plan], given: Given) -> dict[str, int | None]:
    """Bytes that each method holds in the end, at its largest size, of a part of the texts."""
    largest = {name: (size, method) for plan in plans for (name, size), method in plan.items()}

    def held(size: int, method: Method) -> int | None:
        def work() -> Rival:
            rival = method.make(given)
            for text in recording.texts[::_PART]:
                replay(rival, text, size - 1, recording.vocab_size, Score())
            return rival

        return memory.grown(work, given.folder)

    return {name: held(*each) for name, each in largest.items()}


def run(args: argparse.Namespace, folder: Path) -> None:
    recording = load(args.recording)
    sizes = numbers(args.nodes)
    tokenizer: Any = None
    if args.stores_texts:
        tokenizer = loading.tokenizer(args.tokenizer or recording.model)
    given = texts.given(recording.vocab_size, folder, args.stores_texts, tokenizer)
    methods = chosen([name for name in args.rivals.split(",") if name])
    for name, method in list(methods.items()):
        if why := missing(method, given):
            print(f"{name} is left out: {why}", file=sys.stderr)
            del methods[name]
    plans = planned(methods, sizes)
    held = taken(recording, plans, given)  # first: later ones could use memory that is freed
    scores: dict[tuple[str, int], Score] = {}
    for plan in filter(None, plans):
        scores |= compared(recording, plan, given)  # and then its rivals go, as some are large
    print(f"{len(recording)} answers of {recording.answer_tokens} tokens, {recording.model}")
    print(tables.overview(scores, held))
    print(tables.by_task(scores, min(sizes, key=lambda size: abs(size - 16))))
    if args.out:
        figures = [
            {"method": name, "nodes": size, "bytes": held[name], **score.to_dict()}
            for (name, size), score in scores.items()
        ]
        environment.write(args.out, vars(args), tasks=[t.task for t in recording], methods=figures)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.rivals", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("recording", help="what `specplug record` wrote")
    parser.add_argument("--nodes", default="8,16,32,64", help="tokens per forward pass at most")
    parser.add_argument("--rivals", default="", help="names, with commas; all if not given")
    parser.add_argument("--stores-texts", help='JSON lines with "text", to draft from')
    parser.add_argument("--tokenizer", help="the recording's model, if it has moved")
    parser.add_argument("--out")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(args, Path(folder))
        except (SpecPlugError, OSError) as error:
            sys.exit(f"rivals: {error}")


if __name__ == "__main__":
    main()
