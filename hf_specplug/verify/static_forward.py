"""A forward pass over trees in fixed memory: captured, compiled or eager; kept across calls."""

from __future__ import annotations

import time
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
from hf_specplug.hf.slot_cache import SlotCache
from hf_specplug.hf.support import is_accelerated
from hf_specplug.verify.cuda_graphs import Graph, python_state
from hf_specplug.verify.masks import SlotMasks
from hf_specplug.verify.outputs import Outputs, pack

MIN_SLOTS = 1024  # smallest capacity of the KV cache, in slots


_Results = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


class StaticForward:
    """Runs forward passes over padded trees of one model.

    It holds no reference to the model, so that it does not keep the model alive. All inputs that
    change from step to step go to the device in one copy. Slots, positions and masks are computed
    on the device, as are picks and top-k tokens, which come back in one copy.

    Attributes:
        cache, masks: the KV cache and the masks, with a fixed number of slots; made by `open`.
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
        self._feeds: dict[int, _Feed] = {}
        self._graphs: dict[int, Graph] = {}
        self._ready: set[int] = set()

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
        """Take over a text of `past` tokens, with slots for `room` more.

        Args:
            model: the target.
            cache: the KV cache, filled with the prompt.
            past: number of tokens in `cache`.
            room: number of slots for further tokens.
            starts: int64[..., 1], the positions at offset 0.
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
            starts.shape,
            None if compile_config is None else str(compile_config.to_dict()),
            None if watch is None else watch.layer,
        )
        self._watch = watch
        fits = made_for == self._made_for and self.cache.fits(cache)
        if not fits:
            self._made_for = made_for
            self._names = names
            self._starts = starts.clone()
            self._compile_config = compile_config
            self._heads = FoldedHeads(model)
        if not fits or tensors:
            self._constants = constants
        if not fits or self.cache.capacity < past + room:
            self._allocate(model, cache, past + room)
        self._starts.copy_(starts)
        self.cache.load(cache, past)

    def _allocate(self, model: PreTrainedModel, cache: Any, length: int) -> None:
        """Allocate slots for `length` tokens, and discard everything captured."""
        capacity = MIN_SLOTS
        while capacity < length:
            capacity *= 2
        self._graphs.clear()
        self._ready.clear()
        self._feeds.clear()
        additive = implementation(model) == "eager"
        self.cache = SlotCache(cache, capacity, joined=self._compile_config is None)
        self.masks = SlotMasks(model.config, model.dtype, additive, model.device, capacity)

    def grow(self, model: PreTrainedModel, past: int) -> None:
        """Double the number of slots; the text in them is kept."""
        old, masks = self.cache, self.masks
        self._allocate(model, old, 2 * old.capacity)
        self.cache.load(old, past)
        self.masks.hidden[: old.capacity] = masks.hidden
        self.masks.padding.copy_(masks.padding)

    def run(
        self,
        model: PreTrainedModel,
        width: int,
        tokens: NDArray[np.int64],
        depths: NDArray[np.int64],
        seen: NDArray[np.bool_],
        past: int,
        offset: int,
    ) -> Outputs:
        """Run the forward pass over a tree of T <= `width` tokens.

        Args:
            model: the target.
            width: the padded width, in tokens.
            tokens: int64[T], the root first.
            depths: int64[T], 0 at the root.
            seen: bool[T, T], True where the column is the row's token or one of its ancestors.
            past: the cache slot of the root; the other tokens take the following slots.
            offset: position of the root, relative to `starts`.
        """
        if width not in self._feeds:
            self._feeds[width] = _Feed(width, model.device)
        self._feeds[width].write(tokens, depths, seen, past, offset)
        with _on(model.device):
            if width not in self._ready:
                self._prepare(model, width)
            graph = self._graphs.get(width)
            results = self._body(model, width) if graph is None else graph.replay()
        logits, packed, states = results
        own = slice(len(tokens))
        return Outputs(
            logits[own],
            None if packed is None else packed[own],
            None if states is None else states[own],
        )

    def _prepare(self, model: PreTrainedModel, width: int) -> None:
        """Capture or compile; this writes to the same slots as the forward pass that follows."""
        self._ready.add(width)
        if self._bare:
            return
        start = time.perf_counter()
        if self._compile_config is not None:
            self._body(model, width)
        elif not self.failure:
            try:
                self._graphs[width] = self._captured(model, width)
            except Exception as error:  # after any error, the forward pass still runs eagerly
                self.failure = f"{type(error).__name__}: {error}".partition("\n")[0]
                self._graphs.clear()
        self.captured += 1
        self.seconds += time.perf_counter() - start

    def _captured(self, model: PreTrainedModel, width: int) -> Graph:
        """A CUDA graph whose logits were compared with those of the forward pass itself."""
        beside = next(iter(self._graphs.values()), None)
        graph = Graph(partial(self._body, model, width), beside)
        expected = self._body(model, width)[0].clone()
        actual = graph.replay()[0]
        tolerance = 1e-2 * float(expected.float().std())
        if not torch.allclose(actual.float(), expected.float(), 1e-2, tolerance, equal_nan=True):
            raise RuntimeError("its CUDA graph gives other logits than the model")
        return graph

    def _body(self, model: PreTrainedModel, width: int) -> _Results:
        """The forward pass: (logits, packed, states). On CUDA it must never synchronize."""
        feed = self._feeds[width]
        tokens, depths, seen, past, offset = feed.read()
        slots = past + feed.count
        self.cache.target.slots = slots
        name_of_ids, name_of_positions, name_of_mask = self._names
        inputs = {
            **self._constants,
            "past_key_values": self.cache,
            name_of_ids: tokens[None],
            name_of_positions: self._starts + offset + depths,
            name_of_mask: self.masks.build(seen, depths, slots),
        }
        call: Any = model
        guards: AbstractContextManager[Any] = nullcontext()
        if self._compile_config is not None and not self._bare:
            call = model.get_compiled_call(self._compile_config)
            # code that was compiled without a hook must not run when a hook is registered
            guards = many_recompiles(skip_nnmodule_hook_guards=False)
        with guards, self._heads, self._watch or nullcontext():
            logits = call(**inputs, return_dict=True).logits[0]
        packed = None if logits.device.type == "cpu" else pack(logits)
        return logits, packed, None if self._watch is None else self._watch.of(0)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a CUDA device the current one: graphs are captured and launched on that device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class _Feed:
    """The inputs of one padded width, copied to the device as one array.

    The array is int64[width + 1, 2 + words], words = ceil(width / 64). Its first row begins with
    `past` and `offset`. Each further row holds a token: its id, its depth, and its row of `seen` as
    bits.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        words = -(-width // 64)
        on_host = device.type == "cpu"
        shape = (width + 1, 2 + words)
        self._host = torch.zeros(shape, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._device = self._host if on_host else self._host.to(device)
        self._array = self._host.numpy()
        self._bits = torch.arange(64, device=device)
        self.count = torch.arange(width, device=device)

    def write(
        self,
        tokens: NDArray[np.int64],
        depths: NDArray[np.int64],
        seen: NDArray[np.bool_],
        past: int,
        offset: int,
    ) -> None:
        """Fill the array and copy it to the device.

        Padding tokens are copies of the root that attend only to themselves.
        """
        rows, count = self._array[1:], len(tokens)
        width = len(rows)
        self._array[0, :2] = past, offset
        rows[:, 0] = tokens[0]
        rows[:count, 0] = tokens
        rows[:, 1] = 0
        rows[:count, 1] = depths
        visible = np.zeros((width, rows.shape[1] * 64 - 128), np.bool_)
        np.fill_diagonal(visible, True)
        visible[:count, :count] = seen
        rows[:, 2:] = np.packbits(visible, axis=1, bitorder="little").view("<i8")
        if self._device is not self._host:
            self._device.copy_(self._host, non_blocking=True)

    def read(self) -> tuple[torch.Tensor, ...]:
        """Read the inputs on the device.

        Returns:
            (int64[width] tokens, int64[width] depths, bool[width, width] seen, int64[1] past,
            int64[1] offset)
        """
        width = len(self.count)
        header, rows = self._device[0], self._device[1:]
        bits = (rows[:, 2:, None] >> self._bits) & 1
        seen = bits.flatten(1)[:, :width].to(torch.bool)
        return rows[:, 0], rows[:, 1], seen, header[:1], header[1:2]
