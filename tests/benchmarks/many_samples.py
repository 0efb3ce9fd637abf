"""Several samples of each question: what drafters that remember gain from one sample to the next.

python -m tests.benchmarks.many_samples --model PATH --prompts gsm8k.jsonl --questions 24

The model answers each question several times (drafted, which changes nothing), what it found likely
is recorded, and the recording is replayed through each set of drafters: all see the same texts.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_specplug import SpecPlug, __version__
from hf_specplug.drafters.base import create
from hf_specplug.forced import prompt_ids
from hf_specplug.record import traced
from hf_specplug.recording import Recording, Trace, load
from hf_specplug.simulate import simulate


def record(args: argparse.Namespace) -> Recording:
    """`args.samples` answers to each question; the task of a trace is the number of the sample."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    texts = Path(args.prompts).read_text(encoding="utf-8").splitlines()
    chosen = random.Random(0).sample(texts, args.questions)
    plug = SpecPlug()
    traces: list[Trace] = []
    for number, line in enumerate(chosen):
        prompt = prompt_ids(tokenizer, json.loads(line)["turns"][0])
        ids = torch.tensor([prompt])
        for sample in range(args.samples):
            torch.manual_seed(1000 * number + sample)
            settings = {"do_sample": True, "top_k": 0, "temperature": args.temperature}
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=args.tokens,
                custom_generate=plug,
                **settings,
            )[0].tolist()
            if len(output) > len(prompt) + 1:
                name = f"seed {1000 * number + sample}"
                traces.append(traced(model, f"sample {sample + 1}", name, output, len(prompt)))
    return Recording(args.model, int(model.config.vocab_size), traces)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--nodes", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--recording", help="keep the samples here, or use those that are there")
    parser.add_argument("--out")
    args = parser.parse_args()

    if args.recording and Path(args.recording).exists():
        recording = load(args.recording)
    else:
        recording = record(args)
        if args.recording:
            recording.save(args.recording)
    rest = ["context", "recycling", "trigram"]
    sets = [["context"], ["recycling"], ["trigram"], ["stand"], rest, [*rest, "stand"]]
    columns = [f"sample {index + 1}" for index in range(args.samples)]
    results: dict[str, Any] = {}
    print(f"tokens per step{'':27}" + "".join(f"{index + 1:7}" for index in range(args.samples)))
    for nodes in args.nodes:
        for names in sets:
            result = simulate(recording, create(names), nodes)
            row = {task: result.by_task[task].accept_length for task in columns}
            label = f"{'+'.join(names)} @{nodes}"
            numbers = "".join(f"{row[task]:7.3f}" for task in columns)
            print(f"{label:42}{numbers}   all {result.total.accept_length:.3f}", flush=True)
            results[label] = {**row, "all": result.total.accept_length}
    if args.out:
        about = {"machine": platform.machine(), "hf_specplug": __version__}
        setting = {"temperature": args.temperature, "questions": args.questions}
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump({**about, **setting, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
