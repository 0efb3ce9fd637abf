"""Speed on recorded answers: plain `generate`, prompt lookup and the plug, interleaved.

A logits processor makes the target choose the recorded answer's next token, so that every method
generates the same real text; what is below the chosen token is the model's own.

    python -m tests.benchmarks.replay --model PATH --traces FILE --out result.json
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList

from hf_specplug import SpecPlug, attach
from tests.benchmarks import report

MIN_ANSWER = 32


class Forced(LogitsProcessor):  # type: ignore[misc]
    """Makes the recorded token the likeliest, and leaves the others' order as it is."""

    def __init__(self, start: int, answer: list[int]) -> None:
        self.start, self.answer = start, answer

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        position = input_ids.shape[1] - self.start
        if position < len(self.answer):
            scores[:, self.answer[position]] += 1e6
        return scores


def load(path: str, tokenizer: Any, per_task: int, tokens: int, seed: int) -> list[dict[str, Any]]:
    """`per_task` recorded answers of each task: prompt ids [1, n] and answer ids."""
    by_task: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with open(path, encoding="utf-8") as file:
        for line in file:
            trace = json.loads(line)
            by_task[trace["task"]].append(trace)
    chosen = []
    for task, traces in sorted(by_task.items()):
        random.Random(seed).shuffle(traces)
        taken = 0
        for trace in traces:
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": trace["prompt"]}], add_generation_prompt=True
            )["input_ids"]
            answer = tokenizer(trace["response"], add_special_tokens=False)["input_ids"][:tokens]
            if len(answer) < MIN_ANSWER or len(prompt) + tokens > 1800:
                continue
            chosen.append({"task": task, "prompt": torch.tensor([prompt]), "answer": answer})
            taken += 1
            if taken == per_task:
                break
    return chosen


def methods(model: Any, sizes: list[str]) -> dict[str, tuple[dict[str, Any], SpecPlug | None]]:
    """Name -> (arguments of `generate`, the plug whose statistics to read)."""
    table: dict[str, tuple[dict[str, Any], SpecPlug | None]] = {
        "plain": ({"assistant": None}, None),
        "prompt_lookup": ({"assistant": None, "prompt_lookup_num_tokens": 10}, None),
    }
    for size in sizes:
        nodes: int | str = size if size == "auto" else int(size)
        for name, pack in ((f"specplug-{size}", True), (f"{size}-unpacked", False)):
            plug = SpecPlug(nodes=nodes, pack=pack)
            table[name] = ({"assistant": plug}, plug)
    return table


def measure(
    generate: Callable[..., Any], trace: dict[str, Any], arguments: dict[str, Any]
) -> float:
    """Seconds for one answer; raises if another text came out."""
    prompt, answer = trace["prompt"], trace["answer"]
    forced = LogitsProcessorList([Forced(prompt.shape[1], answer)])
    start = time.perf_counter()
    output = generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=len(answer),
        do_sample=False,
        logits_processor=forced,
        **arguments,
    )
    seconds = time.perf_counter() - start
    if output[0, prompt.shape[1] :].tolist() != answer:
        raise RuntimeError("the recorded answer did not come out")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--traces", required=True)
    parser.add_argument("--per-task", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--sizes", default="auto", help="nodes to compare, e.g. auto,8,16")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype)
    ).eval()
    attach(model)
    traces = load(args.traces, tokenizer, args.per_task, args.tokens, args.seed)
    table = methods(model, args.sizes.split(","))
    for arguments, plug in table.values():  # compile kernels, touch memory, pack
        measure(model.generate, traces[0], arguments)
        if plug is not None:
            plug.stats.reset()
    rows: list[dict[str, Any]] = []
    for trace in traces:
        row: dict[str, Any] = {"task": trace["task"], "tokens": len(trace["answer"])}
        for name, (arguments, _) in table.items():
            row[name] = measure(model.generate, trace, arguments)
        rows.append(row)

    tasks = [*sorted({row["task"] for row in rows}), "all"]
    names = [name for name in table if name != "plain"]
    print(f"{'x plain':24}" + "".join(f"{name:>16}" for name in names))
    ratios: dict[str, dict[str, float]] = {}
    for task in tasks:
        mine = [row for row in rows if task in (row["task"], "all")]
        total = {name: sum(row[name] for row in mine) for name in table}
        ratios[task] = {name: total["plain"] / total[name] for name in names}
        print(f"{task:24}" + "".join(f"{ratios[task][name]:16.3f}" for name in names))
    for name, (_, plug) in table.items():
        rate = sum(row["tokens"] for row in rows) / sum(row[name] for row in rows)
        print(
            f"{name:16} {rate:7.1f} tokens/s, "
            f"median answer {statistics.median(row[name] for row in rows):.3f} s"
        )
        if plug is not None:
            print(plug.stats)
    if args.out:
        stats = {name: plug.stats.to_dict() for name, (_, plug) in table.items() if plug}
        report.write(args.out, args, ratios=ratios, rows=rows, stats=stats)


if __name__ == "__main__":
    main()
