"""Speed on recorded answers: plain `generate`, prompt lookup and the plug, interleaved.

    python -m tests.benchmarks.replay --model PATH --texts FILE --out result.json

Sets of drafters are compared by name; each drafter reads the datastores of its kinds:

    python -m tests.benchmarks.replay --model PATH --texts FILE --sizes auto,16 \
        --datastore my.suffix --datastore my.dense --drafters rest --drafters dense
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_specplug import SpecPlug, attach
from hf_specplug.bench import environment
from hf_specplug.datastore.opening import open_all
from hf_specplug.replay.compare import reading
from hf_specplug.replay.teacher_forcing import load, measure


def methods(
    sizes: list[str], stores: list[str], sets: list[str]
) -> dict[str, tuple[dict[str, Any], SpecPlug | None]]:
    """Name -> (arguments of `generate`, the plug whose statistics to read)."""
    table: dict[str, tuple[dict[str, Any], SpecPlug | None]] = {
        "plain": ({"assistant": None}, None),
        "prompt_lookup": ({"assistant": None, "prompt_lookup_num_tokens": 10}, None),
    }
    for size in sizes:
        nodes: int | str = size if size == "auto" else int(size)
        for names in sets:
            plug = SpecPlug(reading(names.split(","), open_all(stores)), nodes=nodes)
            table[f"{size}-{names}"] = ({"assistant": plug}, plug)
        if sets:
            continue
        for name, pack in ((f"specplug-{size}", True), (f"{size}-unpacked", False)):
            plug = SpecPlug(nodes=nodes, pack=pack)
            table[name] = ({"assistant": plug}, plug)
        if stores:
            plug = SpecPlug(nodes=nodes, datastores=stores)
            table[f"{size}-stores"] = ({"assistant": plug}, plug)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", "--traces", required=True, help="recorded answers, JSON lines")
    parser.add_argument("--per-task", type=int, default=3)
    parser.add_argument("--datastore", action="append", default=[])
    parser.add_argument("--drafters", action="append", default=[], help="names, with commas")
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
    answers = load(args.texts, tokenizer, args.per_task, args.tokens, args.seed)
    table = methods(args.sizes.split(","), args.datastore, args.drafters)
    for arguments, plug in table.values():  # compile kernels, touch memory, pack
        measure(model.generate, answers[0], arguments)
        if plug is not None:
            plug.stats.reset()
    rows: list[dict[str, Any]] = []
    for answer in answers:
        row: dict[str, Any] = {"task": answer.task, "tokens": len(answer.tokens)}
        for name, (arguments, _) in table.items():
            row[name] = measure(model.generate, answer, arguments)
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
        environment.write(args.out, vars(args), ratios=ratios, rows=rows, stats=stats)


if __name__ == "__main__":
    main()
