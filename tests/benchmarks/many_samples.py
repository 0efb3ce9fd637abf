"""Many samples of each question: what drafters gain from one sample to the next.

python -m tests.benchmarks.many_samples --model PATH --prompts gsm8k.jsonl --questions 24

Every set of drafters generates the same samples, as the seeds are the same. Only counts are
compared. `--recording FILE` instead records the samples under the names "seed N", for
`specplug learn-priors`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_specplug import SpecPlug
from hf_specplug.bench import environment
from hf_specplug.hf.prompts import prompt_ids
from hf_specplug.replay.record import record_text
from hf_specplug.replay.recording import Recording

OTHERS = ["context", "recycling", "trigram", "gumbel"]
SETS = [["context"], ["recycling"], ["trigram"], ["stand"], OTHERS, [*OTHERS, "stand"]]


def answers(
    model: Any, tokenizer: Any, plug: SpecPlug, args: argparse.Namespace
) -> Iterator[tuple[int, int, list[int], int]]:
    """(number of the sample from 0, seed, tokens of prompt and answer, length of the prompt)."""
    texts = Path(args.prompts).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(random.Random(0).sample(texts, args.questions)):
        prompt = prompt_ids(tokenizer, json.loads(line)["turns"][0])
        ids = torch.tensor([prompt])
        for sample in range(args.samples):
            seed = 1000 * number + sample
            torch.manual_seed(seed)
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=args.tokens,
                do_sample=True,
                top_k=0,
                temperature=args.temperature,
                custom_generate=plug,
            )
            yield sample, seed, output[0].tolist(), len(prompt)


def record(model: Any, tokenizer: Any, args: argparse.Namespace) -> None:
    texts = [
        record_text(model, f"sample {sample + 1}", f"seed {seed}", tokens, length)
        for sample, seed, tokens, length in answers(model, tokenizer, SpecPlug(), args)
        if len(tokens) > length + 1
    ]
    Recording(args.model, int(model.config.vocab_size), texts).save(args.recording)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--recording")
    parser.add_argument("--out")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    if args.recording:
        record(model, tokenizer, args)
        return
    results: dict[str, list[float]] = {}
    texts: list[list[list[int]]] = []
    columns = "".join(f"{index + 1:7}" for index in range(args.samples))
    print(f"tokens per forward, T = {args.temperature}, by sample{columns}      all")
    for names in SETS:
        plug = SpecPlug(names, args.nodes)
        counts = [[0, 0] for _ in range(args.samples)]
        texts.append([])
        for sample, _, tokens, _ in answers(model, tokenizer, plug, args):
            counts[sample][0] += plug.stats.tokens
            counts[sample][1] += plug.stats.forwards
            plug.stats.reset()
            texts[-1].append(tokens)
        counts.append([sum(column) for column in zip(*counts, strict=True)])
        row = [tokens / forwards for tokens, forwards in counts]
        label = "+".join(names)
        print(f"{label:42}" + "".join(f"{rate:7.3f}" for rate in row), flush=True)
        results[label] = row
    same = sum(all(other == one for other in others) for one, *others in zip(*texts, strict=True))
    print(f"identical samples: {same} of {len(texts[0])}")
    if args.out:
        environment.write(args.out, vars(args), tokens_per_forward=results, identical=same)


if __name__ == "__main__":
    main()
