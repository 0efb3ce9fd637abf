"""Tokens that no forward pass over several tokens may hold, so that nobody drafts them."""

from __future__ import annotations

import re

from transformers import PreTrainedConfig, PreTrainedModel

_PLACEHOLDER = re.compile(
    r"(image|video|audio|speech|media)(_context|_pad|_patch|_placeholder)?(_token)?_(id|index)"
)


def tokens(model: PreTrainedModel) -> frozenset[int]:
    """Placeholders, and padding where positions are counted without it.

    Such decoders (M2M100) count the tokens of a forward pass that are not padding: after padding in
    a draft, or as its root, all others would be one too early.
    """
    padding = {
        getattr(module, "padding_idx", None)
        for path, module in model.named_modules()
        if path.endswith("embed_positions")
    }
    return placeholders(model.config) | {token for token in padding if isinstance(token, int)}


def placeholders(config: PreTrainedConfig) -> frozenset[int]:
    """The tokens that stand for images, video and sound: prompts hold them, but no text does.

    What stands before and after an image (`vision_start_token_id`, ...) is not among them: a model
    may say it.
    """
    values = vars(config)
    parts = [part for part in values.values() if isinstance(part, PreTrainedConfig)]
    own = {
        value
        for name, value in values.items()
        if isinstance(value, int) and _PLACEHOLDER.fullmatch(name)
    }
    return frozenset(own.union(*(placeholders(part) for part in parts)))
