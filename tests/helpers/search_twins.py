"""Plain-Python twins of kernels: inserting proposals, drawing children, "hierarchy", and ADED."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hf_specplug.drafters.contract import Noise
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.kernels import aded
from hf_specplug.kernels.rounds import WAITING
from hf_specplug.kernels.tree import BAD_BUCKET, BAD_NODE, BAD_TOKEN
from tests.helpers.twins import twin_of

Row = tuple[int, int, int]
"""(node, token, bucket)"""


@dataclass
class Node:
    """A search node, with its children in the order of their proposal."""

    token: int = -1
    depth: int = 0
    round: int = 0
    prob: float = 1.0
    path: float = 1.0
    evidence: dict[int, int] = field(default_factory=dict)
    children: list[int] = field(default_factory=list)


@twin_of("tree.insert")
def inserted(
    nodes: list[Node],
    rows: Sequence[Row],
    drafter: int,
    buckets: range,
    suppressed: Sequence[int],
    vocab: int,
    round_number: int,
    capacity: int,
) -> int:
    """Add the proposals of one drafter; returns the new number of nodes, or an error code."""
    for parent, token, bucket in rows:
        if not 0 <= parent < len(nodes) or nodes[parent].round != round_number:
            return BAD_NODE
        if token not in range(vocab):
            return BAD_TOKEN
        if bucket not in range(len(buckets)):
            return BAD_BUCKET
    for parent, token, bucket in rows:
        if token in suppressed:
            continue
        known = [child for child in nodes[parent].children if nodes[child].token == token]
        if not known:
            if len(nodes) == capacity:
                return len(nodes)
            known = [len(nodes)]
            nodes[parent].children += known
            nodes.append(Node(token, nodes[parent].depth + 1))
        nodes[known[0]].evidence[drafter] = buckets[bucket]
    return len(nodes)


@twin_of("rounds.follow")
def followed(family: Sequence[tuple[int, float]]) -> int | None:
    """The likeliest of (child, path probability) pairs, the first of equals; None if none is."""
    likely = [(child, path) for child, path in family if path > 0]
    return max(likely, key=lambda each: each[1])[0] if likely else None


@twin_of("rounds.run", "tables.rows")
class OneByOne(TreeSearch):
    """A search that asks every drafter from Python, round by round."""

    in_kernel = False

    def _run(
        self, root: int, limit: int, depth: int, chain: bool, noise: Noise, once: bool
    ) -> bool:
        self._mix(self._frontier_view[: self._state[WAITING]], noise)
        self._choose(limit, depth, chain)
        return True


@twin_of("tree.read", "tree.with_root")
def as_tree(nodes: list[Node], chosen: Sequence[int]) -> list[tuple[int, int, float, int]]:
    """(token, parent, probability, sources) of the chosen nodes in the order of a draft tree."""
    parents = {child: i for i, node in enumerate(nodes) for child in node.children}

    def below(i: int) -> list[int]:
        children = sorted(set(nodes[i].children).intersection(chosen))
        children.sort(key=lambda child: -nodes[child].path)
        return [node for child in children for node in (child, *below(child))]

    order = below(0)
    place = {0: -1} | {node: i for i, node in enumerate(order)}
    return [
        (
            nodes[i].token,
            place[parents[i]],
            nodes[i].prob,
            sum(1 << drafter for drafter in nodes[i].evidence),
        )
        for i in order
    ]


@twin_of("tree.draw")
def drawn(nodes: list[Node], chosen: Sequence[int], rng: np.random.Generator) -> None:
    """Perturb the children of some nodes with Gumbel noise, the latest child first."""

    def gumbel() -> float:
        return -math.log(-math.log1p(-rng.random()) + 1e-300)

    parents = {child: i for i, node in enumerate(nodes) for child in node.children}
    for place in chosen:
        node, path, above = nodes[place], 1.0, place
        while above:
            path *= nodes[above].prob
            above = parents[above]
        children = [nodes[child] for child in reversed(node.children)]
        perturbed = [
            float(np.float32(math.log(path * child.prob + 1e-30) + gumbel())) for child in children
        ]
        rest = max(1.0 - sum(child.prob for child in children), 0.01)
        highest = max([*perturbed, math.log(path * rest) + gumbel()])
        bound = node.path if place else 1.0
        for child, score in zip(children, perturbed, strict=True):
            child.path = min(1 / (1 / bound - math.exp(-highest) + math.exp(-score)), bound)


@twin_of("hierarchy.begin", "hierarchy.take")
def taken(
    levels: Sequence[tuple[Sequence[Row], int]], frontier: Sequence[int], limit: int
) -> list[Row] | int:
    """The rows of all levels in order, or an error code. A level is (rows, number of buckets)."""
    out: list[Row] = []
    first = 0
    for rows, buckets in levels:
        for node, token, bucket in rows:
            if node not in frontier:
                return BAD_NODE
            if bucket not in range(buckets):
                return BAD_BUCKET
            mine = [row[1] for row in out if row[0] == node]
            if len(mine) < limit and token not in mine:
                out.append((node, token, first + bucket))
        first += buckets
    return out


@dataclass(eq=False)
class Rollout:
    """A node of ADED's search tree."""

    token: int
    parent: Rollout | None
    prob: float = 0.0
    visits: int = 0
    value: float = 0.0
    score: int = 0
    children: list[Rollout] = field(default_factory=list)

    @property
    def path(self) -> list[int]:
        return [] if self.parent is None else [*self.parent.path, self.token]


Follow = Callable[[int, int], Sequence[tuple[int, float]]]
"""After a pair of tokens: (token, probability) of each successor."""


@twin_of("aded.search")
def rollouts(follow: Follow, text: Sequence[int], rng: np.random.Generator) -> list[Rollout]:
    """All nodes in the order of their creation, the root first."""
    nodes = [Rollout(-1, None)]
    for _ in range(150):
        node, value = nodes[0], 1.0
        while node.children:
            drive = (32 + math.log((node.visits + 9) / 8)) * math.sqrt(node.visits)
            node = max(
                node.children,
                key=lambda child, drive=drive: (  # type: ignore[misc]
                    drive * child.prob / (1 + child.visits) + child.value / max(child.visits, 1)
                ),
            )
            value += node.prob
        path = [*text, *node.path]
        for depth in range(len(node.path), 4):
            successors = follow(path[-2], path[-1])
            if not successors:
                break
            if depth == len(node.path):
                node.children = [Rollout(token, node, prob) for token, prob in successors]
                nodes += node.children
            token, prob = successors[place_of(rng, [prob for _, prob in successors])]
            value += prob
            path.append(token)
        above: Rollout | None = node
        while above is not None:
            above.visits, above.value = above.visits + 1, above.value + value
            above = above.parent
    return nodes


def place_of(rng: np.random.Generator, probs: Sequence[float]) -> int:
    """Draw an index in proportion to `probs`."""
    left = rng.random() * sum(probs)
    for place, prob in enumerate(probs[:-1]):
        left -= prob
        if left < 0:
            return place
    return len(probs) - 1


@twin_of("aded.choose")
def chosen(
    follow: Follow, text: Sequence[int], nodes: list[Rollout], limit: int, depth: int
) -> list[tuple[list[int], float]]:
    """(path, probability of its last token) of each drafted node."""
    visited = [node for node in nodes[1:] if node.visits]
    kept = sorted(visited, key=lambda node: -node.visits)[: aded.PREFIXES]
    added = []
    for node in list(kept):
        children = node.children or [
            Rollout(token, node, prob) for token, prob in follow(*[*text, *node.path][-2:])
        ]
        end = max(children, key=lambda child: child.prob, default=node)
        added += [] if end is node else [end]
        above: Rollout | None = end
        while above is not None:
            above.score += 1
            above = above.parent
    kept += [node for node in added if node not in kept]
    within = [node for node in kept if len(node.path) <= depth]
    draft = sorted(within, key=lambda node: -node.score)[:limit]
    return [(node.path, node.prob) for node in draft]
