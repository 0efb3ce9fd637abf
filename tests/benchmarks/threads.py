"""Several requests at once, on one attached model: four in threads against four in a row.

python -m tests.benchmarks.threads --model PATH --out threads.json

In each round every method answers the same prompts, one method after the other, with drafters that
have learned nothing. The fastest round of each method counts. "one drafts" is a plug that drafts
one call at a time: calls that start meanwhile run plainly.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_specplug import DEMO_MODEL, SpecPlug
from hf_specplug.bench import environment
from hf_specplug.hf.prompts import prompt_ids

PROMPTS = (
    "Write a Python function that adds two numbers, and a test for it.",
    "Write a class for a stack with push, pop and peek.",
    "How do I read a file line by line in Python?",
    "Sort a list of dictionaries by one of their keys.",
    "Write a function that checks whether a word is a palindrome.",
    "Explain what a decorator is, with an example.",
    "Write a loop that prints the first ten square numbers.",
    "Write a function that counts the words of a text.",
)

Answer = Callable[[int, SpecPlug | None], torch.Tensor]


def in_a_row(answer: Answer, requests: int, plug: SpecPlug | None) -> list[torch.Tensor]:
    return [answer(request, plug) for request in range(requests)]


def at_once(
    answer: Answer, requests: int, plug: SpecPlug | None, only_one: bool = False
) -> list[torch.Tensor]:
    """Each in a thread; `only_one`: calls that start while another one drafts run plainly."""
    outputs: list[Any] = [None] * requests
    drafting = threading.Lock()

    def run(request: int) -> None:
        mine = not only_one or drafting.acquire(blocking=False)
        outputs[request] = answer(request, plug if mine else None)
        if only_one and mine:
            drafting.release()

    threads = [threading.Thread(target=run, args=(request,)) for request in range(requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(DEMO_MODEL))
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch, for each request")
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    ids = [torch.tensor([prompt_ids(tokenizer, PROMPTS[i % 8])]) for i in range(args.requests)]

    def answer(request: int, plug: SpecPlug | None) -> torch.Tensor:
        output: torch.Tensor = model.generate(
            ids[request],
            attention_mask=torch.ones_like(ids[request]),
            do_sample=False,
            max_new_tokens=args.tokens,
            min_new_tokens=args.tokens,
            **({} if plug is None else {"custom_generate": plug}),
        )
        return output

    methods: dict[
        str, tuple[Callable[..., list[torch.Tensor]], SpecPlug | None, dict[str, bool]]
    ] = {
        "plain, in a row": (in_a_row, None, {}),
        "plain, at once": (at_once, None, {}),
        "attached, in a row": (in_a_row, SpecPlug(), {}),
        "one drafts, at once": (at_once, SpecPlug(), {"only_one": True}),
        "attached, at once": (at_once, SpecPlug(), {}),
    }
    expected = in_a_row(answer, args.requests, None)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    same = True
    with tempfile.TemporaryDirectory() as folder:
        cold = Path(folder) / "cold.safetensors"
        SpecPlug().save_state(cold)
        for number in range(args.rounds + 1):  # the first one compiles and packs
            for name, (method, plug, options) in methods.items():
                if plug is not None:
                    plug.load_state(cold)
                start = time.perf_counter()
                outputs = method(answer, args.requests, plug, **options)
                if number:
                    seconds[name].append(time.perf_counter() - start)
                same &= all(map(torch.equal, outputs, expected))
    best = {name: min(times) for name, times in seconds.items()}
    for name, least in best.items():
        _, plug, _ = methods[name]
        length = "" if plug is None else f"  {plug.stats.accept_length:.2f} tokens per forward"
        print(f"{name:22}{least:7.2f} s  {best['plain, in a row'] / least:5.2f}x{length}")
    print("identical" if same else "DIFFERENT")
    if args.out:
        environment.write(args.out, vars(args), seconds=seconds, best=best, identical=same)


if __name__ == "__main__":
    main()
