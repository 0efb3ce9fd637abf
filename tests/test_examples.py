"""The example notebooks run as committed, each in its own folder, and use public names only."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from nbclient.exceptions import CellExecutionError
from transformers import LlamaConfig, LlamaForCausalLM

import hf_specplug
from tests.refresh_examples import NOTEBOOKS, execute

LARGEST = 150_000  # bytes
PLACES = [
    Path(__file__).parents[1],
    Path.home(),
    Path(sys.prefix),
    Path(sysconfig.get_paths()["stdlib"]),
    Path(tempfile.gettempdir()),
]  # paths of this machine
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}")
WARNING = re.compile(r"\w*Warning: .*")


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(output: Any) -> list[str]:
    """All text of an output."""
    if output.output_type == "stream":
        return [output.text]
    if output.output_type == "error":
        return [output.evalue, *output.traceback]
    return [str(data) for kind, data in output.data.items() if kind != "image/png"]


def faults(notebook: Any, *private: Path) -> list[str]:
    """What readers should not see in outputs: errors, warnings, paths of a machine, addresses."""
    found = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"cell {number}: {texts(output)}")
            for text in texts(output):
                named = [place for place in [*PLACES, *private] if str(place) in text]
                warned = WARNING.findall(text)  # of commands; their stderr appears as stdout
                shown = [*map(str, named), *ADDRESS.findall(text), *warned]
                found += [f"cell {number} shows {part}" for part in shown]
    return found


def shape(notebook: Any) -> list[list[tuple[str, ...]]]:
    """The kinds of outputs, cell by cell."""
    return [
        [(output.output_type, *sorted(output.get("data", ()))) for output in cell.outputs]
        for cell in code_cells(notebook)
    ]


def documented() -> set[str]:
    """Modules that docs/api.md shows whole or in part, by their dotted names."""
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    return set(re.findall(r"(?m)^::: (\S+)", page))


def not_public(source: str) -> list[str]:
    """What a cell uses that is not public: undocumented names, private attributes."""
    lines = [line for line in source.splitlines() if not line.startswith(("!", "%"))]
    found = []
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.Import):
            found += [
                alias.name
                for alias in node.names
                if alias.name.startswith("hf_specplug.") or alias.name == "unittest.mock"
            ]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            if node.module == "hf_specplug":
                found += [name for name in names if name.split(".")[1] not in hf_specplug.__all__]
            elif str(node.module).startswith(("hf_specplug.", "unittest")):
                found += [name for name in names if name not in documented()]
        elif isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr):
            found.append(node.attr)
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_public_names_only(path: Path) -> None:
    assert [name for cell in code_cells(read(path)) for name in not_public(cell.source)] == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from unittest.mock import patch", "unittest.mock.patch"),
        ("import unittest.mock", "unittest.mock"),
        ("import hf_specplug.verify", "hf_specplug.verify"),
        ("from hf_specplug import SpecPlug, verify", "hf_specplug.verify"),
        ("from hf_specplug.verify.noise import draw", "hf_specplug.verify.noise.draw"),
        ("!ls\nplug._sessions", "_sessions"),
    ],
)
def test_names_that_are_not_public_are_found(source: str, name: str) -> None:
    assert not_public(source) == [name]
    assert not_public("from hf_specplug import SpecPlug\ntype(SpecPlug).__name__") == []


def imported(notebook: Any) -> set[str]:
    """The packages that the cells of a notebook import."""
    lines = "\n".join(cell.source for cell in code_cells(notebook))
    return set(re.findall(r"(?m)^(?:from|import) (\w+)", lines))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_it_was_committed(path: Path, tmp_path: Path) -> None:
    for package in sorted(imported(read(path))):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    committed, fresh = read(path), execute(read(path), tmp_path)
    assert not faults(fresh, tmp_path)
    assert shape(fresh) == shape(committed), "python -m tests.refresh_examples writes it anew"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_fit_to_read(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < LARGEST
    assert not faults(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any(cell.metadata for cell in notebook.cells)  # no times of execution
    assert sum(cell.source.count("\nMODEL = ") for cell in cells) == 1


def test_there_are_notebooks_and_a_list_of_them() -> None:
    listed = (NOTEBOOKS[0].parent / "README.md").read_text(encoding="utf-8")
    names = [path.name for path in NOTEBOOKS]
    assert re.findall(r"\(([^)/]+\.ipynb)\)", listed) == names


@pytest.mark.slow
def test_the_model_line_is_all_there_is_to_change(tmp_path: Path, tokenizer: Any) -> None:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = tmp_path / "tiny"
    LlamaForCausalLM(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    notebook = read(NOTEBOOKS[0])
    for cell in code_cells(notebook):
        cell.source = re.sub(r"(?m)^MODEL = .*", f"MODEL = {str(model)!r}", cell.source)
    for_all = "print(type(model).__name__, model.num_parameters())"
    notebook.cells.append(nbformat.v4.new_code_cell(for_all))
    (tmp_path / "run").mkdir()
    said = execute(notebook, tmp_path / "run")
    assert not faults(said)
    parameters = LlamaForCausalLM(config).num_parameters()
    assert said.cells[-1].outputs[0].text == f"LlamaForCausalLM {parameters}\n"


def test_faults_are_found(tmp_path: Path) -> None:
    bad = [
        "import sys; print('careful', file=sys.stderr)",
        "import os; print(os.getcwd())",
        "object()",
        "!echo 'FutureWarning: it will change'",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(line) for line in bad])
    found = faults(execute(notebook, tmp_path), tmp_path)
    assert {fault[:6] for fault in found} == {f"cell {number}" for number in (1, 2, 3, 4)}

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    with pytest.raises(CellExecutionError):
        execute(notebook, tmp_path)
