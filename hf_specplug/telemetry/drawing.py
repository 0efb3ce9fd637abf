"""Trees of a trace as SVG: left to right by depth, what the model said in the top row.

Lines and text take the colour of the page's text (`currentColor`), so that they are seen on light
and dark pages; drafters have the colours of `plots.colour`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from rich.cells import cell_len

from hf_specplug.telemetry.history import ACCEPTED, OWN, REJECTED, ROOT, Node, TokenText

CLIP = 12  # characters of a token that are shown; all are in the tooltip
_CELL, _BOX, _ROW, _GAP = 7.3, 21, 27, 24  # pixels: a character, a box, a row, between columns
_FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


@dataclass(frozen=True)
class Block:
    """A part of a picture: its size in pixels, its elements, and what they show in words."""

    width: float
    height: float
    body: str
    label: str

    def svg(self, place: str = "") -> str:
        """One `<svg>` element; `place`: attributes that put it inside another one."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {place} width="{self.width:.0f}" '
            f'height="{self.height:.0f}" viewBox="0 0 {self.width:.0f} {self.height:.0f}" '
            f'role="img" aria-label="{escape(self.label)}" fill="currentColor" '
            f'font-family="{_FONT}" font-size="12">{self.body}</svg>'
        )


def stacked(blocks: Sequence[Block], space: float = 12) -> Block:
    """Blocks below each other."""
    parts, y = [], 0.0
    for block in blocks:
        parts.append(block.svg(f'x="0" y="{y:.0f}"'))
        y += block.height + space
    return Block(max(block.width for block in blocks), y, "".join(parts), blocks[0].label)


def line(text: str) -> Block:
    """A line of text."""
    body = f'<text x="1" y="14" font-family="sans-serif" font-size="13">{escape(text)}</text>'
    return Block(_CELL * cell_len(text) + 4, 20, body, text)


def legend(colours: Mapping[str, str]) -> Block:
    """Which drafter has which colour, and what the kinds of boxes mean."""
    samples = [(Node(0, ACCEPTED, drafters=(name,)), name) for name in colours]
    samples += [(Node(0, REJECTED, drafters=tuple(colours)), "rejected (accepted: bold)")]
    samples += [(Node(0, OWN), "the model's own token")]
    parts, x = ['<g font-family="sans-serif">'], 2.0
    for node, text in samples:
        parts.append(_gradient(node, colours) + _box(node, x, 2, 24, colours))
        parts.append(f'<text x="{x + 30:.1f}" y="17">{escape(text)}</text>')
        x += 30 + _CELL * cell_len(text) + 14
    body = "".join([*parts, "</g>"])
    return Block(x, _BOX + 4, body, "legend: " + ", ".join(text for _, text in samples))


def tree(root: Node, caption: str, words: TokenText, colours: Mapping[str, str]) -> Block:
    """A step: its caption, and its tree with the accepted path on top.

    Args:
        root: what `steps.read` made of the step.
        colours: by drafter.
    """
    places = _layout(root, words)
    edges: dict[bool, list[str]] = {True: [], False: []}  # by whether they were rejected
    boxes = []
    for place in places:
        node, middle = place.node, place.y + _BOX / 2
        if place.parent is not None:
            edges[node.kind == REJECTED].append(_edge(place, place.parent))
        looks = {ACCEPTED: ' font-weight="bold"', REJECTED: ' fill-opacity="0.7"'}
        boxes.append(
            f"<g><title>{escape(_tooltip(node, words))}</title>"
            f"{_box(node, place.x, place.y, place.width, colours)}"
            f'<text x="{place.x + place.width / 2:.1f}" y="{middle + 3.5:.1f}" text-anchor="middle"'
            f"{looks.get(node.kind, '')}>{escape(place.text)}</text></g>"
        )
    heading = line(caption)
    stripes = sorted({_gradient(place.node, colours) for place in places})
    right = max(place.x + place.width for place in places) + 2
    return Block(
        max(right, heading.width),
        max(place.y for place in places) + _ROW,
        "".join([heading.body, *stripes, *_paths(edges), *boxes]),
        caption,
    )


@dataclass(slots=True)
class _Place:
    """Where a node goes: column = depth, row, and x, its left side in pixels."""

    node: Node
    parent: _Place | None
    elder: _Place | None  # the sibling before it
    column: int
    row: int
    text: str
    x: float = 0.0
    newest: _Place | None = None  # of its children

    @property
    def y(self) -> float:
        return 24 + _ROW * self.row

    @property
    def width(self) -> float:
        return _CELL * cell_len(self.text) + 14


def _layout(root: Node, words: TokenText) -> list[_Place]:
    """Parents first; no two meet: a first child stays in its parent's row, others get new ones."""
    places: list[_Place] = []
    waiting: list[tuple[Node, _Place | None]] = [(root, None)]
    while waiting:
        node, parent = waiting.pop()
        elder = None if parent is None else parent.newest
        row = places[-1].row + 1 if elder else parent.row if parent else 0
        text = words(node.token)
        text = text if len(text) <= CLIP else text[: CLIP - 1] + "…"
        place = _Place(node, parent, elder, parent.column + 1 if parent else 0, row, text)
        if parent is not None:
            parent.newest = place
        places.append(place)
        waiting += [(child, place) for child in reversed(node.children)]
    widest = [0.0] * (1 + max(place.column for place in places))
    for place in places:
        widest[place.column] = max(widest[place.column], place.width)
    for place in places:
        place.x = 2 + sum(widest[: place.column]) + _GAP * place.column
    return places


def _edge(place: _Place, parent: _Place) -> str:
    """To the left side of a node, down from its elder sibling in the gap between columns."""
    x, y = place.x, place.y + _BOX / 2
    if place.elder is None:
        return f"M{parent.x + parent.width:.1f} {y:.1f}H{x:.1f}"
    turn, above = x - _GAP / 2, place.elder.y + _BOX / 2
    start = f"M{turn:.1f} {above - 6:.1f}"
    if place.elder.elder is None:  # the first one is beside the parent
        start = f"M{turn - 6:.1f} {above:.1f}Q{turn:.1f} {above:.1f} {turn:.1f} {above + 6:.1f}"
    return f"{start}V{y - 6:.1f}Q{turn:.1f} {y:.1f} {turn + 6:.1f} {y:.1f}H{x:.1f}"


def _paths(edges: Mapping[bool, Sequence[str]]) -> list[str]:
    """One path for all edges of a kind."""
    looks = {True: 'stroke-opacity="0.35"', False: 'stroke-opacity="0.9" stroke-width="2"'}
    return [
        f'<path d="{"".join(parts)}" fill="none" stroke="currentColor" {looks[rejected]}/>'
        for rejected, parts in edges.items()
        if parts
    ]


def _box(node: Node, x: float, y: float, width: float, colours: Mapping[str, str]) -> str:
    paint = _paint(node, colours)
    looks = {
        ROOT: 'fill="currentColor" fill-opacity="0.1" stroke="currentColor" stroke-opacity="0.4"',
        OWN: 'fill="none" stroke="currentColor" stroke-width="1.5"',
        ACCEPTED: f'fill="{paint}" fill-opacity="0.45" stroke="{paint}" stroke-width="2.5"',
        REJECTED: f'fill="{paint}" fill-opacity="0.16" stroke="{paint}" stroke-opacity="0.85"',
    }
    radius = 8 if node.kind in (ROOT, OWN) else 4
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_BOX}" rx="{radius}" '
        f"{looks[node.kind]}/>"
    )


def _paint(node: Node, colours: Mapping[str, str]) -> str:
    """The drafter's colour; stripes of all who named the node."""
    own = [colours[name] for name in node.drafters]
    if len(own) > 1:
        return f"url(#{_name(own)})"
    return own[0] if own else "currentColor"


def _name(own: Sequence[str]) -> str:
    return "stripes" + "".join(colour.replace("#", "-") for colour in own)


def _gradient(node: Node, colours: Mapping[str, str]) -> str:
    """The stripes, defined; named by their colours: two of one name in a page are the same."""
    own = [colours[name] for name in node.drafters]
    if len(own) < 2:
        return ""
    stops = "".join(
        f'<stop offset="{edge / len(own):.3f}" stop-color="{colour}"/>'
        for i, colour in enumerate(own)
        for edge in (i, i + 1)
    )
    return f'<linearGradient id="{_name(own)}">{stops}</linearGradient>'


def _tooltip(node: Node, words: TokenText) -> str:
    said = f"{words(node.token)}  (token {node.token})"
    if node.drafters or node.kind in (ACCEPTED, REJECTED):
        named = ", ".join(node.drafters) or "nobody"
        return f"{said}\n{node.kind}, predicted {node.prob:.2f}, named by {named}"
    return f"{said}\n{'the last token before' if node.kind == ROOT else 'said by the model itself'}"
