"""CUDA graphs of a forward pass: all its kernels in one launch, without running Python.

A graph repeats the launches of its capture at the same addresses. It does not see changes of Python
state that would make the forward pass launch other kernels. `python_state` detects such changes.
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
_LONG = 64  # containers of up to this many entries are compared by content
_OF_TORCH = frozenset(vars(nn.Module()))


class Graph:
    """Captures `body` on the current CUDA device; `replay` runs it again into the same tensors.

    Args:
        body: uses only tensors at fixed addresses, and never synchronizes with the device.
        beside: a graph that never runs at the same time; the two share a memory pool.

    Raises:
        RuntimeError: `body` did something that cannot be captured.
    """

    def __init__(self, body: Callable[[], T], beside: Graph | None = None) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            body()  # libraries initialize themselves at first use, which cannot be captured
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        pool = None if beside is None else beside._graph.pool()
        # thread_local: other threads may allocate during the capture
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self.result = body()

    def replay(self) -> Any:
        """Enqueue the graph; returns the result of `body`, whose tensors will hold new values."""
        self._graph.replay()
        return self.result


def python_state(model: PreTrainedModel) -> int:
    """A hash of all state, other than its inputs, on which a captured forward pass depends.

    It covers modules, hooks, replaced methods, the addresses of weights, and all plain attributes
    below the root, such as active adapters, scales and training mode. In-place changes of weights
    are left out because a graph reads the new values.
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
    """The parts of an attribute that can be compared; the type of anything else."""
    if isinstance(value, _SIMPLE):
        return value
    if isinstance(value, dict) and len(value) <= _LONG:
        return tuple((str(key), _plain(part)) for key, part in value.items())
    if isinstance(value, list | tuple) and len(value) <= _LONG:
        return tuple(_plain(part) for part in value)
    return type(value)
