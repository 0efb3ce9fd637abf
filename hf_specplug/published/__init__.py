"""Drafts as published in papers, for comparison with ours: `SpecPlug(published="rasd")`."""

from __future__ import annotations

from hf_specplug.drafters.contract import Drafter
from hf_specplug.drafters.registry import create
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.errors import OptionError
from hf_specplug.published.aded import Aded
from hf_specplug.published.rasd import Rasd
from hf_specplug.published.stand import Stand
from hf_specplug.published.token_recycling import TokenRecycling

PUBLISHED: dict[str, type[TreeSearch]] = {
    "aded": Aded,
    "token-recycling": TokenRecycling,
    "rasd": Rasd,
    "stand": Stand,
}


def search_class(published: str | None) -> type[TreeSearch]:
    """The search of a paper; ours, `TreeSearch`, for None.

    Raises:
        OptionError: there is no published search with this name.
    """
    if published is None:
        return TreeSearch
    if published not in PUBLISHED:
        raise OptionError(
            f"published must be one of {sorted(PUBLISHED)} or None, not {published!r}"
        )
    return PUBLISHED[published]


def completed(drafters: list[Drafter], published: str | None) -> list[Drafter]:
    """The drafters, with the one that a paper's search drafts from added if it is missing.

    Raises:
        OptionError: there is no published search with this name.

    Example:
        >>> [drafter.name for drafter in completed([], "token-recycling")]
        ['recycling']
    """
    needed = search_class(published).drafter
    if needed is not None and needed not in [drafter.name for drafter in drafters]:
        return create([*drafters, needed])
    return drafters
