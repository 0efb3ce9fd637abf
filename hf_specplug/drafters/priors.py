"""Access to `priors.json`: numbers learned from recorded text and shipped with the package."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _priors() -> dict[str, Any]:
    file = Path(__file__).with_name("priors.json")
    return json.loads(file.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def learned(name: str) -> Any:
    """The entry of `priors.json` with this name.

    Drafters have a list of P(accepted) by evidence bucket under their own name, the mixer a dict of
    initial weights under "mixer", STAND's published tree its nodes under "stand_tree".

    Raises:
        KeyError: there is no such entry.

    Example:
        >>> len(learned("recycling"))  # 8 ranks times 8 buckets of the probability
        64
    """
    return _priors()[name]
