"""The environment of a benchmark: machine, versions, commit and arguments, beside its figures."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_specplug import __version__


def environment() -> dict[str, Any]:
    """Machine, versions of libraries, and commit, for JSON."""
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": gpu,
            "system": platform.system(),
        },
        "versions": {
            "hf_specplug": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "commit": commit,
    }


def _cpu() -> str:
    """The name of the processor, or its architecture where no name is known."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text("utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def save(path: str | os.PathLike[str], report: dict[str, Any]) -> None:
    """Write a report as JSON. An interruption leaves no partial file at `path`."""
    partial = f"{os.fspath(path)}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1, ensure_ascii=False)
        file.write("\n")
    os.replace(partial, path)


def write(path: str, arguments: dict[str, Any], **figures: Any) -> None:
    """Write figures, the environment and the arguments of a benchmark to `path` as JSON."""
    save(path, {**environment(), "arguments": arguments, **figures})
