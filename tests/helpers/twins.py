"""Plain-Python twins of the kernels: slow and obvious; hypothesis compares them with the kernels.

`TWINS` lists the twins of each kernel; `tests/kernels/test_twins.py` fails if a kernel has none.
The twins of the search, of "hierarchy" and of ADED are in `tests/helpers/search_twins.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from hf_specplug.drafters.context import ORDER
from hf_specplug.drafters.contract import Drafter, Frontier, Int32, Step
from hf_specplug.drafters.dense import NEIGHBOURS, DenseDrafter
from hf_specplug.kernels import dense, gumbel, phrases
from hf_specplug.tree import DraftTree

TWINS: dict[str, list[Any]] = {}
"""The twins of each kernel, by `module.kernel`."""

T = TypeVar("T")


def twin_of(*kernels: str) -> Callable[[T], T]:
    """Decorator that registers a function or class as the twin of one or more kernels."""

    def registered(twin: T) -> T:
        for kernel in kernels:
            TWINS.setdefault(kernel, []).append(twin)
        return twin

    return registered


def is_chain(tree: DraftTree) -> bool:
    """Whether each node is the only child of the previous one."""
    return tree.parents.tolist() == list(range(-1, len(tree) - 1))


@twin_of("buckets.bucket")
def bucket(value: float, edges: Sequence[float]) -> int:
    """The number of edges that a value reaches."""
    return sum(value >= edge for edge in edges)


def ancestors(parents: Sequence[int]) -> list[list[bool]]:
    """Twin of kernels.tree.ancestors."""
    n = len(parents) + 1
    seen = [[False] * n for _ in range(n)]
    for i in range(n):
        j = i
        while j >= 0:
            seen[i][j] = True
            j = parents[j - 1] + 1 if j > 0 else -1
    return seen


@twin_of("tree.best")
def best(paths: Sequence[float], limit: int) -> list[int]:
    """The `limit` nodes of highest path probability, lower ids first; node i + 1 has paths[i]."""
    order = sorted(range(1, len(paths) + 1), key=lambda node: (-paths[node - 1], node))
    return sorted(order[:limit])


def top_k(row: Sequence[float], k: int) -> tuple[list[int], list[float]]:
    """Twin of kernels.topk.top_k for one row."""
    numbers = [i for i, value in enumerate(row) if not math.isnan(value) and value > -math.inf]
    ids = sorted(numbers, key=lambda i: (-row[i], i))[:k]
    highest = row[ids[0]] if ids else 0.0
    total = sum(math.exp(row[i] - highest) for i in numbers) if math.isfinite(highest) else 1.0
    shares = [math.exp(row[i] - highest) / total if row[i] != highest else 1 / total for i in ids]
    missing = k - len(ids)
    return ids + [-1] * missing, shares + [0.0] * missing


@twin_of("ngram.extend", "ngram.longest_suffix", "ngram.expand")
def continuations(
    text: Sequence[int], path: Sequence[int]
) -> list[tuple[int, int, int, int, bool]]:
    """Continuations of text + path by suffix matching: (token, match length, count, total, latest).

    All suffixes of text + path are tried, longest first, down to one token. A token counts at the
    longest suffix that it follows in the text. Within a suffix, the latest continuation comes
    first.
    """
    whole = [*text, *path]
    rows: list[tuple[int, int, int, int, bool]] = []
    for length in range(min(ORDER - 1, len(whole)), 0, -1):
        suffix = whole[len(whole) - length :]
        after = [
            text[end]
            for end in range(length, len(text))
            if list(text[end - length : end]) == suffix
        ]
        for i, token in enumerate(dict.fromkeys(reversed(after))):
            if token not in [row[0] for row in rows]:
                rows.append((token, length, after.count(token), len(after), i == 0))
    return rows


@twin_of("adjacency.update", "adjacency.expand")
def recycled(
    history: Sequence[tuple[Sequence[int], Sequence[Sequence[int]], Sequence[int]]],
) -> dict[int, list[int]]:
    """The adjacency matrix after several steps of (tokens, rows, visited)."""
    matrix: dict[int, list[int]] = {}
    for tokens, rows, visited in history:
        for i in [*range(len(tokens)), *visited]:
            matrix[tokens[i]] = list(rows[i])
    return matrix


Named = dict[int, float]
"""The evidence for one candidate: drafter -> prior of the bucket in which it proposed it."""


@twin_of("mixer.mix", "mixer.learn")
def mixed(
    candidates: Sequence[Named],
    sets: Sequence[int],
    weights: Sequence[Sequence[float]],
    noise: Sequence[float] | None = None,
) -> list[float]:
    """Twin of kernels.mixer.mix at one node, before recalibration.

    Args:
        candidates: the evidence for each candidate.
        sets: the weight set that each candidate's evidence calls for; the largest is used.
        weights: the weights of each set.
        noise: the exponential number of each candidate; None if the noise is unknown.
    """
    _, scores = scored(candidates, sets, weights)
    odds = [math.exp(score) for score in scores]
    if noise is not None:
        a, c = weights[max(sets)][-2:]
        odds = [one * math.exp(a * favour(e) + c) for one, e in zip(odds, noise, strict=True)]
    return [one / (1 + sum(odds)) for one in odds]


def favour(noise: float) -> float:
    """How much an exponential number favours a token: its Gumbel number, centred and clipped."""
    return min(max(-math.log(noise) - 0.5772156649015329, -2.0), 4.0)


def scored(
    candidates: Sequence[Named], sets: Sequence[int], weights: Sequence[Sequence[float]]
) -> tuple[list[list[float]], list[float]]:
    """(features, scores) of the candidates; a score is the sum of features times weights."""
    chosen = weights[max(sets)]
    drafters = (len(chosen) - 3) // 3
    mass = [sum(named.get(d, 0.0) for named in candidates) for d in range(drafters)]
    features = []
    for named in candidates:
        row = []
        for d in range(drafters):
            if d in named:
                row += [math.log(named[d] / (1 - named[d])), 1.0, 0.0]
            else:
                row += [0.0, 0.0, math.log(max(1 - mass[d], 0.02)) if mass[d] else 0.0]
        features.append([*row, 1.0])
    return features, [sum(x * w for x, w in zip(row, chosen[:-2], strict=True)) for row in features]


@twin_of("mixer.mix")
def recalibrated(prob: float, row: Sequence[float]) -> float:
    """Twin of the kernel's last step: the mean of `prob` and the apm's value at its log-odds."""
    odds = min(max(math.log(max(prob, 1e-9) / max(1 - prob, 1e-9)), -8.0), 8.0)
    place = (odds + 8) * 2
    below = min(int(place), len(row) - 2)
    above = place - below
    return 0.5 * (prob + row[below] * (1 - above) + row[below + 1] * above)


@twin_of("mixer.learn")
def recalibrating(prob: float, right: bool, rate: float, row: Sequence[float]) -> list[float]:
    """A row of the apm after one candidate: both bins next to its log-odds move to the outcome."""
    odds = min(max(math.log(max(prob, 1e-9) / max(1 - prob, 1e-9)), -8.0), 8.0)
    place = (odds + 8) * 2
    below = min(int(place), len(row) - 2)
    moved = list(row)
    for at, share in ((below, 1 - (place - below)), (below + 1, place - below)):
        moved[at] += rate * share * (right - moved[at])
    return moved


@twin_of("suffix.classify", "suffix.induce", "suffix.buckets", "suffix.rename", "suffix.is_sorted")
def suffix_array(text: Sequence[int]) -> list[int]:
    """The start of each suffix, in the order of the sorted suffixes."""
    return sorted(range(len(text)), key=lambda start: list(text[start:]))


@twin_of("retrieval.narrow", "retrieval.advance", "retrieval.expand", "retrieval.combine")
def retrieved(
    shards: Sequence[Sequence[int]],
    vocab: int,
    path: Sequence[int],
    longest: int,
    shortest: int,
    few: int,
    limit: int,
) -> list[tuple[int, int, int, int, bool]]:
    """(token, match length, count, occurrences, whether at the longest match) for one path."""
    rows: list[list[tuple[int, int, int, int]]] = []
    for shard in shards:
        mine: list[tuple[int, int, int, int]] = []
        before = 0
        for length in range(min(longest, len(path)), shortest - 1, -1):
            if before >= few or len(mine) >= limit:
                break
            gram = list(path[len(path) - length :])
            ends = [
                i + length
                for i in range(len(shard) - length + 1)
                if list(shard[i : i + length]) == gram
            ]
            if len(ends) <= before:
                continue
            following = [shard[end] for end in ends if end < len(shard) and shard[end] < vocab]
            counts = {token: following.count(token) for token in following}
            for token in sorted(counts, key=lambda token: (-counts[token], token)):
                if len(mine) < limit and all(row[0] != token for row in mine):
                    mine.append((token, length, counts[token], len(ends)))
            before = len(ends)
        rows.append(mine)
    lengths = sorted({row[1] for mine in rows for row in mine}, reverse=True)
    result: list[tuple[int, int, int, int, bool]] = []
    for length in lengths:
        total = sum(next((row[3] for row in mine if row[1] == length), 0) for mine in rows)
        counted: dict[int, int] = {}
        for mine in rows:
            for token, at, count, _ in mine:
                known = any(row[0] == token for row in result)
                if at == length and not known and len(result) + len(counted) < limit:
                    counted[token] = counted.get(token, 0) + count
                elif at == length and token in counted:
                    counted[token] += count
        top = length == lengths[0]
        result += [(token, length, count, total, top) for token, count in counted.items()]
    return result


Weighted = list[tuple[int, float]]
"""Tokens with their float32 weights, as a row of kernels.successors holds them."""


def _ranked(row: dict[int, float], width: int) -> Weighted:
    return sorted(row.items(), key=lambda pair: (-pair[1], pair[0]))[:width]


@twin_of("successors.longer")
def longer(key: int, token: int) -> int:
    """The key of an n-gram longer by one token, in Python integers cut to 64 bits."""
    mask = (1 << 64) - 1
    key = (key ^ (token + 1) & mask) * 0x9E3779B97F4A7C15 & mask
    key = (key ^ key >> 29) * 0xBF58476D1CE4E5B9 & mask
    return (key ^ key >> 32) or 1


@twin_of("successors.find", "successors.claim", "successors.restore")
class Sets:
    """A set-associative table: one dictionary per set, in the order of use."""

    def __init__(self, sets: int, ways: int) -> None:
        self.sets: list[dict[int, int]] = [{} for _ in range(sets)]
        self.ways = ways

    def claim(self, key: int) -> int:
        """Claim a key; returns how often it was claimed before, since it entered its set."""
        mine = self.sets[(key >> 32) % len(self.sets)]
        count = mine.pop(key, 0)
        if len(mine) == self.ways:
            del mine[next(iter(mine))]
        mine[key] = count + 1
        return count

    def counts(self) -> dict[int, int]:
        return {key: count for mine in self.sets for key, count in mine.items()}


@twin_of("successors.mean")
def averaged(row: Weighted, new: Weighted, visits: int, width: int) -> Weighted:
    """Add one more distribution to the mean of `visits` distributions."""
    share = 1.0 / (visits + 1)
    mean = {token: float(np.float32(weight * (1.0 - share))) for token, weight in row}
    for token, prob in new:
        weight = float(np.float32(mean.get(token, 0.0) + share * float(np.float32(prob))))
        if token >= 0 and prob > 0:
            mean[token] = weight
    return _ranked(mean, width)


@twin_of("successors.count")
def counted(row: Weighted, token: int, decay: float, width: int) -> Weighted:
    """Count one more `token`; the weights of all tokens decay first."""
    counts = {known: float(np.float32(weight * decay)) for known, weight in row}
    if token not in counts and len(counts) == width:
        del counts[row[-1][0]]
    counts[token] = float(np.float32(counts.get(token, 0.0) + 1.0))
    return _ranked(counts, width)


@twin_of("successors.learn", "successors.lookup", "successors.expand")
class Grams:
    """N-grams and their mean distributions, in a table without a limit."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.rows: dict[tuple[int, ...], tuple[int, Weighted]] = {}

    def learn(self, before: Sequence[int], ids: Sequence[int], probs: Sequence[float]) -> None:
        """Learn the target's top tokens and their probabilities after the text `before`."""
        for order in (2, 3, 4):
            gram = tuple(before[-order:])
            if len(gram) == order and min(gram) >= 0:
                visits, row = self.rows.get(gram, (0, []))
                new = list(zip(ids, probs, strict=True))
                self.rows[gram] = visits + 1, averaged(row, new, visits, self.width)

    def named(self, before: Sequence[int]) -> list[tuple[int, int]]:
        """The proposals (token, bucket) after a text."""
        for order in (4, 3, 2):
            gram = tuple(before[-order:])
            if len(gram) == order and gram in self.rows:
                visits, row = self.rows[gram]
                begin = ((order - 2) * 3 + (visits > 1) + (visits > 3)) * 8
                steps = np.array([0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9])
                return [(token, begin + int((weight >= steps).sum())) for token, weight in row]
        return []


def trigrams(
    tokens: Sequence[int], vocab: int
) -> dict[tuple[int, int], tuple[int, list[tuple[int, int]]]]:
    """Twin of TrigramIndex.build without limits: (total, successors) of each pair."""
    counts: dict[tuple[int, int], dict[int, int]] = {}
    for i in range(len(tokens) - 2):
        first, second, third = tokens[i : i + 3]
        if vocab not in (first, second, third):
            row = counts.setdefault((first, second), {})
            row[third] = row.get(third, 0) + 1
    return {
        pair: (sum(row.values()), sorted(row.items(), key=lambda one: (-one[1], one[0])))
        for pair, row in sorted(counts.items())
    }


@twin_of("trigram.learn", "trigram.last_pairs", "trigram.add", "trigram.gather")
@twin_of("trigram.distribution", "trigram.expand")
def trigram_chances(
    stores: Sequence[Sequence[int]],
    vocab: int,
    text: Sequence[int],
    pair: tuple[int, int],
    corpus: float,
    decay: float,
    width: int,
) -> dict[int, tuple[float, float]]:
    """(probability, weight in the text) of each token after a pair."""
    live: Weighted = []
    for i in range(len(text) - 2):
        if tuple(text[i : i + 2]) == pair:
            live = counted(live, text[i + 2], decay, width)
    counts: dict[int, int] = {}
    for tokens in stores:
        for token, count in trigrams(tokens, vocab).get(pair, (0, []))[1]:
            counts[token] = counts.get(token, 0) + count
    weights, total = dict(live), sum(counts.values())
    whole = corpus + sum(weights.values())
    return {
        token: (
            (corpus * counts.get(token, 0) / max(total, 1) + weights.get(token, 0.0)) / whole,
            weights.get(token, 0.0),
        )
        for token in {*counts, *weights}
    }


@dataclass
class Pointer:
    """A place in a dense store with a similar hidden state: the place of the next token."""

    shard: int
    place: int
    agreed: int
    cosine: float


@twin_of("retrieval.token_at")
def token_at(tokens: Sequence[int], place: int) -> int:
    """The token at a place; -1 outside the text."""
    return tokens[place] if 0 <= place < len(tokens) else -1


@twin_of("dense.follow", "dense.compact")
def followed(
    pointers: Iterable[Pointer], shard: int, tokens: Sequence[int], emitted: Sequence[int]
) -> list[Pointer]:
    """The pointers of a shard that agree with `emitted`, advanced, and those of other shards."""
    kept = []
    for one in pointers:
        stored = [token_at(tokens, one.place + i) for i in range(len(emitted))]
        if one.shard != shard:
            kept.append(one)
        elif stored == list(emitted):
            moved, agreed = one.place + len(emitted), one.agreed + len(emitted)
            kept.append(Pointer(shard, moved, agreed, one.cosine))
    return kept


@twin_of("dense.arrive")
def arrived(
    pointers: Iterable[Pointer],
    shard: int,
    tokens: Sequence[int],
    neighbours: Iterable[tuple[int, float]],
    root: int,
) -> list[Pointer]:
    """The pointers, and those after `neighbours` (place, cosine), which come nearest first."""
    kept = list(pointers)
    for place, cosine in neighbours:
        if place < 0 or not cosine > -2 or token_at(tokens, place + 1) != root:
            continue
        new = Pointer(shard, place + 2, 1, cosine)
        known = [one for one in kept if (one.shard, one.place) == (shard, place + 2)]
        weaker = [one for one in kept if one.agreed <= 1 and one.cosine < cosine]
        if known:
            known[0].cosine = max(known[0].cosine, cosine)
        elif len(kept) < dense.MAX_POINTERS:
            kept.append(new)
        elif weaker:
            kept[kept.index(min(weaker, key=lambda one: one.cosine))] = new
    return kept


@twin_of("dense.look")
def continuation(pointer: Pointer, tokens: Sequence[int], vocab: int) -> list[int]:
    """The tokens from a pointer on, up to the first id that is no token."""
    read: list[int] = []
    while len(read) < dense.LOOKAHEAD and 0 <= token_at(tokens, pointer.place + len(read)) < vocab:
        read.append(token_at(tokens, pointer.place + len(read)))
    return read


@dataclass
class Votes:
    """The votes of pointers for one token at a node.

    Attributes:
        votes: sum of the pointers' weights.
        share: share of all votes at the node.
        agreed: longest agreement of a pointer with the text and the path, in tokens.
        cosine: highest cosine of a pointer.
        voters: number of pointers.
    """

    votes: float = 0.0
    share: float = 0.0
    agreed: int = 0
    cosine: float = -1.0
    voters: int = 0

    def bucket(self, nudge: float = 0.0) -> int:
        """The evidence bucket; `nudge` is added to the share."""
        length = sum(self.agreed >= edge for edge in dense.LENGTH_EDGES)
        share = sum(self.share + nudge >= step for step in dense.SHARE_EDGES)
        likeness = sum(self.cosine >= step for step in dense.COSINE_EDGES)
        number = sum(self.voters >= edge for edge in dense.VOTER_EDGES)
        kind = (share * (len(dense.COSINE_EDGES) + 1) + likeness) * (
            len(dense.VOTER_EDGES) + 1
        ) + number
        return length * dense.VOTE_BUCKETS + kind


def weight(cosine: float, agreed: int) -> float:
    """The weight of a pointer's vote."""
    return math.exp(dense._SHARPNESS * (cosine - 1))


@twin_of("dense.expand")
def voted(
    pointers: Sequence[Pointer], ahead: Sequence[Sequence[int]], path: Sequence[int]
) -> dict[int, Votes]:
    """The votes for each token at the end of a path, unlimited and unordered.

    `ahead`: the tokens from each pointer on, as `continuation` reads them.
    """
    depth, whole = len(path), 0.0
    votes: dict[int, Votes] = {}
    if depth >= dense.LOOKAHEAD:
        return votes
    for one, read in zip(pointers, ahead, strict=True):
        if list(read[:depth]) != list(path):
            continue
        agreed = one.agreed + depth
        vote = weight(one.cosine, agreed)
        whole += vote
        if len(read) > depth:
            entry = votes.setdefault(read[depth], Votes())
            entry.votes += vote
            entry.voters += 1
            entry.agreed = max(entry.agreed, agreed)
            entry.cosine = max(entry.cosine, one.cosine)
    for entry in votes.values():
        entry.share = entry.votes / whole
    return votes


@twin_of("dense.project")
def projected(state: Sequence[float], transform: np.ndarray) -> np.ndarray | None:
    """The unit vector of a projected state; None if it is not finite, or projects to zero."""
    with np.errstate(all="ignore"):
        raw = np.append(np.asarray(state, np.float32), np.float32(1)) @ transform
        length = np.linalg.norm(raw.astype(np.float64))
    return raw / length if 0 < length < np.inf else None


@twin_of("tally.tally")
def tally(
    tree: DraftTree, visited: Sequence[int], bins: int
) -> tuple[list[list[float]], list[list[int]]]:
    """(count, predicted and accepted by bin; drafted and accepted by source bit) of a tree."""
    found = [[0.0] * bins for _ in range(3)]
    by_drafter = [[0] * 16 for _ in range(2)]
    for node, (parent, prob, sources) in enumerate(
        zip(tree.parents.tolist(), tree.probs.tolist(), tree.sources.tolist(), strict=True)
    ):
        hit = node + 1 in visited
        if parent + 1 in visited:
            place = min(int(np.float32(prob) * np.float32(bins)), bins - 1)
            for row, amount in enumerate((1.0, prob, float(hit))):
                found[row][place] += amount
        for bit in range(16):
            by_drafter[0][bit] += sources >> bit & 1
            by_drafter[1][bit] += (sources >> bit & 1) * hit
    return found, by_drafter


@twin_of("gumbel.count", "gumbel.count_likely")
def frequencies(
    size: int, tokens: Sequence[int], likely: Sequence[Sequence[tuple[int, float]]], amount: float
) -> list[float]:
    """How often the tokens [0, size) were said: `amount` each, and the likely ones by chance."""
    found = [0.0] * size
    for token, weight in [*((token, amount) for token in tokens), *chain.from_iterable(likely)]:
        if 0 <= token < size:
            found[token] += weight
    return found


@twin_of("gumbel.favoured", "gumbel.expand")
def favoured(
    weights: Sequence[float], total: float, noise: Sequence[float]
) -> list[tuple[int, float, int]]:
    """(token, p / e, evidence bucket) at one position; equal quotients in any order."""
    scores = [w / max(-math.log1p(-u), 1e-30) for w, u in zip(weights, noise, strict=False)]
    order = sorted((i for i, score in enumerate(scores) if score > 0), key=lambda i: -scores[i])
    rows = []
    for rank, token in enumerate(order[: gumbel.FAVOURED]):
        step = min(max(int(2 * math.log(scores[token] / total) + 8), 0), 15)
        rows.append((token, scores[token], bucket(rank, (1, 3)) * 16 + step))
    return rows


@twin_of("trie.slot_of", "trie.rehash")
class Trie:
    """Children by parent and token; nodes are numbered from 1."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[int, int], int] = {}

    def add(self, parent: int, token: int) -> None:
        self.nodes[parent, token] = len(self.nodes) + 1

    def child(self, parent: int, token: int) -> int:
        """The child of a node by token; 0 if there is none."""
        return self.nodes.get((parent, token), 0)


Phrase = tuple[int, ...]


def all_runs(text: Sequence[int], separator: int) -> Counter[Phrase]:
    """Every run of tokens without a separator, with its number of occurrences."""
    runs: Counter[Phrase] = Counter()
    for begin in range(len(text)):
        for end in range(begin + 1, len(text) + 1):
            if text[end - 1] == separator:
                break
            runs[tuple(text[begin:end])] += 1
    return runs


@twin_of("repeats.repeats")
def repeated(
    text: Sequence[int], separator: int, least: int, often: int, nearly: float
) -> set[tuple[Phrase, int]]:
    """The maximal repeats and their numbers of occurrences."""
    runs = all_runs(text, separator)
    expected = set()
    for run, count in runs.items():
        after = max(runs[(*run, token)] for token in range(separator))
        before = max(runs[(token, *run)] for token in range(separator))
        alone = after < nearly * count and before / count < nearly
        if len(run) >= least and count >= often and alone:
            expected.add((run, count))
    return expected


@twin_of("repeats.grams")
def grams(text: Sequence[int], separator: int, size: int) -> list[tuple[Phrase, int]]:
    """All runs of `size` tokens, sorted, and their numbers of occurrences."""
    runs = all_runs(text, separator)
    return sorted((run, count) for run, count in runs.items() if len(run) == size)


@twin_of("repeats.common_prefixes")
def common_prefixes(text: Sequence[int], suffixes: Sequence[int], separator: int) -> list[int]:
    """The length of the prefix that each suffix shares with the previous one, in tokens."""
    shared = [0] * len(suffixes)
    for place in range(1, len(suffixes)):
        one, other = text[suffixes[place - 1] :], text[suffixes[place] :]
        for a, b in zip(one, other, strict=False):
            if a != b or a == separator:
                break
            shared[place] += 1
    return shared


@twin_of("phrases.insert", "phrases.step", "phrases.advance", "phrases.link")
def phrase_state(known: Iterable[Phrase], text: Sequence[int]) -> Phrase:
    """The longest suffix of a text that is a prefix of a phrase."""
    prefixes = {phrase[:length] for phrase in known for length in range(len(phrase) + 1)}
    endings = (tuple(text[begin:]) for begin in range(len(text) + 1))
    return next(each for each in endings if each in prefixes)


@twin_of("phrases.expand")
def completions(known: dict[Phrase, int], path: Sequence[int], vocab: int) -> list[tuple[int, int]]:
    """The continuations (token, bucket) of a path, computed from the definition."""
    rows: dict[int, int] = {}
    weights: Counter[Phrase] = Counter()
    for phrase, count in known.items():
        for length in range(1, len(phrase) + 1):
            weights[phrase[:length]] += count
    for length in range(len(path), 0, -1):
        state = tuple(path[-length:])
        below = {t: weights[(*state, t)] for t in range(vocab) if (*state, t) in weights}
        if not below or len(rows) >= phrases.ENOUGH:
            continue
        shift = phrases.SHORTER if rows else 0
        depth = bucket(length, phrases.LENGTH_EDGES)
        for token in sorted(below, key=lambda t: (-below[t], t)):
            share = bucket(below[token] / sum(below.values()), phrases.SHARE_EDGES)
            rows.setdefault(token, shift + depth * phrases.SHARES + share)
    return list(rows.items())


class DenseTwin(Drafter):
    """Twin of DenseDrafter that compares a hidden state with every vector.

    Args:
        shards: (tokens, vectors) of each shard.
        transform, vocab: the projection and the vocabulary size of all shards.
        priors: float32[buckets].
    """

    name = "dense"

    def __init__(
        self,
        shards: Sequence[tuple[Sequence[int], np.ndarray]],
        transform: np.ndarray,
        vocab: int,
        priors: np.ndarray,
    ) -> None:
        self.shards, self.transform, self.vocab = shards, transform, vocab
        self.priors = priors
        self.pointers: list[Pointer] = []

    def observe(self, step: Step) -> None:
        emitted = step.emitted.tolist()
        for number, (tokens, _) in enumerate(self.shards):
            self.pointers = followed(self.pointers, number, tokens, emitted)
        vector = None if step.hidden is None else projected(step.hidden, self.transform)
        if vector is not None:
            for number, (tokens, vectors) in enumerate(self.shards):
                near = vectors @ vector
                order = np.argsort(-near, kind="stable")[:NEIGHBOURS].tolist()
                nearest = [(place, float(near[place])) for place in order]
                self.pointers = arrived(self.pointers, number, tokens, nearest, emitted[-1])

    def expand(self, frontier: Frontier) -> Int32:
        ahead = [continuation(one, self.shards[one.shard][0], self.vocab) for one in self.pointers]
        rows = []
        for node in frontier.nodes.tolist():
            votes = voted(self.pointers, ahead, frontier.path(node))
            order = sorted(votes, key=lambda token: -votes[token].votes)
            for token in order[: DenseDrafter.rows_per_node]:
                rows.append((node, token, votes[token].bucket()))
        return np.array(rows, np.int32).reshape(-1, 3)


@twin_of("group.learn", "group.lookup", "group.expand")
class GroupGrams:
    """N-grams of any text, and those of one prompt, which are preferred at the same length."""

    def __init__(self, width: int) -> None:
        self.any, self.own = Grams(width), Grams(width)

    def named(self, before: Sequence[int]) -> list[tuple[int, int]]:
        """The proposals (token, bucket) after a text."""
        for order in (4, 3, 2):
            gram = tuple(before[-order:])
            for grams in (self.own, self.any):
                if len(gram) == order and gram in grams.rows:
                    return grams.named(before)
        return []
