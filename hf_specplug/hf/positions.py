"""Positions by depth for decoders that count cache slots and take no position ids (T5, BART, ...).

Their position embedding returns one row per slot of a forward pass, in order. Each node of a tree
takes the row of its depth instead, so that siblings share a row. For a relative bias, the
columns of the nodes are selected by depth, too.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

ABSOLUTE, RELATIVE = "embed_positions", "relative_attention_bias"


class SlotPositions:
    """Makes the decoder's position modules use depths inside `at`, in this thread only.

    Args:
        model: a model that takes no position ids. Other models are not changed.

    Example:
        >>> slots = SlotPositions(model)  # doctest: +SKIP
        >>> with slots.at(np.array([0, 1, 1]), past=5):
        ...     model(**inputs)
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._thread = threading.get_ident()
        self._depths: torch.Tensor | None = None
        self._past = 0
        self._hooks = [
            module.register_forward_hook(partial(self._reorder, name == RELATIVE))
            for name, module in slot_modules(model)
        ]

    @contextmanager
    def at(self, depths: NDArray[np.int64], past: int) -> Iterator[None]:
        """Context manager for one forward pass over T tokens.

        Args:
            depths: int64[T], the depth of each token in the tree; 0 at the root.
            past: number of slots before them.
        """
        if self._hooks:
            self._depths, self._past = torch.from_numpy(depths), past
        try:
            yield
        finally:
            self._depths = None

    def _reorder(self, relative: bool, module: nn.Module, args: Any, output: Any) -> Any:
        if self._depths is None or threading.get_ident() != self._thread:
            return output
        depths = self._depths.to(output.device)
        if not relative:  # [..., T, width]
            return output.index_select(-2, depths)
        columns = torch.arange(output.shape[1], device=output.device)  # [T, kv, heads]
        columns[self._past : self._past + len(depths)] = self._past + depths
        return output.index_select(0, depths).index_select(1, columns)

    def close(self) -> None:
        """Remove the hooks from the model."""
        for hook in self._hooks:
            hook.remove()


def position_argument(model: PreTrainedModel) -> str | None:
    """The name of the `forward` argument for positions; None if the model counts cache slots.

    A model that wraps a text model may pass on arguments that it does not name itself.
    """
    config = model.config
    name = "decoder_position_ids" if config.is_encoder_decoder else "position_ids"
    parameters = inspect.signature(model.forward).parameters
    wraps = not config.is_encoder_decoder and config.get_text_config(decoder=True) is not config
    passes_on = wraps and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return name if name in parameters or passes_on else None


def slot_modules(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The decoder modules that turn slots into positions: (last part of the name, module) pairs."""
    decoder = None if position_argument(model) is not None else model.get_decoder()
    found = []
    for path, module in () if decoder is None else decoder.named_modules():
        name = path.rpartition(".")[2]
        if name in (ABSOLUTE, RELATIVE):
            found.append((name, module))
    return found


def last_position(model: PreTrainedModel) -> int:
    """The last slot for which the modules of `slot_modules` have a position; 2^30 if all have."""
    tables = [
        module.num_embeddings - getattr(module, "offset", 0)
        for name, module in slot_modules(model)
        if name == ABSOLUTE and isinstance(module, nn.Embedding)
    ]
    return int(min(tables, default=(1 << 30) + 1)) - 1
