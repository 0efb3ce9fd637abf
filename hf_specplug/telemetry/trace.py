"""Traces: the verified trees of a call, shown in a terminal, a notebook or a file."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_specplug.errors import PlotError
from hf_specplug.telemetry import plots
from hf_specplug.telemetry.history import (
    ACCEPTED,
    BONUS,
    CheckedStep,
    History,
    Node,
    TokenText,
    node_tree,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text
    from rich.tree import Tree

    from hf_specplug.telemetry.drawing import Block

SHOWN = 5
"""The number of trees that a trace shows at first."""


class Trace:
    """The steps of a call: what was drafted, by which drafters, and what was accepted.

    `print(trace)` shows text, a notebook shows a picture. `trace[3]` and `trace[3:6]` are traces of
    these steps; iteration yields the steps. A trace does not change when the plug continues.

    Args:
        steps: the forward passes after the prompt.
        names: of the drafters, by source bit.
        tokenizer: the model's, to show text; token ids are shown without it.
        numbers: of the steps in the call, from 1.

    Raises:
        OptionError: `tokenizer` has no `decode` method.

    Example:
        >>> print(plug.trace(tokenizer)[7])
        step 8: 4 drafted, 2 accepted
        def
        └── ✓ ␣add 0.62 context, recycling
            ├── ✓ ( 0.90 context ─ → self (the model's own)
            └── _ 0.11 stand ─ two 0.25 recycling
    """

    def __init__(
        self,
        steps: Sequence[CheckedStep],
        names: Sequence[str],
        tokenizer: Any = None,
        numbers: range | None = None,
    ) -> None:
        self.steps = tuple(steps)
        self.names = tuple(names)
        self.numbers = range(1, len(steps) + 1) if numbers is None else numbers
        self._token_text = tokenizer if isinstance(tokenizer, TokenText) else TokenText(tokenizer)

    @classmethod
    def of(cls, history: History | None, tokenizer: Any = None) -> Trace:
        """The trace of a history as it is now.

        Raises:
            PlotError: there is no history, because no call has been drafted.
        """
        if history is None:
            raise PlotError(
                "there is nothing to trace: this plug has drafted no call yet; run model.generate "
                "first (if you did, stats.fallbacks says why it ran plainly)"
            )
        steps = list(history.steps)
        return cls(
            steps,
            history.names,
            tokenizer,
            range(history.count - len(steps) + 1, history.count + 1),
        )

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[CheckedStep]:
        return iter(self.steps)

    def __getitem__(self, index: int | slice) -> Trace:
        if isinstance(index, slice):
            return Trace(self.steps[index], self.names, self._token_text, self.numbers[index])
        number = self.numbers[index]
        return Trace([self.steps[index]], self.names, self._token_text, range(number, number + 1))

    def __rich__(self) -> RenderableType:
        """The text in the drafters' colours, for consoles of rich."""
        from rich.console import Group
        from rich.text import Text

        groups = self._groups()
        parts: list[RenderableType] = []
        if len(groups) != 1:
            parts.append(Text(self._summary(), no_wrap=True))
        for group in groups[:SHOWN]:
            parts += [Text("")] * bool(parts)
            parts.append(Text(self._caption(group), style="bold", no_wrap=True))
            if len(self.steps[group.start].tree):
                parts.append(self._tree(node_tree(self.steps[group.start], self.names)))
        if rest := self._rest(groups):
            parts += [Text(""), Text(rest)]
        return Group(*parts)

    def __str__(self) -> str:
        from rich.console import Console

        file = io.StringIO()
        deepest = max(
            (len(step.tree) and step.tree.depths().max() for step in self.steps), default=0
        )
        width = 100 + 4 * int(deepest)  # no line is cut
        console = Console(
            file=file, width=width, color_system=None, legacy_windows=False, force_jupyter=False
        )
        console.print(self)
        return file.getvalue().rstrip("\n")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The first trees, for notebooks."""
        groups = self._groups()
        blocks = self._blocks(groups[:SHOWN])
        if rest := self._rest(groups):
            from hf_specplug.telemetry import drawing

            blocks.append(drawing.line(rest))
        return _page(blocks)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all trees to one self-contained file: a page (.html) or a picture (.svg).

        Raises:
            PlotError: the file name ends otherwise.
            OSError: the file cannot be written.
        """
        kind = Path(path).suffix.lower()
        if kind not in _FILES:
            raise PlotError(f"a trace is saved as .html or .svg, not as {os.fspath(path)!r}")
        blocks = self._blocks(self._groups())
        Path(path).write_text(_FILES[kind](blocks, self._summary()), encoding="utf-8")

    def _groups(self) -> list[range]:
        """Ranges of steps that are shown together: one drafted step, or consecutive plain ones."""
        groups: list[range] = []
        for place, step in enumerate(self.steps):
            before = groups[-1] if groups else None
            if before and not len(step.tree) and not len(self.steps[before.start].tree):
                groups[-1] = range(before.start, place + 1)
            else:
                groups.append(range(place, place + 1))
        return groups

    def _summary(self) -> str:
        drafted = sum(len(step.tree) for step in self.steps)
        accepted = sum(len(step.visited) - 1 for step in self.steps)
        tokens = sum(len(step.emitted) for step in self.steps)
        return f"{len(self)} steps, {drafted} drafted, {accepted} accepted, {tokens} tokens"

    def _caption(self, group: range) -> str:
        step, first = self.steps[group.start], self.numbers[group.start]
        if len(step.tree):
            return f"step {first}: {len(step.tree)} drafted, {len(step.visited) - 1} accepted"
        text = "".join(
            self._token_text(token) for place in group for token in self.steps[place].emitted
        )
        if len(group) == 1:
            return f"step {first}: plain: {text}"
        return f"steps {first} to {self.numbers[group[-1]]}: {len(group)} plain steps: {text}"

    def _rest(self, groups: Sequence[range]) -> str:
        """A hint on how to see the other steps, if there are any."""
        if len(groups) <= SHOWN:
            return ""
        start = groups[SHOWN].start
        return f"{len(self) - start} more steps: trace[{start}:{start + SHOWN}] shows the next"

    def _tree(self, root: Node) -> Tree:
        from rich.tree import Tree

        tree = Tree(self._label(root))
        waiting = [(root, tree)]
        while waiting:
            node, branch = waiting.pop()
            for child in node.children:
                label = self._label(child)
                while len(child.children) == 1:  # nodes without siblings share a line
                    (child,) = child.children
                    label.append(" ─ ").append_text(self._label(child))
                waiting.append((child, branch.add(label)))
        return tree

    def _label(self, node: Node) -> Text:
        from rich.text import Text

        marks = {ACCEPTED: "✓ ", BONUS: "→ "}
        label = Text(marks.get(node.kind, ""))
        label.append(self._token_text(node.token), "bold" if node.kind in marks else "")
        if node.drafters:
            label.append(f" {node.prob:.2f} ")
            for i, name in enumerate(node.drafters):
                label.append(", " * bool(i))
                label.append(name, plots.colour(name, self.names))
        elif node.kind == BONUS:
            label.append(" (the model's own)", "dim")
        return label

    def _blocks(self, groups: Sequence[range]) -> list[Block]:
        from hf_specplug.telemetry import drawing

        colours = {name: plots.colour(name, self.names) for name in self.names}
        named = {name: colours[name] for bit, name in enumerate(self.names) if self._drafts(bit)}
        blocks = [drawing.line(self._summary())] if len(groups) != 1 else []
        if named:
            blocks.append(drawing.legend(named))
        for group in groups:
            step, caption = self.steps[group.start], self._caption(group)
            if len(step.tree):
                root = node_tree(step, self.names)
                blocks.append(drawing.tree(root, caption, self._token_text, colours))
            else:
                blocks.append(drawing.line(caption))
        return blocks

    def _drafts(self, bit: int) -> bool:
        return any((step.tree.sources >> bit & 1).any() for step in self.steps)


def _page(blocks: Sequence[Block]) -> str:
    """Blocks one below the other; wide trees scroll instead of shrinking."""
    return "".join(
        f'<div style="overflow-x: auto; margin: 0.6em 0">{block.svg()}</div>' for block in blocks
    )


def _html(blocks: Sequence[Block], title: str) -> str:
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_style(':root')} body {{ margin: 1.5em }}</style></head>"
        f"<body>{_page(blocks)}</body></html>\n"
    )


def _svg(blocks: Sequence[Block], title: str) -> str:
    from hf_specplug.telemetry.drawing import Block, stacked

    whole = stacked(blocks)
    body = f"<title>{title}</title><style>{_style('svg:root')}</style>" + whole.svg('x="12" y="12"')
    return Block(whole.width + 24, whole.height + 24, body, title).svg() + "\n"


def _style(root: str) -> str:
    """Colours for light and dark pages; `root` selects the element that has them."""
    dark = f"{root} {{ color: #e6edf3; background: #0d1117 }}"
    return (
        f"{root} {{ color-scheme: light dark; color: #1f2429; background: #ffffff }} "
        f"@media (prefers-color-scheme: dark) {{ {dark} }}"
    )


_FILES = {".html": _html, ".svg": _svg}
