"""Execute the example notebooks and write them back: python -m tests.refresh_examples [02 ...]

Outputs are kept, except what has no meaning to a reader. Pictures are reduced to fewer colours.
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

_SECONDS = 180  # maximum time of a cell
_COLOURS = 64


def execute(notebook: Any, folder: Path) -> Any:
    """Run all cells with `folder` as the working directory, and return the notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {
        **os.environ,
        "PATH": commands,  # finds `specplug`, as an activated environment does
        "IPYTHONDIR": str(folder / ".ipython"),
        "TMPDIR": str(folder),  # removed with the folder
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": "ignore:IProgress not found",  # progress bars are not shown
        "TTY_COMPATIBLE": "0",  # commands print plain text
        "COLUMNS": "100",
        "OMP_NUM_THREADS": "1",  # timings vary less on a busy machine
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
    """Remove what an execution adds that has no meaning to a reader."""
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
    """The plot with 64 colours: a third of its size."""
    file = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture.convert("RGBA"))
    white.convert("RGB").quantize(_COLOURS).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def refresh(path: Path) -> None:
    """Execute a notebook in a temporary folder, and replace it."""
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
