"""Drafts as published in papers, for comparison with ours: `SpecPlug(published="rasd")`."""

from __future__ import annotations

from hf_specplug.drafters.contract import Drafter
from hf_specplug.drafters.registry import create
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.errors import OptionError
from hf_specplug.published.aded import Aded
from hf_specplug.published.dresd import Dresd
from hf_specplug.published.hierarchy import Hierarchy
from hf_specplug.published.rasd import Rasd
from hf_specplug.published.rest import Rest
from hf_specplug.published.stand import Stand
from hf_specplug.published.token_recycling import TokenRecycling

PUBLISHED: dict[str, type[TreeSearch]] = {
    "aded": Aded,
    "dresd": Dresd,
    "hierarchy": Hierarchy,
    "rasd": Rasd,
    "rest": Rest,
    "stand": Stand,
    "token-recycling": TokenRecycling,
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
    """The drafters, with those that a paper's search drafts from added if they are missing.

    Raises:
        OptionError: there is no published search with this name.

    Example:
        >>> [drafter.name for drafter in completed([], "token-recycling")]
        ['recycling']
    """
    known = [drafter.name for drafter in drafters]
    missing = [name for name in search_class(published).uses if name not in known]
    return create([*drafters, *missing]) if missing else drafters
