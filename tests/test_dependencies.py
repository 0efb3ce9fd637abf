"""What the package imports is what it declares, and the reverse."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import hf_specplug

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = Path(hf_specplug.__file__).parent
ROOT = Path(__file__).parent.parent
MODULES = {"faiss-cpu": "faiss", "pyahocorasick": "ahocorasick"}
"""Modules of projects, where the name differs."""

EXTRAS = ("ray", "corpora", "plot")
"""Extras that the package itself uses; the others are for developers."""

OF_ENVIRONMENTS = {"sitecustomize"}
"""Modules that an environment may have, which no project provides."""

STRINGS = {"import_module", "_optional"}
"""Functions whose first argument names a module."""


def imported() -> dict[str, set[str]]:
    """The top-level modules of others that are imported, with the files that do so."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in names(node):
                top = name.partition(".")[0]
                if top != "hf_specplug" and top not in sys.stdlib_module_names:
                    found.setdefault(top, set()).add(path.name)
    return found


def names(node: ast.AST) -> list[str]:
    """The modules that a statement or call imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module] if node.module and not node.level else []
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        function = getattr(node.func, "attr", getattr(node.func, "id", ""))
        return [str(node.args[0].value)] if function in STRINGS else []
    return []


def declared() -> set[str]:
    """The modules of the projects that pyproject.toml requires to run."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    required = [*project["dependencies"], *(each for name in EXTRAS for each in optional[name])]
    projects = [re.split(r"[^\w.-]", each, maxsplit=1)[0].lower() for each in required]
    return {MODULES.get(name, name.replace("-", "_")) for name in projects}


def test_what_is_imported_is_declared() -> None:
    known = declared() | OF_ENVIRONMENTS
    undeclared = {name: files for name, files in imported().items() if name not in known}
    assert not undeclared


def test_what_is_declared_is_imported() -> None:
    assert not declared() - set(imported())
