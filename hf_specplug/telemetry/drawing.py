"""Trees of a trace as SVG: depth from left to right, the accepted path in the top row.

Lines and text have the colour of the page's text (`currentColor`), for light and dark pages.
Drafters have the colours of `plots.colour`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from rich.cells import cell_len

from hf_specplug.telemetry.history import ACCEPTED, BONUS, REJECTED, ROOT, Node, TokenText

MAX_CHARACTERS = 12
"""Longer tokens are cut; the tooltip shows them whole."""

_CELL, _BOX, _ROW, _GAP = 7.3, 21, 27, 24  # pixels: a character, a box, a row, between columns
_BONUS_TEXT = "the model's own token"
_FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


@dataclass(frozen=True)
class Block:
    """A part of a picture: its size in pixels, its SVG elements, and a label in words."""

    width: float
    height: float
    body: str
    label: str

    def svg(self, place: str = "") -> str:
        """One `<svg>` element; `place`: attributes that place it in another one."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {place} width="{self.width:.0f}" '
            f'height="{self.height:.0f}" viewBox="0 0 {self.width:.0f} {self.height:.0f}" '
            f'role="img" aria-label="{escape(self.label)}" fill="currentColor" '
            f'font-family="{_FONT}" font-size="12">{self.body}</svg>'
        )


def stacked(blocks: Sequence[Block], space: float = 12) -> Block:
    """Blocks one below the other, `space` pixels apart."""
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
    """A box of each drafter's colour, and of each kind of node."""
    samples = [(Node(0, ACCEPTED, drafters=(name,)), name) for name in colours]
    samples += [(Node(0, REJECTED, drafters=tuple(colours)), "rejected (accepted: bold)")]
    samples += [(Node(0, BONUS), _BONUS_TEXT)]
    parts, x = ['<g font-family="sans-serif">'], 2.0
    for node, text in samples:
        parts.append(_gradient(node, colours) + _box(node, x, 2, 24, colours))
        parts.append(f'<text x="{x + 30:.1f}" y="17">{escape(text)}</text>')
        x += 30 + _CELL * cell_len(text) + 14
    body = "".join([*parts, "</g>"])
    return Block(x, _BOX + 4, body, "legend: " + ", ".join(text for _, text in samples))


def tree(root: Node, caption: str, token_text: TokenText, colours: Mapping[str, str]) -> Block:
    """A caption, and a step's tree with the accepted path on top.

    Args:
        root: of the tree, see `history.node_tree`.
        caption: a line of text.
        token_text: shows tokens.
        colours: by drafter.
    """
    places = _layout(root, token_text)
    edges: dict[bool, list[str]] = {True: [], False: []}  # by whether they were rejected
    boxes = []
    for place in places:
        node, middle = place.node, place.y + _BOX / 2
        if place.parent is not None:
            edges[node.kind == REJECTED].append(_edge(place, place.parent))
        looks = {ACCEPTED: ' font-weight="bold"', REJECTED: ' fill-opacity="0.7"'}
        boxes.append(
            f"<g><title>{escape(_tooltip(node, token_text))}</title>"
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
    """Where a node is drawn: its column (depth), its row, and its left side x in pixels."""

    node: Node
    parent: _Place | None
    elder: _Place | None  # the sibling above it
    column: int
    row: int
    text: str
    x: float = 0.0
    newest: _Place | None = None  # the child placed last

    @property
    def y(self) -> float:
        return 24 + _ROW * self.row

    @property
    def width(self) -> float:
        return _CELL * cell_len(self.text) + 14


def _layout(root: Node, token_text: TokenText) -> list[_Place]:
    """Places of all nodes, parents first: a first child is in its parent's row."""
    places: list[_Place] = []
    waiting: list[tuple[Node, _Place | None]] = [(root, None)]
    while waiting:
        node, parent = waiting.pop()
        elder = None if parent is None else parent.newest
        row = places[-1].row + 1 if elder else parent.row if parent else 0
        text = token_text(node.token)
        text = text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
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
    """The edge to a node: from its parent, or from the edge of the sibling above it."""
    x, y = place.x, place.y + _BOX / 2
    if place.elder is None:
        return f"M{parent.x + parent.width:.1f} {y:.1f}H{x:.1f}"
    turn, above = x - _GAP / 2, place.elder.y + _BOX / 2
    start = f"M{turn:.1f} {above - 6:.1f}"
    if place.elder.elder is None:  # the first child is beside the parent
        start = f"M{turn - 6:.1f} {above:.1f}Q{turn:.1f} {above:.1f} {turn:.1f} {above + 6:.1f}"
    return f"{start}V{y - 6:.1f}Q{turn:.1f} {y:.1f} {turn + 6:.1f} {y:.1f}H{x:.1f}"


def _paths(edges: Mapping[bool, Sequence[str]]) -> list[str]:
    """One path element for all edges of a kind."""
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
        BONUS: 'fill="none" stroke="currentColor" stroke-width="1.5"',
        ACCEPTED: f'fill="{paint}" fill-opacity="0.45" stroke="{paint}" stroke-width="2.5"',
        REJECTED: f'fill="{paint}" fill-opacity="0.16" stroke="{paint}" stroke-opacity="0.85"',
    }
    radius = 8 if node.kind in (ROOT, BONUS) else 4
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_BOX}" rx="{radius}" '
        f"{looks[node.kind]}/>"
    )


def _paint(node: Node, colours: Mapping[str, str]) -> str:
    """The colour of the node's drafter, or stripes of several."""
    shades = [colours[name] for name in node.drafters]
    if len(shades) > 1:
        return f"url(#{_name(shades)})"
    return shades[0] if shades else "currentColor"


def _name(shades: Sequence[str]) -> str:
    return "stripes" + "".join(colour.replace("#", "-") for colour in shades)


def _gradient(node: Node, colours: Mapping[str, str]) -> str:
    """The definition of a node's stripes, or nothing.

    Stripes are named by their colours, so definitions of one name in a page are identical.
    """
    shades = [colours[name] for name in node.drafters]
    if len(shades) < 2:
        return ""
    stops = "".join(
        f'<stop offset="{edge / len(shades):.3f}" stop-color="{colour}"/>'
        for i, colour in enumerate(shades)
        for edge in (i, i + 1)
    )
    return f'<linearGradient id="{_name(shades)}">{stops}</linearGradient>'


def _tooltip(node: Node, token_text: TokenText) -> str:
    text = f"{token_text(node.token)}  (token {node.token})"
    if node.drafters or node.kind in (ACCEPTED, REJECTED):
        drafters = ", ".join(node.drafters) or "no drafter"
        return f"{text}\n{node.kind}, predicted {node.prob:.2f}, proposed by {drafters}"
    return f"{text}\n{'the last token before the draft' if node.kind == ROOT else _BONUS_TEXT}"
