"""An identity certificate: plain and drafted `generate` compared on one model, as it runs here.

All plain answers are generated before the plug is attached, so that nothing of it can change them.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import logging

from hf_specplug import DEMO_MODEL
from hf_specplug.audit.cases import Case, cases
from hf_specplug.audit.near_ties import explain
from hf_specplug.bench import environment
from hf_specplug.bench.prompts import load, spread
from hf_specplug.entrypoints.attachment import attach, detach
from hf_specplug.errors import RecordingError
from hf_specplug.hf import loading
from hf_specplug.hf.attention import implementation
from hf_specplug.hf.plan import PLAIN
from hf_specplug.hf.prompts import greedy_answer, remaining_tokens
from hf_specplug.plug import SpecPlug
from hf_specplug.replay.progress import Progress, silent
from hf_specplug.verify.noise import generator_state

NODES = 16
"""Tokens per forward pass. It is fixed, so that trees are verified even where they do not pay."""

PROMPTS = 2
"""Number of the built-in prompts that are used."""

_SHORTEST = 8  # tokens of an answer from which settings that act on tokens can be made

Certificate = dict[str, Any]
"""What an audit found, for JSON.

machine, versions, commit: see `bench.environment`
arguments: see `Options.to_dict`
model: class, dtype, device, attention, parameters
runs: one for each case, prompt and seed: case, prompt, seed; plain and drafted (tokens: their
    number, hash: of them, generator: hash of the random generator's state at the end, ids if they
    differ); identical (the tokens), generator (whether the states are equal), differs (see
    `near_ties.Difference`; null if identical), served ("mode, engine", or plain with the reason),
    tokens_per_forward (null if not drafted), error (that only the drafted call raised, or null)
skipped: case -> why transformers refuses it on this model
dropped: drafter -> the error for which it was dropped
"""


@dataclass(frozen=True)
class Options:
    """What is audited.

    Attributes:
        model: folder or Hub name; None for the built-in model.
        prompts: a JSON-lines file; None for built-in prompts.
        seeds: number of seeds of each sampled case.
        tokens: the maximum length of an answer in tokens.
        dtype: of the weights; None for the model's own.
        device: a torch device; None for the one that `loading.load` chooses.
    """

    model: str | None = None
    prompts: str | None = None
    seeds: int = 3
    tokens: int = 40
    dtype: str | None = None
    device: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with names for what is built in."""
        return asdict(self) | {
            "model": self.model or "the built-in demo model",
            "prompts": self.prompts or "the built-in set",
        }


@dataclass(frozen=True)
class _Job:
    """One call: a case with a prompt (its name and token ids) and a seed."""

    case: Case
    prompt: str
    ids: list[int]
    seed: int


@dataclass(frozen=True)
class _Answer:
    """Token ids of an answer, and the state of the random generator after it."""

    tokens: list[int]
    state: torch.Tensor

    def to_dict(self, whole: bool) -> dict[str, Any]:
        """For JSON; `whole`: with the token ids."""
        return {
            "tokens": len(self.tokens),
            "hash": _hash(np.array(self.tokens, np.int64)),
            "generator": _hash(self.state.cpu().numpy()),
            **({"ids": self.tokens} if whole else {}),
        }


class Audit:
    """Compares plain and drafted generation.

    Args:
        options: what is compared.
        progress: shows how far the work is.

    Raises:
        ModelError, OptionError, RecordingError: the message says what is wrong.

    Example:
        >>> certificate = Audit(Options(tokens=16)).run()  # doctest: +SKIP
        >>> certificate["runs"][0]["identical"]  # doctest: +SKIP
        True
    """

    def __init__(self, options: Options, progress: Progress = silent) -> None:
        self._options, self._progress = options, progress
        questions = load(options.prompts)
        if options.prompts is None:
            questions = spread(questions, PROMPTS)
        name = options.model or str(DEMO_MODEL)
        self._model, self._tokenizer = loading.load(name, options.dtype or "auto", options.device)
        self._prompts = {each.name: each.prompt(self._tokenizer, []) for each in questions}
        for prompt, ids in self._prompts.items():
            if remaining_tokens(self._model, ids) < options.tokens + NODES:
                raise RecordingError(
                    f"{prompt} leaves the model no room for {options.tokens} tokens and {NODES} "
                    "drafted ones: use shorter prompts or fewer tokens"
                )

    def run(self) -> Certificate:
        """Compare a plain and a drafted call for each case, prompt and seed."""
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # it warns of settings that greedy decoding ignores
        try:
            return self._compare()
        finally:
            logging.set_verbosity(verbosity)

    def _compare(self) -> Certificate:
        skipped: dict[str, str] = {}
        plain = [(job, self._plain(job, skipped)) for job in self._progress(self._jobs(), "plain")]
        known = [(job, answer) for job, answer in plain if answer is not None]
        plug = attach(self._model, nodes=NODES, tokenizer=self._tokenizer)
        dropped: dict[str, str] = {}
        try:
            runs = []
            for job, answer in self._progress(known, "drafted"):
                runs.append(self._drafted(job, answer, plug))
                dropped |= plug.stats.dropped
        finally:
            detach(self._model)
        differ = [
            (job, run)
            for (job, _), run in zip(known, runs, strict=True)
            if not run["identical"] and not run["error"]
        ]
        for job, run in self._progress(differ, "near-ties"):
            answers = run["plain"]["ids"], run["drafted"]["ids"]
            inputs, settings = self._inputs(job), self._settings(job)
            run["differs"] = explain(self._model, inputs, settings, job.seed, answers).to_dict()
        return {
            **environment.environment(),
            "arguments": self._options.to_dict(),
            "model": _about(self._model),
            "runs": runs,
            "skipped": skipped,
            "dropped": dropped,
        }

    def _jobs(self) -> list[_Job]:
        """All calls. Greedy ones have a seed as well: they must draw nothing."""
        first = next(iter(self._prompts.values()))
        answer = greedy_answer(self._model, first, self._options.tokens)
        if len(answer) < _SHORTEST:
            raise RecordingError(
                f"the model answers the first prompt with {len(answer)} tokens; an audit needs "
                f"{_SHORTEST}: use another prompt"
            )
        return [
            _Job(case, name, ids, seed)
            for case in cases(self._model, self._tokenizer, answer)
            for name, ids in self._prompts.items()
            for seed in range(self._options.seeds if case.sampled else 1)
        ]

    def _inputs(self, job: _Job) -> dict[str, torch.Tensor]:
        ids = torch.tensor([job.ids], device=self._model.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _settings(self, job: _Job) -> dict[str, Any]:
        return {"max_new_tokens": self._options.tokens, **job.case.settings}

    def _answer(self, job: _Job) -> _Answer:
        torch.manual_seed(job.seed)
        output = self._model.generate(**self._inputs(job), **self._settings(job))
        tokens = output[0, len(job.ids) :].tolist()
        return _Answer(tokens, generator_state(self._model.device))

    def _plain(self, job: _Job, skipped: dict[str, str]) -> _Answer | None:
        """The plain answer; None if transformers refuses the case, which is then in `skipped`."""
        if job.case.name in skipped:
            return None
        try:
            return self._answer(job)
        except Exception as error:  # in many ways
            skipped[job.case.name] = f"{type(error).__name__}: {error}"
            return None

    def _drafted(self, job: _Job, plain: _Answer, plug: SpecPlug) -> dict[str, Any]:
        """The drafted call, compared with the plain one."""
        plug.stats.reset()
        drafted, error = _Answer([], plain.state), None
        try:
            drafted = self._answer(job)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        stats = plug.stats
        reasons = [f"{PLAIN}: {reason}" for reason in stats.fallbacks] if not stats.calls else []
        identical = drafted.tokens == plain.tokens
        return {
            "case": job.case.name,
            "prompt": job.prompt,
            "seed": job.seed,
            "plain": plain.to_dict(not identical),
            "drafted": drafted.to_dict(not identical),
            "identical": identical,
            "generator": torch.equal(drafted.state, plain.state),
            "differs": None,
            "served": ", ".join([*stats.engines, *reasons]) or "not at all",
            "tokens_per_forward": stats.accept_length if stats.forwards else None,
            "error": error,
        }


def _about(model: Any) -> dict[str, Any]:
    return {
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "attention": implementation(model),
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }


def _hash(array: NDArray[Any]) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]
