"""Learning what `drafters/priors.json` holds: priors of evidence, and weights of the mixer.

Only numbers leave the recording: one probability for each evidence bucket of a drafter, and the
mixer's weights. Texts named "seed N" were sampled with that seed on a CPU; they teach what known
sampling noise is worth (`tests/benchmarks/many_samples.py --recording` writes such texts).
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from hf_specplug.datastore.store import Datastore
from hf_specplug.drafters import priors as shipped
from hf_specplug.drafters.contract import Drafter
from hf_specplug.drafters.gumbel import GumbelDrafter
from hf_specplug.drafters.hierarchy import HierarchyDrafter
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.errors import OptionError
from hf_specplug.kernels import (
    buckets,
    dense,
    frequency,
    gumbel,
    ngram,
    phrases,
    retrieval,
    sparse,
    stand,
    trigram,
)
from hf_specplug.kernels import mixer as mixing
from hf_specplug.replay.compare import reading
from hf_specplug.replay.counting import Counts
from hf_specplug.replay.live import replay_live
from hf_specplug.replay.progress import Progress, silent
from hf_specplug.replay.recording import Recording
from hf_specplug.replay.simulate import Texts, replay

Priors = dict[str, Any]
"""What `priors.json` holds: priors by drafter, "mixer", and "stand_tree"."""

FILE = Path(shipped.__file__).with_name("priors.json")

GRIDS = {
    "context": [
        (ngram.LENGTHS, ngram.LONGEST_BUCKETS),
        (ngram.LENGTHS, ngram.SHORTER_BUCKETS),
    ],
    "dense": [(dense.LENGTHS, dense.VOTE_BUCKETS)],
    "frequency": [(frequency.SHARES, frequency.RANKS)],
    "gumbel": [(1, gumbel.SCORES)] * gumbel.RANKS,
    "phrases": [(phrases.LENGTHS, phrases.SHARES)] * 2,
    "recycling": [(8, 8)],
    "rest": [
        (retrieval.LENGTHS, retrieval.LONGEST_BUCKETS),
        (retrieval.LENGTHS, retrieval.SHORTER_BUCKETS),
    ],
    "sparse": [(sparse.SCORES, 1)] * sparse.DEPTHS,
    "stand": [(stand.VISITS, buckets.PROB_BUCKETS)] * stand.GRAM_LENGTHS,
    "trigram": [(trigram.SUPPORTS, buckets.PROB_BUCKETS)] * trigram.STRENGTHS,
}
"""Evidence buckets of a drafter as tables (rows, columns); rows go from weak to strong evidence."""

_STRENGTH = 20.0  # observations that the weaker neighbour of a bucket counts for
_NODES = 25  # tokens per forward pass of the replay


def smoothed(hits: Any, seen: Any) -> Any:
    """Hit rates float64[rows, columns] of a table of buckets, smoothed where data are sparse.

    A bucket leans on the row before it, and the first row on the mean of its column.

    Example:
        >>> smoothed(np.array([[0.0], [9.0]]), np.array([[0.0], [9.0]])).round(2).tolist()
        [[0.26], [0.49]]
    """
    rates = np.empty(hits.shape)
    above = (hits.sum(0) + 1) / (seen.sum(0) + 30)
    for row in range(len(hits)):
        above = rates[row] = (hits[row] + _STRENGTH * above) / (seen[row] + _STRENGTH)
    return rates.clip(5e-4, 0.999)


def learn(
    recording: Recording,
    names: Sequence[str],
    datastores: Sequence[Datastore] = (),
    only: str | None = None,
    passes: int = 3,
    model: PreTrainedModel | None = None,
    progress: Progress = silent,
) -> tuple[Priors, list[float]]:
    """Learn priors and mixing weights from recorded texts.

    Args:
        recording: the texts; they are shuffled, so that the weights fit all tasks.
        names: the drafters, which draft together.
        datastores: stores that they read.
        only: change the numbers of this drafter only (a new one, say).
        passes: replays; each starts from what the one before learned.
        model: the recorded model. If given, it verifies the drafts of one more pass. Drafters then
            also learn what follows rejected tokens, as in live decoding, and are worth more or less
            than in a replay.
        progress: shows how many texts are done.

    Returns:
        (what `priors.json` should hold, the accept length of each pass in tokens)

    Raises:
        OptionError: an unknown drafter, or `only` is not one of `names`.

    Example:
        >>> recording = load("my.safetensors")  # doctest: +SKIP
        >>> priors, lengths = learn(recording, ["context", "recycling"])  # doctest: +SKIP
    """
    if only is not None and only not in names:
        raise OptionError(f"{only!r} is not one of the drafters {', '.join(names)}")
    texts = list(recording.texts)
    random.Random(0).shuffle(texts)
    recording = Recording(recording.model, recording.vocab_size, texts)
    known: Priors = json.loads(FILE.read_text(encoding="utf-8"))
    blank = _blank(reading(names, datastores))
    priors = known | blank if only is None else blank | known
    lengths = []
    for number in range(1, passes + 1 + (model is not None)):
        label = f"pass {number}"
        verifier = model if number > passes else None
        learned, length = _one_pass(recording, names, datastores, priors, verifier, progress, label)
        priors = _with(known, learned)
        lengths.append(length)
    return (priors if only is None else _with_only(known, priors, only)), lengths


def write(priors: Priors, path: str) -> None:
    """Write priors as JSON, one line for each drafter."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(priors[key])}" for key in priors)
    Path(path).write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def _blank(drafters: Sequence[Drafter]) -> Priors:
    """Where learning starts if nothing is known."""
    mixer = {
        "drafters": {},
        "others": [[0.5, 1.5, 0.2]] * mixing.SETS,
        "bias": [-3.0, -2.0, -1.5, -1.0],
        "noise": [[0.3, -1.0]] * mixing.SETS,
    }
    priors = {each.name: np.full(len(each.priors), 0.1) for each in drafters if _has_priors(each)}
    return {**priors, "mixer": mixer}


def _with(known: Priors, learned: Priors) -> Priors:
    """The known priors, with what was learned of the drafters that took part."""
    mixer = {**known["mixer"], **learned["mixer"]}
    mixer["drafters"] = {**known["mixer"]["drafters"], **learned["mixer"]["drafters"]}
    if GumbelDrafter.name not in learned:  # nothing was drafted by noise
        mixer["noise"] = known["mixer"]["noise"]
    return {**known, **learned, "mixer": mixer}


def _with_only(known: Priors, learned: Priors, name: str) -> Priors:
    """The known priors with those of one drafter replaced."""
    mixer = {"drafters": {name: learned["mixer"]["drafters"][name]}}
    if name == GumbelDrafter.name:
        mixer["noise"] = learned["mixer"]["noise"]
    return _with(known, {name: learned[name], "mixer": mixer})


def _has_priors(drafter: Drafter) -> bool:
    """Whether a drafter has priors of its own; a hierarchy uses those of its levels."""
    return not isinstance(drafter, HierarchyDrafter)


def _one_pass(
    recording: Recording,
    names: Sequence[str],
    datastores: Sequence[Datastore],
    start: Priors,
    model: PreTrainedModel | None,
    progress: Progress,
    label: str,
) -> tuple[Priors, float]:
    """(what one pass teaches, its accept length)"""
    counts = Counts(recording.vocab_size)
    drafters = reading(names, datastores)
    for drafter in drafters:
        if _has_priors(drafter):
            drafter.priors = np.array(start[drafter.name], np.float32)
    mixer = _mixer(names, start["mixer"])

    def shown(texts: Texts) -> Texts:
        return counts.follow(progress(texts, label))

    if model is None:
        stats = replay(recording, drafters, mixer, _NODES, None, counts.search(), shown).total
    else:
        stats = replay_live(model, recording, drafters, mixer, _NODES, counts.search(), shown)
    return _read(counts, drafters), stats.accept_length


def _mixer(names: Sequence[str], start: Mapping[str, Any]) -> Mixer:
    mixer = Mixer(names)
    weights = {name: start["drafters"].get(name, start["others"]) for name in names}
    state = {f"{name}.weights": np.array(table) for name, table in weights.items()}
    mixer.load_state_dict({**state, **{key: np.array(start[key]) for key in ("bias", "noise")}})
    return mixer


def _read(counts: Counts, drafters: Sequence[Drafter]) -> Priors:
    """Priors by drafter, and the mean weights of the mixer."""
    priors: Priors = {}
    begin = 1  # bucket 0: not proposed
    for drafter in drafters:
        table: list[float] = []
        for rows, columns in GRIDS.get(drafter.name, [(1, len(drafter.priors))]):
            part = slice(begin, begin + rows * columns)
            begin += rows * columns
            hits, seen = (of[part].reshape(rows, columns) for of in (counts.hits, counts.seen))
            table += smoothed(hits, seen).ravel().round(4).tolist()
        if _has_priors(drafter):
            priors[drafter.name] = table
    weights = (counts.weights / counts.steps).round(3)
    of_drafters = {each.name: weights[:, 3 * d : 3 * d + 3] for d, each in enumerate(drafters)}
    priors["mixer"] = {
        "drafters": {name: table.tolist() for name, table in of_drafters.items()},
        # a drafter of which nothing was learned gets the weights of an average one
        "others": np.mean(list(of_drafters.values()), axis=0).round(3).tolist(),
        "bias": weights[:, -3].tolist(),
        "noise": weights[:, -2:].tolist(),
    }
    return priors
