"""Reports as one self-contained HTML file: their style, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2429; --paper: #fff; --line: #d5d9de; --soft: #5c6670; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e7ea; --paper: #15191d; --line: #3a4249; --soft: #9aa5ae; }
}
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--paper); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p, li, footer { color: var(--soft); } p strong { color: var(--ink); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; }
th { font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } code { font-size: 0.9em; }
""".strip()


def write(path: str, title: str, parts: Iterable[str]) -> None:
    """Write a page.

    Args:
        path: the file.
        title: text, as the browser shows it.
        parts: HTML.

    Raises:
        OSError: the file cannot be written.
    """
    Path(path).write_text(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n",
        encoding="utf-8",
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
