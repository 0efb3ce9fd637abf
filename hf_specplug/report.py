"""What every benchmark writes beside its figures: machine, versions, commit and arguments."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_specplug import __version__


def write(path: str, arguments: dict[str, Any], **figures: Any) -> None:
    """Write `figures` and what they were measured with to `path` as JSON."""
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    report = {
        "machine": {"cpu": platform.machine(), "threads": torch.get_num_threads(), "gpu": gpu},
        "versions": {
            "hf_specplug": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "commit": commit,
        "arguments": arguments,
        **figures,
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1)
