"""Acceptance when sampling: drafts that use the known noise against drafts that do not.

python -m tests.benchmarks.sampling --model PATH --prompts spec_bench.jsonl gsm8k.jsonl

Both answer the same prompts with the same seeds; outputs are compared with plain sampling. Only
counts are compared, so other work on the machine does not matter.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_specplug import SpecPlug
from hf_specplug.bench import environment
from hf_specplug.drafters.contract import NO_NOISE
from hf_specplug.plug import DEFAULT_DRAFTERS
from hf_specplug.verify.acceptance import Verifier
from tests.benchmarks.free_running import load


def answer(model: Any, inputs: Any, plug: SpecPlug | None, seed: int, **settings: Any) -> list[int]:
    torch.manual_seed(seed)
    if plug is not None:
        settings["custom_generate"] = plug
    length = inputs["input_ids"].shape[1]
    output = model.generate(**inputs, do_sample=True, top_k=0, **settings)
    return output[0, length:].tolist()  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True, nargs="+")
    parser.add_argument("--per-task", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--nodes", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.6, 1.0])
    parser.add_argument("--drafters", default=",".join(DEFAULT_DRAFTERS))
    parser.add_argument("--datastore", action="append", default=[])
    parser.add_argument("--plain", action="store_true", help="also compare with plain sampling")
    parser.add_argument("--weights", action="store_true", help="print what the mixer has learned")
    parser.add_argument("--out")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    prompts = load(tokenizer, args.prompts, args.per_task)
    results: list[dict[str, Any]] = []
    print("temperature nodes  accepted/forward: blind  peeking   gain  tokens/forward: blind  peek")
    for temperature in args.temperatures:
        for nodes in args.nodes:
            plugs = {
                name: SpecPlug(args.drafters.split(","), nodes, datastores=args.datastore)
                for name in ("blind", "peeking")
            }
            same: dict[str, int] = defaultdict(int)
            settings = {"temperature": temperature, "max_new_tokens": args.tokens}
            for seed, (_, inputs) in enumerate(prompts):
                outputs = {"peeking": answer(model, inputs, plugs["peeking"], seed, **settings)}
                with patch.object(Verifier, "noise", lambda _: NO_NOISE):
                    outputs["blind"] = answer(model, inputs, plugs["blind"], seed, **settings)
                expected = outputs["blind"]
                if args.plain:
                    expected = answer(model, inputs, None, seed, **settings)
                for name, output in outputs.items():
                    same[name] += output == expected
            per = {name: p.stats.accepted / p.stats.forwards for name, p in plugs.items()}
            length = {name: p.stats.accept_length for name, p in plugs.items()}
            gain = per["peeking"] / per["blind"] - 1
            print(
                f"{temperature:11.1f} {nodes:5} {per['blind']:24.3f} {per['peeking']:8.3f} "
                f"{100 * gain:+6.1f} % {length['blind']:21.3f} {length['peeking']:5.3f}   "
                f"identical {same['peeking']} of {len(prompts)}",
                flush=True,
            )
            if args.weights:
                print(plugs["peeking"].mixer.weights[:, -2:].round(3).tolist())
            row = {"temperature": temperature, "nodes": nodes, "prompts": len(prompts)}
            accepted = {f"accepted_{name}": value for name, value in per.items()}
            results.append({**row, **accepted, "gain": gain, "identical": dict(same)})
    if args.out:
        environment.write(args.out, vars(args), results=results)


if __name__ == "__main__":
    main()
