"""CUDA graphs of a forward pass: launched at once, without Python and without launches one by one.

A graph repeats what was launched when it was captured, at the same addresses. What Python would
decide otherwise now, it does not see: `python_state` says whether anything may have changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_specplug.hf.attention import implementation

T = TypeVar("T")

_SIMPLE = (bool, int, float, str, type(None), torch.dtype, torch.device)
_LONG = 64  # containers up to this many entries are looked into
_OF_TORCH = frozenset(vars(nn.Module()))


class Graph:
    """Captures `body` on the current CUDA device; `replay` runs it again, into the same result.

    Args:
        body: only works on tensors that stay where they are, and never waits for the device.
        beside: a graph that never runs at the same time, whose memory can be shared.

    Raises:
        RuntimeError: `body` did something that cannot be captured.
    """

    def __init__(self, body: Callable[[], T], beside: Graph | None = None) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            body()  # libraries set themselves up at the first use, which cannot be captured
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        pool = None if beside is None else beside._graph.pool()
        # other threads may allocate meanwhile
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self.result = body()

    def replay(self) -> Any:
        """Enqueue the work; returns what `body` did, whose tensors will hold the new values."""
        self._graph.replay()
        return self.result


def python_state(model: PreTrainedModel) -> int:
    """A hash of what a captured forward pass depends on besides its inputs.

    Modules, hooks, replaced methods, the addresses of weights, and all plain attributes below the
    root: adapters switched on or off, scales, training mode. In-place changes of weights do not
    count: a graph sees them.
    """
    parts: list[Any] = [
        model.training,
        implementation(model),
        str(model.get_experts_implementation()),
    ]
    for name, module in model.named_modules():
        own = vars(module)
        parts += (name, type(module), id(own.get("forward")))
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                parts += (key, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape))
        parts += (tuple(module._forward_hooks), tuple(module._forward_pre_hooks))
        if name:
            parts += [(key, _plain(own[key])) for key in own.keys() - _OF_TORCH]
    return hash(tuple(parts))


def _plain(value: Any) -> Any:
    """What of an attribute can be compared; of anything else, its type."""
    if isinstance(value, _SIMPLE):
        return value
    if isinstance(value, dict) and len(value) <= _LONG:
        return tuple((str(key), _plain(part)) for key, part in value.items())
    if isinstance(value, list | tuple) and len(value) <= _LONG:
        return tuple(_plain(part) for part in value)
    return type(value)
