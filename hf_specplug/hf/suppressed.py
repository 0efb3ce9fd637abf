"""Suppressed tokens: never drafted, as no forward pass over several tokens may hold them."""

from __future__ import annotations

import re

from transformers import PreTrainedConfig, PreTrainedModel

_PLACEHOLDER = re.compile(
    r"(image|video|audio|speech|media)(_context|_pad|_patch|_placeholder)?(_token)?_(id|index)"
)


def tokens(model: PreTrainedModel) -> frozenset[int]:
    """Placeholders, and padding tokens if the decoder counts positions without padding.

    Such decoders (M2M100) count the tokens of a forward pass that are not padding. After a padding
    token in a draft or at its root, all other positions would be too low by one.
    """
    padding = {
        getattr(module, "padding_idx", None)
        for path, module in model.named_modules()
        if path.endswith("embed_positions")
    }
    return placeholders(model.config) | {token for token in padding if isinstance(token, int)}


def placeholders(config: PreTrainedConfig) -> frozenset[int]:
    """Tokens that stand for images, video and sound. Prompts contain them; generated text does not.

    Tokens that delimit an image (`vision_start_token_id`, ...) are not included, because a model
    may generate them.
    """
    values = vars(config)
    parts = [part for part in values.values() if isinstance(part, PreTrainedConfig)]
    own = {
        value
        for name, value in values.items()
        if isinstance(value, int) and _PLACEHOLDER.fullmatch(name)
    }
    return frozenset(own.union(*(placeholders(part) for part in parts)))
