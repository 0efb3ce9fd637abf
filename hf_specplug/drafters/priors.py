"""Numbers learned from recorded text and shipped with the package: `priors.json`."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _priors() -> dict[str, Any]:
    file = Path(__file__).parent.parent / "priors.json"
    return json.loads(file.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def learned(name: str) -> Any:
    """What `priors.json` holds under a name: numbers learned from recorded text."""
    return _priors()[name]
