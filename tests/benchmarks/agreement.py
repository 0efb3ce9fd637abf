"""How often the output in low precision is that of plain `generate`, beside prompt lookup.

python -m tests.benchmarks.agreement --model PATH --prompts spec_bench.jsonl --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_specplug import attach
from tests.benchmarks.free_running import load


def common(one: list[int], two: list[int]) -> int:
    """Tokens until the first difference."""
    for place, (a, b) in enumerate(zip(one, two, strict=False)):
        if a != b:
            return place
    return min(len(one), len(two))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True, nargs="+")
    parser.add_argument("--per-task", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype)
    ).eval()
    plug = attach(model, nodes=args.nodes)
    names = {
        "prompt_lookup": {"assistant": None, "prompt_lookup_num_tokens": 10},
        "specplug": {"assistant": plug},
    }
    identical, agreed, total, count = dict.fromkeys(names, 0), dict.fromkeys(names, 0), 0, 0
    for _, inputs in load(tokenizer, args.prompts, args.per_task):
        length = inputs["input_ids"].shape[1]
        settings = {"max_new_tokens": args.tokens, "do_sample": False}
        plain = model.generate(**inputs, **settings, assistant=None)[0, length:].tolist()
        total, count = total + len(plain), count + 1
        for name, arguments in names.items():
            output = model.generate(**inputs, **settings, **arguments)[0, length:].tolist()
            identical[name] += output == plain
            agreed[name] += common(output, plain)
    report = {
        name: {
            "identical": f"{identical[name]} of {count}",
            "tokens before a difference": agreed[name],
        }
        for name in names
    }
    print(json.dumps({"dtype": args.dtype, "tokens": total, **report}, indent=1))


if __name__ == "__main__":
    main()
