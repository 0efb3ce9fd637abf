"""The loop's own time per step, without forward pass and drafting, by length of the text.

python -m tests.benchmarks.overhead --contexts 512,8192,32768
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_specplug import attach
from hf_specplug.drafters.contract import Drafter, Frontier, Int32


class Filler(Drafter):
    """Three wrong children for every node, so that each tree is full."""

    name: ClassVar[str] = "filler"

    def __init__(self) -> None:
        self.priors = np.array([0.3, 0.25, 0.2], np.float32)

    def expand(self, frontier: Frontier) -> Int32:
        rows = [(node, 300 + k, k) for node in frontier.nodes.tolist() for k in range(3)]
        return np.array(rows, np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--contexts", default="512,8192,32768")
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=16384)
    parser.add_argument("--tokens", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=args.layers,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=1 << 17,
        initializer_range=0.3,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    inside: list[float] = []
    forward = model.forward

    def timed(*arguments: Any, **settings: Any) -> Any:
        start = time.perf_counter()
        try:
            return forward(*arguments, **settings)
        finally:
            inside.append(time.perf_counter() - start)

    timed.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    plug = attach(model, drafters=Filler(), nodes=args.nodes)
    for context in [64, *map(int, args.contexts.split(","))]:
        prompt = torch.randint(3, 300, (1, context))
        settings: dict[str, Any] = {
            "attention_mask": torch.ones_like(prompt),
            "max_new_tokens": args.tokens,
            "do_sample": False,
        }
        model.forward = timed
        plug.stats.reset()
        inside.clear()
        model.generate(prompt, **settings)
        del model.forward
        seconds, steps = plug.stats.seconds, plug.stats.forwards
        launch = seconds["verify"] - sum(inside[1:])  # the first is the prompt
        own = launch + seconds["accept"] + seconds["observe"]
        report = {
            "context": context,
            "nodes per step": round(plug.stats.drafted / steps + 1, 1),
            "ms forward": round(1e3 * sum(inside[1:]) / steps, 2),
            "us own": round(1e6 * own / steps),
            "of it: masks and inputs": round(1e6 * launch / steps),
            "verifier and cache": round(1e6 * seconds["accept"] / steps),
            "counting": round(1e6 * seconds["observe"] / steps),
        }
        print(json.dumps(report))


if __name__ == "__main__":
    main()
