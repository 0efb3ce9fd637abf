"""Random text: what drafting costs when nothing can be drafted, and how fast it resumes.

Teacher forcing makes the model emit random tokens, then copy the prompt. Plain `generate` and the
plug take turns on the same tokens. The plug is new in every round, as after `attach`, or kept from
the rounds before.

    python -m tests.benchmarks.never_slower --model PATH --out result.json
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from hf_specplug import SpecPlug, attach
from hf_specplug.bench import environment
from hf_specplug.replay.teacher_forcing import Answer, measure

WINDOW = 16  # tokens over which drafting has resumed


def recovered_after(model: Any, plug: SpecPlug, answer: Answer, switch: int) -> int | None:
    """Tokens after `switch` until the next `WINDOW` take at most half as many forward passes."""
    passes: list[int] = []  # the tokens known when each forward pass began

    def count(module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        passes.append(int(keywords["position_ids"].reshape(-1)[0]) - answer.prompt.shape[1] + 1)

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        measure(model.generate, answer, {"assistant": plug})
    finally:
        hook.remove()
    for start in range(switch, len(answer.tokens) - WINDOW):
        if sum(start <= place < start + WINDOW for place in passes[1:]) <= WINDOW // 2:
            return start - switch
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype)
    ).eval()
    attach(model)
    vocab = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    kept = {"kept, pack=False": SpecPlug(pack=False), "kept": SpecPlug()}
    seconds: dict[str, list[float]] = {}
    recovery = []
    for round_ in range(args.rounds + 1):  # the first warms up
        prompt = torch.randint(3, vocab, (1, 200), generator=generator)
        tokens = torch.randint(3, vocab, (args.tokens,), generator=generator).tolist()
        answer = Answer("random", prompt, tokens)
        plugs = {"new, pack=False": SpecPlug(pack=False), "new": SpecPlug(), **kept}
        turns: list[tuple[str, Any]] = [("plain", None), *plugs.items()]
        for name, plug in turns[round_ % 5 :] + turns[: round_ % 5]:
            taken = measure(model.generate, answer, {"assistant": plug})
            if round_:
                seconds.setdefault(name, []).append(taken)
        copied = Answer("copied", prompt, tokens[:200] + prompt[0, :150].tolist())
        recovery.append(recovered_after(model, SpecPlug(), copied, switch=200))
    ratios = {
        name: statistics.median(t / p for t, p in zip(taken, seconds["plain"], strict=True))
        for name, taken in seconds.items()
    }
    for name, ratio in ratios.items():
        print(f"{name:18} {ratio:.3f} of plain's time")
    print(f"tokens until drafting has resumed: {recovery}")
    if args.out:
        figures = {"time over plain": ratios, "recovery": recovery, "seconds": seconds}
        environment.write(args.out, vars(args), **figures)


if __name__ == "__main__":
    main()
