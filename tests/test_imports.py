"""The layout: imports point one way, heavy libraries stay where they belong, start-up is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hf_specplug
from hf_specplug import attach, detach
from hf_specplug.hf import adapter
from tests.helpers.streamers import Collected
from tests.helpers.zoo import make

ROOT = Path(hf_specplug.__file__).parent
LAYERS = [
    ["errors", "forking"],
    ["kernels"],
    ["tree", "hf"],
    ["datastore"],
    ["drafters"],
    ["drafting"],
    ["published", "telemetry"],
    ["verify"],
    ["exactness"],
    ["session", "decode", "batch", "runner", "plug"],
    ["entrypoints"],
    ["replay"],
    ["bench", "audit"],
    ["cli"],
]
"""Rooms, and the story's files: each may import what stands in its own line or above it."""
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MODULES = sorted(ROOT.rglob("*.py"))


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path, whole: bool) -> set[str]:
    """Modules that a file imports; `whole`: also inside functions."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if whole else tree.body
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    own = part(path)
    if own == "__init__":
        return
    assert own in RANK, f"{own} has no place in LAYERS"
    for name in imported(path, whole=True):
        parts = name.split(".")
        if parts[0] == "hf_specplug" and len(parts) > 1 and parts[1] in RANK:
            assert RANK[parts[1]] <= RANK[own], f"{path.name} imports {name}"


WITHOUT_TORCH = {"errors", "forking", "kernels", "tree", "datastore", "drafters", "drafting"}
WITHOUT_TORCH |= {"published", "telemetry"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_stay_where_they_belong(path: Path) -> None:
    own = part(path)
    top = {name.split(".")[0] for name in imported(path, whole=True)}
    if own in WITHOUT_TORCH and path.name != "embedding.py":
        assert not top & {"torch", "transformers"}
        assert not any(name.startswith("hf_specplug.hf") for name in imported(path, whole=True))
    if own != "kernels":
        assert "numba" not in top


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, node.name


def test_the_story_lies_flat_and_is_short() -> None:
    assert len([path for path in ROOT.iterdir() if path.is_file()]) <= 10


def test_an_attached_call_reads_no_frame() -> None:
    """Only `generate(custom_generate=plug)` does: nothing else tells it the streamer."""
    uses = [path for path in MODULES if "_getframe" in path.read_text()]
    assert [path.name for path in uses] == ["adapter.py"]
    model = make("llama")
    attach(model)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(adapter, "streamer_of_caller", None)
            ids = torch.arange(3, 9)[None]
            streamer = Collected()
            output = model.generate(ids, max_new_tokens=5, do_sample=False, streamer=streamer)
    finally:
        detach(model)
    assert streamer.tokens == output[0].tolist()


@pytest.mark.parametrize(
    "code", ["import hf_specplug", "import hf_specplug.cli", "from hf_specplug.errors import *"]
)
def test_start_up_is_light(code: str) -> None:
    heavy = "{'torch', 'transformers', 'numba', 'faiss'}"
    check = f"{code}; import sys; assert not set(sys.modules) & {heavy}"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_public_names_exist() -> None:
    for name in hf_specplug.__all__:
        assert getattr(hf_specplug, name).__doc__
    assert set(hf_specplug.__all__) <= set(dir(hf_specplug))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hf_specplug.nothing
