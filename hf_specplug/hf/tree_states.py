"""Recurrent states over a draft tree: layers with a gated delta rule or Mamba2 verify whole trees.

In a forward pass inside `TreeStates.at`, these layers compute every node after its own ancestors:
their recurrence by `delta_rule.solve` or `selective_scan.scan`, the causal convolution by windows
gathered from the columns that the cache keeps and from the ancestors. `TreeStates.keep` then writes
both states of the accepted path. There is no second pass, and no copy of a state per path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicLayer

from hf_specplug.hf import delta_rule, selective_scan, tree_windows
from hf_specplug.hf.cache import rollback as of_keys
from hf_specplug.hf.plan import PLAIN
from hf_specplug.hf.seams import CONVOLUTION, DELTA_RULE, SCAN, replaced, switches

After = Callable[[torch.Tensor], torch.Tensor]
"""The recurrent state after the nodes of a path, int64[n]."""


class _Keys(DynamicLayer):  # type: ignore[misc]
    """The keys and values of a layer that also holds states."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self.is_initialized = True

    @property
    def keys(self) -> Any:
        return self._layer.keys

    @keys.setter
    def keys(self, states: Any) -> None:
        self._layer.keys = states

    @property
    def values(self) -> Any:
        return self._layer.values

    @values.setter
    def values(self, states: Any) -> None:
        self._layer.values = states


_STATES = "LinearAttentionLayer"
_STATES_AND_KEYS = "LinearAttentionAndFullAttentionLayer"


def of_text(cache: Any) -> Cache:
    """What a cache holds for each token, as a cache of its own: keys and values."""
    layers = [layer for layer in cache.layers if type(layer).__name__ != _STATES]
    return Cache(
        layers=[
            _Keys(layer) if type(layer).__name__ == _STATES_AND_KEYS else layer for layer in layers
        ]
    )


def rollback(cache: Any) -> tuple[str, str]:
    """How a cache with recurrent states can be rolled back: see `hf_specplug.hf.cache.rollback`."""
    mode, reason = of_keys(cache)
    if mode == PLAIN:
        return mode, reason
    known = (_STATES, _STATES_AND_KEYS)
    return of_keys(Cache(layers=[x for x in cache.layers if type(x).__name__ not in known]))


def recurrent_layers(cache: Any) -> list[Any]:
    """The layers of a filled cache that hold a recurrent state."""
    return [
        layer
        for layer in cache.layers
        if any(state is not None for state in getattr(layer, "recurrent_states", {}).values())
    ]


class TreeStates:
    """The recurrent states of one request, whose forward passes verify trees.

    Args:
        model: a model for which `seams.switches` finds the functions of its recurrent layers.
        cache: its filled cache.

    Example:
        >>> states = TreeStates(model, cache)  # doctest: +SKIP
        >>> with states.at(seen):
        ...     model(**inputs)
        >>> states.keep([0, 2])
    """

    def __init__(self, model: PreTrainedModel, cache: Any) -> None:
        self._switches = switches(model)
        self._layers = recurrent_layers(cache)
        self._pass: _Pass | None = None

    @property
    def pending(self) -> bool:
        """Whether the nodes to keep of the last pass are not chosen yet."""
        return self._pass is not None

    @contextmanager
    def at(self, seen: NDArray[np.bool_]) -> Iterator[None]:
        """Context manager for one forward pass over T > 1 tokens; the states wait for `keep`.

        Args:
            seen: bool[T, T], True where the column is the row's token or one of its ancestors.

        Raises:
            RuntimeError: a recurrent layer of the cache did not compute by the known functions.
        """
        of_pass = _Pass(self._layers, seen)
        roles: dict[str, Callable[..., Any]] = {
            DELTA_RULE: of_pass.rule,
            SCAN: of_pass.scan,
            CONVOLUTION: of_pass.convolution,
        }
        try:
            with replaced(self._switches, roles):
                yield
            of_pass.check()
        except BaseException:
            of_pass.undo()
            raise
        self._pass = of_pass

    def keep(self, visited: Sequence[int]) -> None:
        """Write the states after an accepted path; without a pass over a tree they stand.

        Args:
            visited: the nodes of the path, ascending, root first.
        """
        if self._pass is not None:
            self._pass.keep(visited)
            self._pass = None


class _Pass:
    """One forward pass: what its functions computed, and how the states follow from it.

    Args:
        layers: the layers of the cache that hold a recurrent state.
        seen: bool[T, T], True where the column is the row's token or one of its ancestors.
    """

    def __init__(self, layers: Sequence[Any], seen: NDArray[np.bool_]) -> None:
        self._seen = seen
        self._chain = bool(seen[-1].all())
        self._by_state = {id(layer.recurrent_states[0]): layer for layer in layers}
        self._columns: torch.Tensor | None = None  # those of the layer whose rule comes next
        self._done: list[tuple[Any, torch.Tensor, After]] = []
        self._made: dict[Any, torch.Tensor] = {}  # index tensors, by content and device

    def _on(self, device: torch.device, key: Any, make: Callable[[], Any]) -> torch.Tensor:
        if (device, key) not in self._made:
            self._made[device, key] = torch.as_tensor(make(), device=device)
        return self._made[device, key]

    def convolution(
        self,
        function: Callable[..., torch.Tensor],
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        activation: str | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The convolution at each node [1, C, T] of `hidden_states` [1, C, kept + T]."""
        self._columns = hidden_states
        kept, size = hidden_states.shape[-1] - len(self._seen), weight.shape[-1]
        if self._chain:  # the windows of a chain lie side by side
            return function(hidden_states, weight, bias, activation=activation, **kwargs)[
                ..., kept:
            ]
        read = self._on(
            hidden_states.device,
            ("read", kept, size),
            lambda: tree_windows.windows(self._seen, kept, size),
        )
        outputs = tree_windows.convolve(hidden_states, weight, bias, read)
        if activation is not None:
            outputs = ACT2FN[activation](outputs)
        return outputs.to(hidden_states.dtype)

    def rule(
        self,
        function: Callable[..., Any],
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        initial_state: torch.Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gated delta rule: (outputs at each node, the state before the tree)"""
        place, state = self._place(initial_state)
        outputs, recurrence = delta_rule.solve(
            query, key, value, g, beta, state, self._mask(query.device), use_qk_l2norm_in_kernel
        )
        self._note(place, recurrence.after)
        return outputs.to(query.dtype), state

    def scan(
        self,
        function: Callable[..., Any],
        hidden_states: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        chunk_size: int | None = None,
        D: torch.Tensor | None = None,
        dt_bias: torch.Tensor | None = None,
        initial_states: torch.Tensor | None = None,
        dt_softplus: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mamba2's recurrence: (outputs at each node, the state before the tree)

        Step sizes have no limits here: where a model file decodes one token, it ignores them.
        """
        place, state = self._place(initial_states)
        if dt_bias is not None:
            dt = dt + dt_bias.to(dt.dtype)
        if dt_softplus:
            dt = torch.nn.functional.softplus(dt)
        mask = self._mask(dt.device)
        outputs, recurrence = selective_scan.scan(hidden_states, dt, A, B, C, state.mT, mask)
        if D is not None:
            outputs = outputs + hidden_states * D[:, None]
        self._note(place, lambda path: recurrence.after(path).mT)
        return outputs.to(hidden_states.dtype).contiguous(), state

    def _place(self, state: torch.Tensor | None) -> tuple[tuple[Any, torch.Tensor], torch.Tensor]:
        """((the layer of the cache that holds a state, its columns), the state)"""
        layer, columns = self._by_state.get(id(state)), self._columns
        if state is None or layer is None or columns is None:
            raise RuntimeError("a layer computes from a state that is not the one in the cache")
        return (layer, columns), state

    def _note(self, place: tuple[Any, torch.Tensor], after: After) -> None:
        self._done.append((*place, after))
        self._columns = None

    def _mask(self, device: torch.device) -> torch.Tensor:
        return self._on(device, "seen", lambda: self._seen)

    def check(self) -> None:
        """Raise `RuntimeError` unless each layer computed once."""
        if {id(layer) for layer, *_ in self._done} != {id(x) for x in self._by_state.values()}:
            raise RuntimeError(
                f"{len(self._done)} of {len(self._by_state)} recurrent layers computed a tree"
            )

    def keep(self, visited: Sequence[int]) -> None:
        """Write the states after the nodes `visited` to the cache."""
        for layer, columns, after in self._done:
            path = self._on(columns.device, "path", lambda: list(visited))
            layer.recurrent_states[0].copy_(after(path))
            self._write_window(layer, columns, visited)

    def undo(self) -> None:
        """Write the columns before the pass back; the recurrent states have not changed."""
        for layer, columns, _ in self._done:
            self._write_window(layer, columns, ())
        if self._columns is not None:  # one layer has its new columns already
            for layer in self._by_state.values():
                window = layer.conv_states[0]
                if torch.equal(window, self._columns[..., -window.shape[-1] :]):
                    self._write_window(layer, self._columns, ())

    def _write_window(self, layer: Any, columns: torch.Tensor, visited: Sequence[int]) -> None:
        window = layer.conv_states[0]
        kept, size = columns.shape[-1] - len(self._seen), window.shape[-1]
        last = self._on(
            columns.device,
            ("last", kept, size),
            lambda: tree_windows.last_columns(visited, kept, size),
        )
        window.copy_(columns.index_select(-1, last))
