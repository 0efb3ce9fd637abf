"""Outputs of a forward pass at each input token: logits, picks, top-k tokens, hidden states."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hf_specplug.drafters.contract import TOP_K, TopK
from hf_specplug.hf.hidden_states import rows
from hf_specplug.kernels.topk import top_k


class Outputs:
    """The target's outputs at the root and the nodes of a tree.

    On an accelerator, picks and top-k tokens are computed on the device and copied to the host in
    one transfer. On a CPU they are computed on demand.

    Args:
        logits: [T, V] of the target.
        packed: int32[T, 1 + 2 * TOP_K] on the device, the result of `pack`; None if `pack` has not
            run yet.
        states: [T, width], hidden states; None if they were not captured. States of another shape
            are ignored: they come from a model that calls its output embedding in its own way.

    Example:
        >>> outputs = Outputs(torch.tensor([[0.0, 2.0, 1.0]]))
        >>> outputs.pick(0), outputs.topk().ids[0, :3].tolist()
        (1, [1, 2, 0])
    """

    def __init__(
        self,
        logits: torch.Tensor,
        packed: torch.Tensor | None = None,
        states: torch.Tensor | None = None,
    ) -> None:
        self.logits = logits
        fits = states is not None and states.shape[:-1] == logits.shape[:-1]
        self._states = states if fits else None
        self._plain: NDArray[np.float32] | None = None
        self._picks: NDArray[np.int32] | None = None
        self._topk: TopK | None = None
        self._packed: torch.Tensor | None = None
        self._rows: NDArray[np.int32] | None = None
        if logits.device.type != "cpu":
            packed = pack(logits) if packed is None else packed
            pin = logits.device.type == "cuda"
            self._packed = torch.empty(packed.shape, dtype=torch.int32, pin_memory=pin)
            self._packed.copy_(packed, non_blocking=pin)
            if pin:
                self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._done.record(torch.cuda.current_stream(logits.device))

    @property
    def has_states(self) -> bool:
        """Whether the hidden states of these tokens are available."""
        return self._states is not None

    def wait(self) -> NDArray[np.int32] | None:
        """Wait for the forward pass; returns int32[T, 1 + 2 * TOP_K] of `pack`, None on a CPU."""
        if self._packed is not None and self._rows is None:
            if self._packed.is_pinned():
                self._done.synchronize()
            self._rows = self._packed.numpy()
        return self._rows

    def pick(self, node: int) -> int:
        """The most likely token after `node`: the argmax of its float32 logits."""
        rows = self.wait()
        if rows is not None:
            return int(rows[node, 0])
        if self._picks is not None:
            return int(self._picks[node])
        return int(self._float32()[node].argmax())

    def topk(self) -> TopK:
        """The `TOP_K` most likely tokens after each node. On a CPU this finds all picks, too."""
        if self._topk is None:
            rows = self.wait()
            if rows is None:
                ids, probs, self._picks = top_k(self._float32(), TOP_K)
            else:
                ids = np.ascontiguousarray(rows[:, 1 : 1 + TOP_K])
                probs = np.ascontiguousarray(rows[:, 1 + TOP_K :]).view(np.float32)
                probs = np.nan_to_num(probs).clip(0.0, 1.0)
            self._topk = TopK(ids, probs)
        return self._topk

    def _float32(self) -> NDArray[np.float32]:
        """float32[T, V], the logits on a CPU."""
        if self._plain is None:
            self._plain = self.logits.to(torch.float32).numpy()
        return self._plain

    def hidden(self, node: int) -> NDArray[np.float32] | None:
        """float32[width], the hidden state at `node`; None if unavailable."""
        return None if self._states is None else rows(self._states[node]).copy()


def pack(logits: torch.Tensor) -> torch.Tensor:
    """int32[T, 1 + 2 * TOP_K]: the pick, the top-k token ids, the float32 bits of their probs.

    If the vocabulary is smaller than `TOP_K`, the remaining ids are -1.
    """
    logits = logits.to(torch.float32)
    best = torch.topk(logits, min(TOP_K, logits.shape[-1]), dim=-1)
    probs = torch.exp(best.values - torch.logsumexp(logits, dim=-1, keepdim=True))
    missing = TOP_K - best.indices.shape[-1]
    ids = torch.nn.functional.pad(best.indices, (0, missing), value=-1)
    probs = torch.nn.functional.pad(probs, (0, missing))
    picks = logits.argmax(dim=-1, keepdim=True)
    return torch.cat([picks.int(), ids.int(), probs.view(torch.int32)], dim=-1)
