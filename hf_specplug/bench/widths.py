"""What a forward pass over several tokens costs with a model on this machine."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_specplug.bench.methods import Method
from hf_specplug.replay.progress import Progress
from hf_specplug.session import Session
from hf_specplug.tree import DraftTree
from hf_specplug.verify.engine import Engine
from hf_specplug.verify.static import PADDED_WIDTHS

_REPEATS = 15


def milliseconds(
    model: PreTrainedModel, method: Method, length: int, progress: Progress
) -> dict[str, Any]:
    """Time the forward passes of a plug, by their width, after `length` tokens.

    Returns:
        method, after (`length`), and by_width: width in tokens -> ms; {} if it cannot draft.
    """
    times: dict[int, float] = {}
    for one in progress([method], "forward passes by width"):
        times = step_milliseconds(model, length, one)
    by_width = {str(width): ms for width, ms in times.items()}
    return {"method": method.name, "after": length, "by_width": by_width} if times else {}


def step_milliseconds(model: PreTrainedModel, length: int, method: Method) -> dict[int, float]:
    """Width in tokens -> median ms of a plug's forward pass over it, after `length` tokens."""
    times: dict[int, float] = {}

    def act(engine: Engine) -> None:
        engine.warm(length + 512)
        for width in PADDED_WIDTHS:
            path = DraftTree.path(np.zeros(width - 1, np.int32))
            taken = []
            for _ in range(_REPEATS):
                start = time.perf_counter()
                engine.step(0, path).wait()
                taken.append(1e3 * (time.perf_counter() - start))
                engine.keep([0])
            times[width] = statistics.median(taken[_REPEATS // 3 :])

    ids = torch.arange(length, device=model.device)[None] % 100 + 3
    room = {"max_new_tokens": 2 + _REPEATS * len(PADDED_WIDTHS)}
    pack = method.plug is not None and method.plug.pack
    Session("auto", pack).on_engine(model, ids, act, **method.settings, **room)
    return times
