"""Translate our docstrings to Google's style, which mkdocstrings reads."""

from __future__ import annotations

import ast
import re
from textwrap import dedent, indent
from typing import Any

import griffe

_SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.+(?:\n\1 +.+)*)$", re.MULTILINE)
_EXAMPLE = re.compile(r"^Example:\n((?: .*\n?|\n)+)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_google(obj.docstring.value)


def as_google(text: str) -> str:
    """Repeat `a, b: meaning` for each name, and mark examples in code as code."""
    text = _SHARED.sub(lambda found: _each(*found.groups()), text)
    return _EXAMPLE.sub(lambda found: _example(found.group(1)), text)


def _each(space: str, names: str, what: str) -> str:
    return "\n".join(f"{space}{name}: {what}" for name in names.split(", "))


def _example(body: str) -> str:
    if ">>>" in body:
        return f"Examples:\n{body}"
    code = dedent(body).strip()
    try:
        ast.parse(code)
    except SyntaxError:  # in words, not code
        return f"Example:\n{body}"
    return "Example:\n" + indent(f"```python\n{code}\n```\n", "    ")
