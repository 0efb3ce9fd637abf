"""Executes the example notebooks and writes them back: python -m tests.refresh_examples [02 ...]

Outputs are kept as they come, but for what has no meaning to a reader; pictures become smaller.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))

_SECONDS = 180  # of a cell at most
_COLOURS = 64


def execute(notebook: Any, folder: Path) -> Any:
    """Run all cells with `folder` as the working directory; the notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {
        **os.environ,
        "PATH": commands,  # finds `specplug`, as an activated environment does
        "IPYTHONDIR": str(folder / ".ipython"),
        "TMPDIR": str(folder),  # what they leave behind goes with it
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": "ignore:IProgress not found",  # no ipywidgets: no bars are shown here
        "TTY_COMPATIBLE": "0",  # commands print plain text
        "COLUMNS": "100",
        "OMP_NUM_THREADS": "1",  # threads that wait for each other take longest on a busy machine
    }
    client = NotebookClient(
        notebook,
        timeout=_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env=environment)
    return notebook


def normalise(notebook: Any) -> Any:
    """Leave out what an execution adds that has no meaning to a reader."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number:02}"
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":  # commands write to a terminal
                lines = output.text.replace("\r\n", "\n").replace("\x1b[0m", "")
                output.text = lines.strip("\n") + "\n"
            elif "image/png" in output.data:
                output.data["image/png"] = _smaller(output.data["image/png"])
    return notebook


def _smaller(png: str) -> str:
    """A plot with as many colours as it needs: a third of the size."""
    file = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture.convert("RGBA"))
    white.convert("RGB").quantize(_COLOURS).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def refresh(path: Path) -> None:
    """Execute a notebook in a folder of its own, and replace it."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(nbformat.read(path, as_version=4), Path(folder))
    nbformat.write(normalise(notebook), path)


def main() -> None:
    wanted = tuple(sys.argv[1:]) or ("",)
    for path in NOTEBOOKS:
        if path.name.startswith(wanted):
            refresh(path)
            print(f"{path.name}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
