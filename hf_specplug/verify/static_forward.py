"""A forward pass over the trees of one or more rows in fixed memory; kept across calls.

It is captured, compiled or eager.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CompileConfig, PreTrainedModel

from hf_specplug.hf.attention import FoldedHeads, implementation
from hf_specplug.hf.compiling import many_recompiles
from hf_specplug.hf.hidden_states import HiddenStateHook
from hf_specplug.hf.slot_cache import SlotCache, row_count
from hf_specplug.hf.support import is_accelerated
from hf_specplug.verify.cuda_graphs import Graph, python_state
from hf_specplug.verify.feed import Feed
from hf_specplug.verify.masks import SlotMasks
from hf_specplug.verify.outputs import Outputs, pack

MIN_SLOTS = 1024  # smallest capacity of the KV cache, in slots of all rows


_Shape = tuple[int, int]  # rows, padding included; tokens per row, padding included
_Results = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


class StaticForward:
    """Runs forward passes over padded trees of one model, one tree per row.

    It holds no reference to the model, so that it does not keep the model alive. All inputs that
    change from step to step go to the device in one copy. Slots, positions and masks are computed
    on the device, as are picks and top-k tokens, which come back in one copy.

    Attributes:
        cache, masks: the KV cache and the masks, with a fixed number of rows and slots; made by
            `open`.
        captured: number of forward passes captured or compiled so far.
        seconds: seconds that capturing and compiling took so far.
        failure: why the forward pass cannot be captured; "" if it can.

    Example:
        >>> StaticForward().captured
        0
    """

    cache: SlotCache
    masks: SlotMasks

    def __init__(self) -> None:
        self.captured = 0
        self.seconds = 0.0
        self.failure = ""
        self._made_for: Any = None
        self._feeds: dict[_Shape, Feed] = {}
        self._graphs: dict[_Shape, Graph] = {}
        self._ready: set[_Shape] = set()

    def open(
        self,
        model: PreTrainedModel,
        cache: Any,
        past: int,
        room: int,
        starts: torch.Tensor,
        names: tuple[str, str, str],
        constants: dict[str, Any],
        compile_config: CompileConfig | None,
        watch: HiddenStateHook | None,
    ) -> None:
        """Take over N texts of `past` tokens, with slots for `room` more.

        Args:
            model: the target.
            cache: the KV cache, filled with the prompts.
            past: number of tokens of each row in `cache`, padding included.
            room: number of slots for further tokens.
            starts: int64[..., 1 or N, 1], the positions of the next tokens.
            names: the names of the arguments for tokens, positions and mask.
            constants: the other arguments of the forward pass.
            compile_config: how to compile; None to capture CUDA graphs on CUDA devices.
            watch: hook that captures hidden states, which are then part of the outputs; or None.
        """
        tensors = any(isinstance(value, torch.Tensor) for value in constants.values())
        self._bare = tensors or (compile_config is None and not is_accelerated(model))
        known = {key: value for key, value in constants.items() if isinstance(value, bool | int)}
        made_for = (
            None if self._bare else python_state(model),
            str(known),
            names,
            starts.shape[:-2],
            None if compile_config is None else str(compile_config.to_dict()),
            None if watch is None else watch.layer,
        )
        self._watch = watch
        fits = made_for == self._made_for and self.cache.fits(cache)
        if not fits:
            self._made_for = None  # until the slots are allocated
            self._names = names
            self._compile_config = compile_config
            self._heads = FoldedHeads(model)
        if not fits or tensors:
            self._constants = constants
        rows = row_count(cache)
        if not fits:
            self._allocate(model, cache, starts, rows, past + room)
        elif self.cache.rows < rows or self.cache.capacity < past + room:
            self._allocate(model, cache, starts, *self._enlarged(rows, past + room))
        self._made_for = made_for
        self.cache.load(cache, past)
        self._starts[..., :rows, :].copy_(starts - past)

    def _enlarged(self, rows: int, length: int) -> tuple[int, int]:
        """(rows, slots per row) for this call, and if memory allows for those before it."""
        both = max(rows, self.cache.rows), max(length, self.cache.capacity)
        allowed = both[0] * both[1] * self.cache.bytes_per_slot <= kept_bytes(self.cache.device)
        return both if allowed else (rows, length)

    def trim(self) -> None:
        """Free the slots and what has been captured if they take much memory."""
        if self._made_for is not None and self.cache.bytes > kept_bytes(self.cache.device):
            self._made_for = None
            self._discard()
            del self.cache, self.masks, self._starts

    def _discard(self) -> None:
        """Discard what belongs to addresses that are given up."""
        self._graphs.clear()
        self._ready.clear()
        self._feeds.clear()

    def _allocate(
        self, model: PreTrainedModel, cache: Any, starts: torch.Tensor, rows: int, length: int
    ) -> None:
        """Allocate slots for `length` tokens of each row, and discard everything captured."""
        capacity = 1 << (max(length, MIN_SLOTS // rows) - 1).bit_length()
        self._discard()
        additive, device = implementation(model) == "eager", model.device
        self.cache = SlotCache(cache, rows, capacity, self._compile_config is not None)
        self.masks = SlotMasks(model.config, model.dtype, additive, device, rows, capacity)
        self._starts = starts.new_zeros((*starts.shape[:-2], rows, 1))
        self.cache.beside = [(self.masks.hidden, 0), (self.masks.padding, 0), (self._starts, -2)]

    def grow(self, model: PreTrainedModel) -> None:
        """Double the number of slots; the texts in them are kept."""
        cache, masks, starts = self.cache, self.masks, self._starts
        self._allocate(model, cache, starts, cache.rows, 2 * cache.capacity)
        self.cache.continue_from(cache)
        self.masks.continue_from(masks)
        self._starts.copy_(starts)

    def run(
        self,
        model: PreTrainedModel,
        width: int,
        tokens: NDArray[np.int64],
        depths: NDArray[np.int64],
        seen: NDArray[np.bool_],
        counts: Sequence[int],
    ) -> list[Outputs]:
        """Run the forward pass over a tree of T <= `width` tokens for each of n live rows.

        Args:
            model: the target.
            width: the padded width, in tokens.
            tokens: int64[n, T], the root first.
            depths: int64[n, T], 0 at the root.
            seen: bool[n, T, T], True where the column is the token or one of its ancestors.
            counts: number of tokens of each row without padding.
        """
        cache = self.cache
        shape = cache.size, width
        if shape not in self._feeds:
            self._feeds[shape] = Feed(*shape, model.device)
        self._feeds[shape].write(tokens, depths, seen, cache.ends[: cache.size], cache.places)
        with _on(model.device):
            if shape not in self._ready:
                self._prepare(model, shape)
            graph = self._graphs.get(shape)
            results = self._body(model, shape) if graph is None else graph.replay()
        logits, packed, states = results
        return [
            Outputs(
                logits[place, :count],
                None if packed is None else packed[place, :count],
                None if states is None else states[place, :count],
            )
            for place, count in zip(cache.places, counts, strict=True)
        ]

    def _prepare(self, model: PreTrainedModel, shape: _Shape) -> None:
        """Capture or compile; this writes to the same slots as the forward pass that follows."""
        self._ready.add(shape)
        if self._bare:
            return
        start = time.perf_counter()
        if self._compile_config is not None:
            self._body(model, shape)
        elif not self.failure:
            try:
                self._graphs[shape] = self._captured(model, shape)
            except Exception as error:  # after any error, the forward pass still runs eagerly
                self.failure = f"{type(error).__name__}: {error}".partition("\n")[0]
                self._graphs.clear()
        self.captured += 1
        self.seconds += time.perf_counter() - start

    def _captured(self, model: PreTrainedModel, shape: _Shape) -> Graph:
        """A CUDA graph whose logits were compared with those of the forward pass itself."""
        beside = next(iter(self._graphs.values()), None)
        graph = Graph(partial(self._body, model, shape), beside)
        expected = self._body(model, shape)[0].clone()
        actual = graph.replay()[0]
        tolerance = 1e-2 * float(expected.float().std())
        if not torch.allclose(actual.float(), expected.float(), 1e-2, tolerance, equal_nan=True):
            raise RuntimeError("its CUDA graph gives other logits than the model")
        return graph

    def _body(self, model: PreTrainedModel, shape: _Shape) -> _Results:
        """The forward pass: (logits, packed, states). On CUDA it must never synchronize."""
        feed = self._feeds[shape]
        tokens, depths, seen, past = feed.read()
        slots = past + feed.count
        self.cache.target.slots = slots
        name_of_ids, name_of_positions, name_of_mask = self._names
        inputs = {
            **self._constants,
            "past_key_values": self.cache,
            name_of_ids: tokens,
            name_of_positions: self._starts[..., : len(past), :] + past + depths,
            name_of_mask: self.masks.build(seen, depths, slots),
        }
        call: Any = model
        guards: AbstractContextManager[Any] = nullcontext()
        if self._compile_config is not None and not self._bare:
            call = model.get_compiled_call(self._compile_config)
            # code that was compiled without a hook must not run when a hook is registered
            guards = many_recompiles(skip_nnmodule_hook_guards=False)
        with guards, self._heads, self._watch or nullcontext():
            logits = call(**inputs, return_dict=True).logits
        states = None if self._watch is None else self._watch.states
        if states is not None and states.shape[:2] != logits.shape[:2]:
            states = None  # a model that calls its output embedding in its own way
        packed = None
        if logits.device.type != "cpu":
            packed = pack(logits.flatten(0, 1)).view(*logits.shape[:2], -1)
        return logits, packed, states


def kept_bytes(device: torch.device) -> int:
    """How much memory slots may take between calls, in bytes."""
    if device.type != "cuda":
        return 1 << 28
    return int(torch.cuda.get_device_properties(device).total_memory) // 16


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a CUDA device the current one: graphs are captured and launched on that device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
