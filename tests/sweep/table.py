"""What a run found, as a file of one line a row, and as tables for the documentation."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SAVED = ROOT / "docs" / "sweep.json"


def header() -> dict[str, str]:
    """What a run was made with."""
    import torch
    import transformers

    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "commit": commit.strip(),
    }


def save(rows: list[dict[str, Any]]) -> None:
    raise NotImplementedError
