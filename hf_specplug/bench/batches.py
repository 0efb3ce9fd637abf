"""`specplug bench --batch`: methods compared on batches, for each number of rows.

The rows of a batch are neighbours in the list of prompts, in which each prompt stands as many times
as samples of it are asked for. Each number of rows begins with plugs that have learned nothing. The
methods take turns on each batch, with the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hf_specplug.bench.generation import Generation, first_difference, generate
from hf_specplug.bench.methods import PLAIN, Method
from hf_specplug.bench.results import Results, merged
from hf_specplug.errors import RecordingError
from hf_specplug.replay.progress import Progress

Prompt = tuple[str, str, list[int]]
"""(task, name of the question, token ids)"""


class BatchRuns:
    """The measurement of batches of one model.

    Args:
        model: attached.
        warmup: token ids of a prompt that is asked before anything is measured.
        settings: further arguments of `generate`, with a `pad_token_id`.
        save: called after each batch.
        progress: shows how far the work is.
    """

    def __init__(
        self,
        model: Any,
        warmup: list[int],
        settings: dict[str, Any],
        save: Callable[[], None],
        progress: Progress,
    ) -> None:
        self._model, self._warmup, self._settings = model, warmup, settings
        self._save, self._progress = save, progress

    def measure(
        self,
        prompts: Sequence[Prompt],
        counts: Sequence[int],
        methods: Callable[[], list[Method]],
        results: Results,
    ) -> None:
        """Measure the batches that are missing; the results grow by one batch at a time.

        Args:
            prompts: one for each row.
            counts: numbers of rows.
            methods: makes the methods to compare.
            results: see `bench.results`.

        Raises:
            RecordingError: there are fewer prompts than rows.
        """
        if len(prompts) < max(counts):
            raise RecordingError(
                f"a batch of {max(counts)} rows needs as many prompts, samples included, but there "
                f"are {len(prompts)}: give more --prompts or --samples, or smaller batches"
            )
        parts = {part["rows"]: part for part in results["batches"]}
        for rows in counts:
            if rows not in parts:
                parts[rows] = {"rows": rows, "calls": [], "failed": {}, "stats": {}}
                results["batches"].append(parts[rows])
            missing = range(len(parts[rows]["calls"]), len(prompts) // rows)  # whole batches
            if missing:
                batches = [prompts[number * rows : (number + 1) * rows] for number in missing]
                self._measure(batches, missing.start, methods(), parts[rows])

    def _measure(
        self,
        batches: Sequence[Sequence[Prompt]],
        start: int,
        methods: list[Method],
        part: dict[str, Any],
    ) -> None:
        """Measure some batches, the first of which has the number `start`."""
        before, able = dict(part["stats"]), self._able(methods, part)
        for number, batch in enumerate(self._progress(batches, f"{part['rows']} rows"), start):
            first = number % len(able)
            part["calls"].append(self._ask(batch, able[first:] + able[:first], seed=number))
            for method in able:
                if method.plug is not None:
                    stats = method.plug.stats.to_dict()
                    part["stats"][method.name] = merged(before.get(method.name), stats)
            self._save()

    def _able(self, methods: list[Method], part: dict[str, Any]) -> list[Method]:
        """The methods that can run such a batch, after compiling, packing and timing with each."""
        able = []
        for method in methods:
            try:
                for _ in range(2):
                    self._generate([self._warmup] * part["rows"], method)
            except Exception as error:  # transformers' own drafters take one row only
                if method.name == PLAIN:
                    raise
                part["failed"][method.name] = f"{type(error).__name__}: {error}"
                continue
            if method.plug is not None:
                method.plug.stats.reset()
            able.append(method)
        return able

    def _generate(self, prompts: Sequence[list[int]], method: Method) -> Generation:
        ids, mask = padded(prompts, self._settings["pad_token_id"])
        device = self._model.device
        return generate(self._model, ids.to(device), method, self._settings, mask.to(device))

    def _ask(self, batch: Sequence[Prompt], methods: list[Method], seed: int) -> dict[str, Any]:
        """The figures of all methods on one batch."""
        prompts = [ids for _, _, ids in batch]
        generated = {}
        for method in methods:
            torch.manual_seed(seed)
            generated[method.name] = self._generate(prompts, method)
        plain, runs = generated[PLAIN].rows, {}
        for name, one in generated.items():
            pairs = zip(one.rows, plain, strict=True)
            places = [place for pair in pairs if (place := first_difference(*pair)) is not None]
            runs[name] = {
                "seconds": one.seconds,
                "tokens": sum(map(len, one.rows)),
                "forwards": one.forwards,
                "differs_at": min(places, default=None),
            }
        task, name, _ = batch[0]
        return {"task": task, "name": name, "prompt_tokens": max(map(len, prompts)), "runs": runs}


def padded(prompts: Sequence[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), int64[N, n]: prompts with padding on the left, 0 in the mask.

    Example:
        >>> padded([[5, 6], [7]], pad=0)[0].tolist()
        [[5, 6], [0, 7]]
    """
    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)
