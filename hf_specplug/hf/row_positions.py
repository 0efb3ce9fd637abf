"""Positions by row for decoders that count cache slots and take no position ids (T5, BART, ...).

Their position modules know one position per slot of a forward pass, but the rows of a batch are at
different ones. An embedding is therefore looked up in a table of what the module has returned in
this call: the longest row has been at every position that another row comes to. A relative bias is
computed for each row, from the distances along its own text and tree.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from hf_specplug.hf.positions import RELATIVE, last_position, slot_modules


class RowPositions:
    """Makes the decoder's position modules count by row inside `at`, in this thread only.

    Args:
        model: a model that takes no position ids. Other models are not changed.
        start: number of tokens of the prompt.

    Attributes:
        room: maximum number of tokens of a row in a forward pass.
    """

    def __init__(self, model: PreTrainedModel, start: int) -> None:
        self._thread = threading.get_ident()
        self._start, self._base = start, start
        self._positions: torch.Tensor | None = None
        self._columns = torch.empty(0)
        self._tables: dict[nn.Module, torch.Tensor] = {}
        self._last = last_position(model)
        self.room = self._last + 1 - start
        modules = slot_modules(model)
        self._hooks = [
            module.register_forward_hook(self._look_up)
            for name, module in modules
            if name != RELATIVE
        ]
        if len(self._hooks) < len(modules):
            self._hooks += [
                module.register_forward_pre_hook(self._give_bias, with_kwargs=True)
                for module in model.get_decoder().modules()
                if RELATIVE in module._modules
            ]

    @contextmanager
    def at(self, depths: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[int]:
        """Context manager for one forward pass over N rows of T tokens.

        Args:
            depths: int64[N, T], the depth of each token in its tree; 0 at the root.
            lengths: int64[N], number of slots before each row's tree.

        Yields:
            The number of past tokens for which the modules must be asked.
        """
        width, longest = depths.shape[1], int(lengths.max())
        self._base = min(longest, self._last + 1 - width)
        if self._hooks:
            positions = depths + lengths[:, None]
            columns = np.tile(np.arange(longest + width), (len(lengths), 1))
            for row, length in enumerate(lengths.tolist()):
                columns[row, length : length + width] = positions[row]
            self._columns = torch.from_numpy(columns)
            self._positions = torch.from_numpy(positions)
        try:
            yield self._base
        finally:
            self._positions = None

    def _look_up(self, module: nn.Module, args: Any, output: Any) -> Any:
        """[N, T, width] from the module's [T, width]."""
        if self._positions is None or threading.get_ident() != self._thread:
            return output
        if output.shape[:-2].numel() != 1:
            raise TypeError("positions that depend on the tokens are not known in advance")
        new = output.reshape(output.shape[-2:])
        table, first = self._tables.get(module, new[:0]), self._base - self._start
        known = len(table) - first
        if known < len(new):
            table = self._tables[module] = torch.cat([table, new[known:]])
        return table[self._positions.to(table.device) - self._start]

    def _give_bias(self, module: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> Any:
        """The arguments with `position_bias` [N, heads, T, kv].

        torch adds and removes a hook in two steps. In between, passes of other threads call it
        without `kwargs`.
        """
        if kwargs is None:
            return None
        if self._positions is None or threading.get_ident() != self._thread:
            return args, kwargs
        if "position_bias" not in kwargs:
            raise TypeError(f"{type(module).__name__} takes no position bias")
        bias: Any = module.relative_attention_bias
        own: Any = module
        columns, device = self._columns, bias.weight.device
        distances = columns[:, None] - self._positions[:, :, None]
        buckets = own._relative_position_bucket(
            distances.to(device),
            bidirectional=False,
            num_buckets=own.relative_attention_num_buckets,
            max_distance=own.relative_attention_max_distance,
        )
        return args, {**kwargs, "position_bias": bias(buckets).permute(0, 3, 1, 2)}

    def close(self) -> None:
        """Remove the hooks from the model."""
        for hook in self._hooks:
            hook.remove()
