"""Batches: plain `generate` and the plug take turns on the same prompts, several rows at once.

python -m tests.benchmarks.batches --model PATH --prompts FILE --rows 2,4,8 --out batches.json
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_specplug import SpecPlug
from hf_specplug.bench import environment
from hf_specplug.hf.prompts import prompt_ids, read_prompts

LONGEST_PROMPT = 300  # tokens


def padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """A batch of prompts with padding on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def timed(model: Any, seed: int, batch: dict[str, torch.Tensor], **settings: Any) -> Any:
    """(the output of `generate`, seconds)"""
    torch.manual_seed(seed)
    start = time.perf_counter()
    output = model.generate(**batch, **settings)
    return output, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True, help="JSON lines")
    parser.add_argument("--rows", default="2,4,8", help="numbers of rows, with commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pack", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype)
    ).eval()
    texts = [line["prompt"] for _, line in read_prompts(args.prompts, 1000)]
    random.Random(0).shuffle(texts)
    prompts = [ids for text in texts if len(ids := prompt_ids(tokenizer, text)) <= LONGEST_PROMPT]
    settings: dict[str, Any] = {"max_new_tokens": args.tokens, "pad_token_id": 0}
    settings |= {"do_sample": args.temperature > 0}
    if args.temperature:
        settings |= {"temperature": args.temperature, "top_k": 0}
    figures = []
    for rows in map(int, args.rows.split(",")):
        plug = SpecPlug(pack=args.pack)
        seconds = {"plain": 0.0, "plug": 0.0}
        identical = 0
        for number in range(args.rounds + 1):  # the first compiles, tries and packs
            batch = padded(prompts[number * rows : (number + 1) * rows])
            ways = [("plain", {}), ("plug", {"custom_generate": plug})]
            outputs = {}
            for name, more in ways[:: 1 if number % 2 else -1]:
                outputs[name], took = timed(model, number, batch, **settings, **more)
                seconds[name] += took if number else 0.0
            identical += torch.equal(outputs["plain"], outputs["plug"])
        figure = {
            "rows": rows,
            "x plain": round(seconds["plain"] / seconds["plug"], 3),
            "tokens per pass and row": round(plug.stats.accept_length, 3),
            "identical": f"{identical} of {args.rounds + 1}",
        }
        print(figure, flush=True)
        figures.append({**figure, "seconds": seconds, "stats": plug.stats.to_dict()})
    if args.out:
        environment.write(args.out, vars(args), rows=figures)


if __name__ == "__main__":
    main()
