"""The scripts in tests/benchmarks, which no other test runs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


def arguments(source: str) -> tuple[set[str], set[str]]:
    """(names that a script reads from `args`, names that its parser sets)"""
    read, declared = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "args":
            read.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".add_argument"):
            option = ast.literal_eval(node.args[0])
            declared.add(option.lstrip("-").replace("-", "_"))
    return read, declared


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_reads_the_arguments_that_it_declares(path: Path) -> None:
    read, declared = arguments(path.read_text(encoding="utf-8"))
    assert read <= declared
