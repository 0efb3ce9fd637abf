"""The drafts of seven papers in plain Python, written from their pseudo-code.

A draft is a set of paths, each a tuple of tokens from the end of the text, in the order in which
the nodes were chosen. Documents are lists of tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tests.helpers import search_twins
from tests.helpers.twins import twin_of

Path = tuple[int, ...]
Documents = Sequence[Sequence[int]]


def suffixes_after(documents: Documents, query: Sequence[int], end: int) -> list[list[int]]:
    """What follows each occurrence of a query up to its document's end, by order of the suffixes.

    The documents are one text, in which `end` stands after each.
    """
    text = [token for document in documents for token in [*document, end]]
    starts = [
        place
        for place in range(len(text) - len(query) + 1)
        if text[place : place + len(query)] == list(query)
    ]
    following = []
    for place in sorted(starts, key=lambda place: text[place:]):
        rest = text[place + len(query) :]
        following.append(rest[: rest.index(end)] if end in rest else rest)
    return following


def counted(rows: Sequence[Sequence[int]], longest: int) -> Counter[Path]:
    """How many rows begin with each path of at most `longest` tokens."""
    return Counter(
        tuple(row[:length]) for row in rows for length in range(1, min(len(row), longest) + 1)
    )


@twin_of("continuations.occurrences", "continuations.merge", "continuations.frequent")
def rest(
    shards: Sequence[tuple[Documents, int]], text: Sequence[int], limit: int, depth: int
) -> list[Path]:
    """REST, section 3: the longest suffix of at most 16 tokens, then the c most frequent prefixes.

    A shard is (documents, id that separates them).
    """
    for length in range(min(16, len(text)), 1, -1):
        rows = []
        for documents, end in shards:
            rows += suffixes_after(documents, text[-length:], end)[:5000]
        weights = counted(rows, 10)
        if weights:
            paths = [path for path in weights if len(path) <= depth]
            return sorted(paths, key=lambda path: (-weights[path], len(path)))[: min(limit, 64)]
    return []


def by_levels(rows: Sequence[Sequence[int]], limit: int) -> list[Path]:
    """The distinct prefixes of some rows, the shorter first, then those of earlier rows."""
    longest = max(map(len, rows), default=0)
    prefixes = [tuple(row[: n + 1]) for n in range(longest) for row in rows if len(row) > n]
    return list(dict.fromkeys(prefixes))[:limit]


def dresd(
    stored: Sequence[tuple[np.ndarray, Sequence[int]]],
    state: np.ndarray,
    root: int,
    limit: int,
    depth: int,
) -> list[Path]:
    """DReSD, section 3: 50 neighbours by cosine, the next-token filter, 10 rows of 10 tokens.

    What is stored is (state, what followed it) of each place.
    """
    near = sorted(stored, key=lambda one: -float(one[0] @ state))[:50]
    kept = [tokens for _, tokens in near if len(tokens) and tokens[0] == root][:10]
    return by_levels([tokens[1:11][:depth] for tokens in kept], limit)


def hierarchy(
    text: Sequence[int], said: Documents, corpus: tuple[Documents, int], limit: int
) -> tuple[list[Path], int]:
    """Hierarchy Drafting, algorithm 1: (7 chains of 4 tokens from 3 databases, databases asked).

    `said` are the model's own answers.
    """
    grams = [tuple(text[i : i + 5]) for i in range(len(text) - 4)]
    recent = list(dict.fromkeys(gram[1:] for gram in reversed(grams) if gram[0] == text[-1]))
    common = Counter(tuple(row[i : i + 5]) for row in said for i in range(len(row) - 4))
    own = [gram for gram in common if gram[0] == text[-1]]
    own.sort(key=lambda gram: (-common[gram], gram))
    rows = suffixes_after(corpus[0], text[-2:], corpus[1])[:5000]
    weights = counted(rows, 4)
    inner = {path[:-1] for path in weights}
    leaves = [path for path in weights if path not in inner]
    leaves.sort(key=lambda path: -weights[path])
    chains: list[Path] = []
    asked = 0
    for level in (recent[:7], [gram[1:] for gram in own[:7]], leaves[:14]):
        if len(chains) < 7:
            asked += 1
            chains = list(dict.fromkeys([*chains, *level]))[:7]
    return by_levels(chains, limit), asked


Shape = Sequence[tuple[int, int]]
"""(parent, rank) of each node; -1 = the root."""


def filled(shape: Shape, ranked: Callable[[Path], Sequence[int]], depth: int) -> list[Path]:
    """A static tree whose nodes take the candidate of their rank after their parent's path."""
    paths: list[Path | None] = []
    for parent, rank in shape:
        above: Path | None = () if parent < 0 else paths[parent]
        tokens = [] if above is None or len(above) == depth else ranked(above)
        taken = above is not None and rank < len(tokens)
        paths.append((*above, tokens[rank]) if taken and above is not None else None)
    return [path for path in paths if path is not None]


def token_recycling(
    shape: Shape, rows: Mapping[int, Sequence[int]], root: int, depth: int
) -> list[Path]:
    """Token Recycling, algorithm 1: the matrix's rows in a static tree."""
    return filled(shape, lambda path: rows.get((root, *path)[-1], ()), depth)


Observed = Sequence[tuple[Sequence[int], Mapping[int, float]]]
"""(text, the target's distribution after it), in the order of observation."""


def stand(shape: Shape, observed: Observed, text: Sequence[int], depth: int) -> list[Path]:
    """STAND, section 3: running means of distributions after 2- to 4-grams, the longest one's."""
    table: dict[Path, tuple[int, dict[int, float]]] = {}
    for before, shown in observed:
        for n in range(2, min(4, len(before)) + 1):
            k, mean = table.get(tuple(before[-n:]), (0, {}))
            both = {
                token: (k * mean.get(token, 0.0) + shown.get(token, 0.0)) / (k + 1)
                for token in {**mean, **shown}
            }
            kept = sorted(both, key=lambda token: (-both[token], token))[:10]
            table[tuple(before[-n:])] = k + 1, {token: both[token] for token in kept}

    def ranked(path: Path) -> list[int]:
        whole = (*text, *path)
        for n in (4, 3, 2):
            if len(whole) >= n and whole[-n:] in table:
                mean = table[whole[-n:]][1]
                return sorted(mean, key=lambda token: (-mean[token], token))
        return []

    return filled(shape, ranked, depth)


Scored = Mapping[Path, float]
"""P(path is accepted) of each node of a tree."""


def rasd(
    generated: Scored, retrieved: set[Path], score: Scored, heads: set[int], limit: int
) -> set[Path]:
    """RASD, sections 3.2 and 3.3: prune by the first token, cut to halves, fuse, fill up.

    Args:
        generated: the draft model's tree; empty if there is none.
        retrieved: every path that is retrieved.
        score: P(path is accepted) of those that are not pruned.
        heads: the draft model's candidates for the first token.
    """
    pruned = {path: score[path] for path in retrieved if not generated or path[0] in heads}

    def best(tree: Scored) -> list[Path]:
        return sorted(tree, key=lambda path: (-tree[path], len(path)))

    one, two = best(generated), best(pruned)
    more, less = limit - limit // 2, limit // 2
    kept = set(one[:more]) | set(two[:less])
    rest = [(generated[path], path) for path in one[more:]]
    rest += [(pruned[path], path) for path in two[less:]]
    for _, path in sorted(rest, key=lambda pair: (-pair[0], len(pair[1]))):
        if len(kept) < limit and (len(path) == 1 or path[:-1] in kept):
            kept.add(path)
    return kept


def raised(
    corpora: Documents, confirmed: Counter[Path], first: int, second: int
) -> dict[int, float]:
    """ADED, section 3.2: P(token | pair) of a corpus, and 0.04 for each confirmation, at most 3."""
    found: Counter[int] = Counter()
    total = 0
    for tokens in corpora:
        following: Counter[int] = Counter()
        for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False):
            if (a, b) == (first, second):
                following[c] += 1
        found.update(dict(sorted(following.items(), key=lambda one: (-one[1], one[0]))[:12]))
        total += sum(following.values())
    probs = {token: number / total for token, number in found.items()}
    often = sorted(confirmed.items(), key=lambda one: (-one[1], one[0]))
    for (a, b, c), number in often:
        if (a, b) == (first, second):
            probs[c] = min(3.0, probs.get(c, 0.0) + 0.04 * number)
    return probs


@twin_of("aded.raised")
class Aded:
    """ADED over steps: each confirms the tri-grams of the last 16 tokens, then searches."""

    def __init__(self, corpora: Documents, seed: int = 0) -> None:
        self.corpora = corpora
        self.confirmed: Counter[Path] = Counter()
        self.rng = np.random.default_rng(seed)

    def draft(self, text: Sequence[int], limit: int, depth: int) -> list[Path]:
        recent = text[-16:]
        self.confirmed.update(zip(recent, recent[1:], recent[2:], strict=False))
        cache: dict[tuple[int, int], list[tuple[int, float]]] = {}

        def follow(first: int, second: int) -> list[tuple[int, float]]:
            if (first, second) not in cache:
                probs = raised(self.corpora, self.confirmed, first, second)
                cache[first, second] = list(probs.items())
            return cache[first, second]

        nodes = search_twins.rollouts(follow, text, self.rng)
        chosen = search_twins.chosen(follow, text, nodes, limit, depth)
        return [tuple(path) for path, _ in chosen]
