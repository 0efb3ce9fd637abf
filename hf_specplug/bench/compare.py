"""`specplug bench`: methods compared on the same prompts.

No method answers a prompt twice: what drafters learn from an answer would make its repetition too
easy. The reported spread is therefore that over prompts. The methods answer each prompt in turn, in
another order at each prompt, so that a machine that slows down slows all methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from hf_specplug import DEMO_MODEL
from hf_specplug.bench import environment
from hf_specplug.bench.ablation import ablation
from hf_specplug.bench.batches import BatchRuns, Prompt
from hf_specplug.bench.generation import first_difference, generate
from hf_specplug.bench.methods import DEFAULT, PLAIN, Method, parse
from hf_specplug.bench.prompts import Question, load
from hf_specplug.bench.results import begun, merged, middle_length, names, new
from hf_specplug.bench.widths import milliseconds
from hf_specplug.datastore.opening import open_all
from hf_specplug.entrypoints.attachment import attach
from hf_specplug.errors import OptionError, RecordingError
from hf_specplug.hf import loading
from hf_specplug.hf.prompts import prompt_ids, remaining_tokens
from hf_specplug.replay.progress import Progress, silent

_WARMUP_PROMPT = "Say in one sentence what you can do."
_WARMUP_TOKENS = 48  # enough to pack weights and to time widths


@dataclass(frozen=True)
class Options:
    """What is compared.

    Attributes:
        model: folder or Hub name; None for the built-in model.
        prompts: a JSON-lines file; None for the built-in prompts.
        methods: names with commas.
        datastores: folders or Hub names of stores that plugs draft from.
        per_task: prompts of each task; 0 for all.
        tokens: the maximum length of an answer in tokens.
        dtype: of the weights.
        temperature: of sampling; 0 for greedy decoding.
        batch: numbers of rows, if batches are compared instead of single answers.
        samples: rows of each prompt in batches.
    """

    model: str | None = None
    prompts: str | None = None
    methods: str = DEFAULT
    datastores: Sequence[str] = ()
    per_task: int = 0
    tokens: int = 128
    dtype: str = "float32"
    temperature: float = 0.0
    batch: Sequence[int] = ()
    samples: int = 1

    def __post_init__(self) -> None:
        if self.samples > 1 and not (self.batch and self.temperature):
            raise OptionError(
                f"--samples {self.samples} needs --batch, and a --temperature above 0: greedy "
                "samples are all the same"
            )

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments of `generate`."""
        if self.temperature:
            return {"do_sample": True, "temperature": self.temperature}
        return {"do_sample": False}

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with names for what is built in."""
        return asdict(self) | {
            "model": self.model or "the built-in demo model",
            "prompts": self.prompts or "the built-in set",
            "datastores": list(map(str, self.datastores)),
            "batch": list(self.batch),
        }


class Benchmark:
    """A comparison of methods, which an interruption does not lose.

    Args:
        options: what is compared.
        out: a JSON file for the results, written after every prompt. If it holds the beginning of
            the same comparison, the run goes on from there.
        progress: shows how far the work is.

    Attributes:
        results: what has been measured so far, see `bench.results`.

    Raises:
        ModelError, OptionError, RecordingError, StoreError: the message says what is wrong.

    Example:
        >>> benchmark = Benchmark(Options(methods="specplug", per_task=1))  # doctest: +SKIP
        >>> benchmark.run()  # doctest: +SKIP
    """

    def __init__(
        self, options: Options, out: str | None = None, progress: Progress = silent
    ) -> None:
        self._options, self._out, self._progress = options, out, progress
        self._questions = load(options.prompts, options.per_task)
        stores = open_all(options.datastores)
        self._new_methods = partial(parse, options.methods, stores)
        self._methods = self._new_methods()
        arguments = options.to_dict() | {"methods": [method.name for method in self._methods]}
        self.results = begun(out, new(environment.environment(), arguments))
        self._model, self._tokenizer = loading.load(options.model or str(DEMO_MODEL), options.dtype)
        for store in stores:
            store.require_tokenizer(self._tokenizer)
        attach(self._model)

    def run(self) -> None:
        """Measure what has not been measured yet.

        Raises:
            RecordingError: no prompt leaves room for an answer.
            OSError: the results cannot be written.
        """
        results, progress = self.results, self._progress
        self._save()
        if self._options.batch:
            self._measure_batches()
            return
        if any(question.name not in names(results) for question in self._questions):
            self._warm_up()
            self._measure()
        if not results["rows"]:
            tokens = self._options.tokens
            raise RecordingError(f"no prompt leaves the model room for {tokens} tokens")
        ours = next((method for method in self._methods if method.plug is not None), None)
        if ours is None:
            return
        if not results["milliseconds"]:
            length = middle_length(results)
            results["milliseconds"] = milliseconds(self._model, ours, length, progress)
            self._save()
        if not results["ablation"]:
            model, tokenizer = self._model, self._tokenizer
            results["ablation"] = ablation(
                model, tokenizer, self._questions, ours, results, progress
            )
            self._save()

    def _save(self) -> None:
        if self._out:
            environment.save(self._out, self.results)

    def _warm_up(self) -> None:
        """Compile, pack and time once with each method; leave out those that cannot run."""
        prompt = torch.tensor([prompt_ids(self._tokenizer, _WARMUP_PROMPT)])
        prompt = prompt.to(self._model.device)
        settings = {**self._options.sampling, "max_new_tokens": _WARMUP_TOKENS}
        for method in self._progress(list(self._methods), "warm-up"):
            try:
                if method.plug is not None:
                    length = prompt.shape[1] + self._options.tokens
                    method.plug.warmup(self._model, length, **method.settings)
                for _ in range(2):
                    generate(self._model, prompt, method, settings)
            except Exception as error:  # transformers refuses some models in many ways
                if method.name == PLAIN:
                    raise
                self.results["failed"][method.name] = f"{type(error).__name__}: {error}"
                self._methods.remove(method)
                continue
            if method.plug is not None:
                method.plug.stats.reset()

    def _measure_batches(self) -> None:
        """Ask the first turn of each question, in batches."""
        options, prompts = self._options, list[Prompt]()
        skipped = self.results["skipped"] = list[str]()
        for question in self._questions:
            ids = question.prompt(self._tokenizer, [])
            if remaining_tokens(self._model, ids) < options.tokens:
                skipped.append(question.name)
            else:
                prompts += [(question.task, question.name, ids)] * options.samples
        pad = self._tokenizer.pad_token_id
        settings = {**options.sampling, "max_new_tokens": options.tokens, "pad_token_id": pad or 0}
        warmup = prompt_ids(self._tokenizer, _WARMUP_PROMPT)
        runs = BatchRuns(self._model, warmup, settings, self._save, self._progress)
        runs.measure(prompts, list(dict.fromkeys(options.batch)), self._new_methods, self.results)

    def _measure(self) -> None:
        """Ask what has not been asked yet; the results grow by one question at a time."""
        results, methods = self.results, self._methods
        known, before = names(results), dict(results["stats"])
        for number, question in enumerate(self._progress(self._questions, "prompts")):
            if question.name in known:
                continue
            first = number % len(methods)
            rows = list(self._ask(question, methods[first:] + methods[:first], seed=number))
            if not rows:
                results["skipped"].append(question.name)
            results["rows"] += rows
            for method in methods:
                if method.plug is not None:
                    stats = method.plug.stats.to_dict()
                    results["stats"][method.name] = merged(before.get(method.name), stats)
            self._save()

    def _ask(
        self, question: Question, methods: list[Method], seed: int
    ) -> Iterator[dict[str, Any]]:
        """A row for each turn; all methods see plain decoding's answers to earlier turns."""
        options, answers = self._options, list[list[int]]()
        settings = {**options.sampling, "max_new_tokens": options.tokens}
        for turn in range(len(question.turns)):
            ids = question.prompt(self._tokenizer, answers)
            if remaining_tokens(self._model, ids) < options.tokens:
                return
            prompt = torch.tensor([ids], device=self._model.device)
            generated = {}
            for method in methods:
                torch.manual_seed(seed)
                generated[method.name] = generate(self._model, prompt, method, settings)
            plain = generated[PLAIN].tokens
            runs = {
                name: {
                    "seconds": one.seconds,
                    "tokens": len(one.tokens),
                    "forwards": one.forwards,
                    "differs_at": first_difference(one.tokens, plain),
                }
                for name, one in generated.items()
            }
            row = {"task": question.task, "name": question.name, "turn": turn}
            yield row | {"prompt_tokens": len(ids), "answer": plain, "runs": runs}
            answers.append(plain)
