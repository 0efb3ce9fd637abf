"""The results of `specplug bench`, as they stand in its JSON file, and what follows from them.

rows: one for each turn: task, name, turn, prompt_tokens, answer (token ids of plain decoding),
    runs: method -> seconds, tokens, forwards (the prompt's forward pass included), differs_at (the
    index of the first token that differs from plain decoding's; null if there is none)
batches: with `--batch`, instead of rows: one part for each number of rows: rows, failed, stats, and
    calls: task, name, prompt_tokens (the longest prompt's), and runs as above, where tokens are
    those of all rows, forwards count each row, and differs_at is the first difference in any row
failed: method -> the error that its first call raised
skipped: names of prompts that leave the model no room for an answer
stats: method -> the counters of its plug (`Stats.to_dict()`)
milliseconds: method, after (tokens of context), by_width (ms per forward pass)
ablation: see `bench.ablation`
"""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import dataclass
from typing import Any

from hf_specplug.bench.methods import PLAIN
from hf_specplug.errors import RecordingError

Results = dict[str, Any]

_PARTS: dict[str, type] = {
    "rows": list,
    "batches": list,
    "failed": dict,
    "skipped": list,
    "stats": dict,
    "milliseconds": dict,
    "ablation": dict,
}
_SAME = ("arguments", "machine", "versions")


def new(environment: dict[str, Any], arguments: dict[str, Any]) -> Results:
    """The results of a run that has not measured anything yet."""
    return {**environment, "arguments": arguments, **{key: of() for key, of in _PARTS.items()}}


def begun(path: str | None, fresh: Results) -> Results:
    """The results that an interrupted run wrote to `path`; `fresh` if there is no such file.

    Raises:
        RecordingError: the file holds the results of another run, or something else.
    """
    if path is None or not os.path.exists(path):
        return fresh
    results = read(path)
    for key in _SAME:
        before, now = results[key], fresh[key]
        if changed := sorted(part for part in {*before, *now} if before.get(part) != now.get(part)):
            raise RecordingError(
                f"{path} holds a run with other {key} ({', '.join(changed)}): remove it or choose "
                "another --out"
            )
    return results


def read(path: str) -> Results:
    """Read the results that a run wrote to its `--out`.

    Raises:
        RecordingError: the file is something else.
        OSError: the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            results = {"batches": [], **json.load(file)}  # version 0.1 measured none
        fitting = all(isinstance(results[key], of) for key, of in _PARTS.items())
        fitting &= all(isinstance(results[key], dict) for key in _SAME)
        rows = [row for part in results["batches"] for row in part["calls"]]
        fitting &= all(PLAIN in row["runs"] for row in [*results["rows"], *rows])
    except (ValueError, KeyError, TypeError) as error:
        raise RecordingError(f"{path} is not what `specplug bench --out` writes") from error
    if not fitting:
        raise RecordingError(f"{path} is not what `specplug bench --out` writes")
    return results  # type: ignore[no-any-return]


def names(results: Results) -> set[str]:
    """The names of the questions that were asked or skipped."""
    return {row["name"] for row in results["rows"]} | set(results["skipped"])


def methods(results: Results) -> list[str]:
    """The methods that were compared, plain decoding first."""
    return [name for name in results["arguments"]["methods"] if name not in results["failed"]]


def notes(results: Results) -> list[str]:
    """What a reader should know beside the figures: failures, fallbacks, skipped prompts."""
    lines = [f"{method} cannot run this model: {why}" for method, why in results["failed"].items()]
    lines += _drafting_notes(results["stats"])
    for part in results["batches"]:
        heading = f"{part['rows']} rows"
        lines += [f"{heading}: {method}: {why}" for method, why in part["failed"].items()]
        lines += [f"{heading}: {line}" for line in _drafting_notes(part["stats"])]
    if results["skipped"]:
        count, tokens = len(results["skipped"]), results["arguments"]["tokens"]
        lines.append(f"{count} prompts were skipped: they leave no room for {tokens} tokens")
    return lines


def _drafting_notes(stats: dict[str, Any]) -> list[str]:
    """Fallbacks and dropped drafters, by the counters of each method's plug."""
    lines = []
    for method, of_plug in stats.items():
        lines += [f"{method}: {count} x {why}" for why, count in of_plug["fallbacks"].items()]
        lines += [
            f"{method}: {name} was dropped: {why}" for name, why in of_plug["dropped"].items()
        ]
    return lines


def tasks(results: Results) -> list[str]:
    """The tasks, in the order of the prompts."""
    return list(dict.fromkeys(row["task"] for row in results["rows"]))


def middle_length(results: Results) -> int:
    """The median number of tokens of prompt and half an answer."""
    lengths = [row["prompt_tokens"] + len(row["answer"]) // 2 for row in results["rows"]]
    return int(statistics.median(lengths))


def merged(one: Any, other: Any) -> Any:
    """Add up the counters of two runs, at any depth."""
    if one is None:
        return other
    if isinstance(other, dict):
        keys = list(dict.fromkeys([*one, *other]))
        both = {key: merged(one.get(key), other[key]) if key in other else one[key] for key in keys}
        if "accept_length" in both:
            both["accept_length"] = both["tokens"] / max(sum(both["lengths"].values()), 1)
        if "ece" in both:
            missed = sum(
                abs(p - a) for p, a in zip(both["predicted"], both["accepted"], strict=True)
            )
            both["ece"] = missed / max(sum(both["count"]), 1)
        return both
    if isinstance(other, list):
        longer, shorter = sorted((one, other), key=len, reverse=True)
        return [a + b for a, b in zip(longer, shorter, strict=False)] + longer[len(shorter) :]
    return other if isinstance(other, str) else one + other


@dataclass(frozen=True)
class Summary:
    """A method on some rows, compared with plain decoding.

    Attributes:
        tokens_per_second: all tokens divided by all seconds.
        speed: the same, as a multiple of plain decoding's.
        quartiles: lower quartile, median and upper quartile of the speeds of single answers.
        tokens_per_forward: the prompt's forward pass included; in a batch, of each row.
        identical: how many answers are identical to plain decoding's.
        answers: how many there are.
        spec_bench: speed by the formula of Spec-Bench: means over questions of tokens per second.
    """

    tokens_per_second: float
    speed: float
    quartiles: tuple[float, float, float]
    tokens_per_forward: float
    identical: int
    answers: int
    spec_bench: float


def summary(results: Results, method: str, task: str | None = None) -> Summary:
    """Sum up a method on a task, or on all tasks."""
    return summed([row for row in results["rows"] if task in (None, row["task"])], method)


def summed(rows: list[dict[str, Any]], method: str) -> Summary:
    """Sum up a method on some rows, or on the calls of batches."""
    own, plain = [row["runs"][method] for row in rows], [row["runs"][PLAIN] for row in rows]
    single = speeds(rows, method)
    quartiles = statistics.quantiles(single, method="inclusive") if len(single) > 1 else 3 * single
    return Summary(
        tokens_per_second=_rate(own),
        speed=_rate(own) / _rate(plain),
        quartiles=(quartiles[0], quartiles[1], quartiles[2]),
        tokens_per_forward=sum(run["tokens"] for run in own) / sum(run["forwards"] for run in own),
        identical=sum(run["differs_at"] is None for run in own),
        answers=len(own),
        spec_bench=_by_question(rows, method) / _by_question(rows, PLAIN),
    )


def speeds(rows: list[dict[str, Any]], method: str) -> list[float]:
    """Speeds of single answers: tokens per second as a multiple of plain decoding's."""
    return [_rate([row["runs"][method]]) / _rate([row["runs"][PLAIN]]) for row in rows]


def _rate(runs: list[dict[str, Any]]) -> float:
    """Tokens per second."""
    return float(sum(run["tokens"] for run in runs) / sum(run["seconds"] for run in runs))


def _by_question(rows: list[dict[str, Any]], method: str) -> float:
    """Tokens per second as Spec-Bench counts: the mean over questions, each with all its turns."""
    turns: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        turns.setdefault(row["name"], []).append(row["runs"][method])
    return statistics.fmean(_rate(runs) for runs in turns.values())
