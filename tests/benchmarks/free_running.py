"""Tokens per forward pass on benchmark prompts, the model writing its own answers.

python -m tests.benchmarks.free_running --model PATH --prompts spec_bench.jsonl --nodes 32
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_specplug import attach


def load(tokenizer: Any, paths: list[str], per_task: int) -> list[tuple[str, Any]]:
    """(task, inputs of `generate`): first turns, evenly spread over each task."""
    by_task: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                by_task[row["task"]].append(row["turns"][0])
    chosen = []
    for task, texts in sorted(by_task.items()):
        for i in range(per_task):
            chat = [{"role": "user", "content": texts[i * len(texts) // per_task]}]
            inputs = tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            if inputs["input_ids"].shape[1] <= MAX_PROMPT:
                chosen.append((task, inputs))
    return chosen


MAX_PROMPT = 1800


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True, nargs="+")
    parser.add_argument("--per-task", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype)
    ).eval()
    plug = attach(model, nodes=args.nodes)
    forwards = [0]

    def count(*_: Any) -> None:
        forwards[0] += 1

    model.register_forward_hook(count)
    table: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    same: dict[str, int] = defaultdict(int)
    for task, inputs in load(tokenizer, args.prompts, args.per_task):
        length = inputs["input_ids"].shape[1]
        expected = None
        for name, arguments in (
            ("plain", {"assistant": None}),
            ("prompt_lookup", {"assistant": None, "prompt_lookup_num_tokens": 10}),
            ("specplug", {"assistant": plug}),
        ):
            forwards[0] = 0
            output = model.generate(
                **inputs, max_new_tokens=args.tokens, do_sample=False, **arguments
            )[0, length:].tolist()
            expected = output if expected is None else expected
            same[name] += output == expected
            # decoding only: the prompt's forward pass and its token are left out
            for row in (table[task][name], table["all"][name]):
                row[0] += len(output) - 1
                row[1] += forwards[0] - 1
    print(f"{'tokens per forward':20}{'prompt_lookup':>15}{'specplug':>12}   ({args.nodes} nodes)")
    for task in [*sorted(set(table) - {"all"}), "all"]:
        rates = {name: row[0] / max(row[1], 1) for name, row in table[task].items()}
        print(f"{task:20}{rates['prompt_lookup']:15.2f}{rates['specplug']:12.2f}")
    print("identical outputs:", dict(same))
    print(plug.stats)


if __name__ == "__main__":
    main()
