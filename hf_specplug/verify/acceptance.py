"""Acceptance: descend the draft tree, and pick at each node the token that plain `generate` picks.

Every picked token is emitted. If a child of the node carries it, acceptance continues at that
child; otherwise the step ends. There is one pick per emitted token, on the same scores, in the same
order, from the same random numbers. The output is therefore that of plain `generate`, whatever the
draft. Logits processors and stopping criteria see every emitted token once, with the true text
before it, and never see a rejected token.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

from hf_specplug.drafters.contract import NO_NOISE, Float32, Int32, Noise
from hf_specplug.hf.adapter import BaseStreamer
from hf_specplug.tree import DraftTree
from hf_specplug.verify import noise
from hf_specplug.verify.outputs import Outputs

Proposal = Callable[[int], tuple[Int32, Float32, list[int]]]
"""`TreeSearch.proposal`: the distribution from which the children of a node were drawn."""


class Descent:
    """The path of the target's picks through a draft tree.

    Args:
        tree: the draft.

    Attributes:
        node: where the next token is picked, 0 at the root; -1 once no child carries the last one.
        visited: the nodes so far, in order.
        emitted: one token for each of them.

    Example:
        >>> descent = Descent(DraftTree.path(np.array([7, 8], np.int32)))
        >>> descent.take(7)
        >>> descent.node, descent.visited, descent.emitted
        (1, [0], [7])
    """

    def __init__(self, tree: DraftTree) -> None:
        self._children = tree.children()
        self.node = 0
        self.visited: list[int] = []
        self.emitted: list[int] = []

    def take(self, token: int) -> None:
        """Note the token that was picked at `node`, and continue at the child that carries it."""
        self.visited.append(self.node)
        self.emitted.append(token)
        self.node = self._children.get((self.node, token), -1)


class Verifier:
    """Holds the growing sequence of one request, and accepts the drafted tokens that extend it.

    Args:
        input_ids: int64[1, n], the prompt.
        processors, criteria, config: as `generate` prepared them.
        streamer: receives the emitted tokens one by one, at the next `stream`.

    Attributes:
        generator: draws the drafts if they are accepted by rejection sampling, else None.
        finished: whether a stopping criterion was met; nothing is emitted after that.
        scores, logits: [1, V] per emitted token if `generate` was asked to return them, else None.
    """

    def __init__(
        self,
        input_ids: torch.Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        config: GenerationConfig,
        streamer: BaseStreamer | None,
    ) -> None:
        self._processors = processors
        self._criteria = criteria
        self._sample = bool(config.do_sample)
        self._streamer = streamer
        self._device = input_ids.device
        self._length = input_ids.shape[1]
        self._buffer = input_ids.new_empty((1, self._length + 256))
        self._buffer[:, : self._length] = input_ids
        self._new: list[int] = []  # emitted, but not yet in the buffer
        self._unstreamed: list[int] = []
        self._noise: noise.NoiseLookahead | None = None
        self.generator: np.random.Generator | None = None
        self.finished = False
        returns = config.return_dict_in_generate
        self.scores: tuple[torch.Tensor, ...] | None = (
            () if returns and config.output_scores else None
        )
        self.logits: tuple[torch.Tensor, ...] | None = (
            () if returns and config.output_logits else None
        )
        self._max_length = criteria.max_length
        self._eos = _known_stops(criteria)
        self._greedy = (
            not self._sample and not processors and self.scores is None and self.logits is None
        )

    @property
    def input_ids(self) -> torch.Tensor:
        """int64[1, n + emitted], a view of the prompt and all emitted tokens."""
        start = self._length - len(self._new)
        if self._length > self._buffer.shape[1]:
            grown = self._buffer.new_empty((1, 2 * self._length))
            grown[:, :start] = self._buffer[:, :start]
            self._buffer = grown
        if self._new:
            new = torch.tensor(self._new, device=self._buffer.device)
            self._buffer[0, start : self._length] = new
            self._new = []
        return self._buffer[:, : self._length]

    def noise(self) -> Noise:
        """The known sampling noise of the next picks; see `Frontier.noise`."""
        return NO_NOISE if self._noise is None else self._noise.ahead()

    @property
    def remaining(self) -> int:
        """Tokens that can still be emitted before the length limit; 2^30 if there is no limit."""
        return 1 << 30 if self._max_length is None else self._max_length - self._length

    def accept(
        self, outputs: Outputs, tree: DraftTree, proposal: Proposal | None = None
    ) -> tuple[list[int], list[int]]:
        """Accept the part of a tree that the target agrees with.

        Args:
            outputs: the target's outputs at the root and the tree's T - 1 nodes.
            proposal: the distributions from which the tree was drawn, for rejection sampling.

        Returns:
            (indices in [0, T) of the visited nodes, root first; one emitted token per visited node)
        """
        descent = self._descent = Descent(tree)
        while descent.node >= 0 and not self.finished:
            node = descent.node
            token = outputs.pick(node) if self._greedy else self._pick(outputs, node)
            self._emit(token)
            descent.take(token)
        return descent.visited, descent.emitted

    @property
    def reached(self) -> list[int]:
        """The nodes down to the one at which `accept` picks a token, if it was interrupted."""
        return [*self._descent.visited, self._descent.node]

    def _pick(self, outputs: Outputs, node: int) -> int:
        """Pick one token as `GenerationMixin._sample` does."""
        scores = self._process(outputs, node)
        if self._sample:
            return self._draw(torch.nn.functional.softmax(scores, dim=-1), node)
        return int(torch.argmax(scores, dim=-1))

    def _process(self, outputs: Outputs, node: int) -> torch.Tensor:
        """float32[1, V], the processed scores of one pick; kept if `generate` returns them."""
        logits = outputs.logits[node : node + 1]
        raw = logits.to(copy=True, dtype=torch.float32, device=self._device)
        scores: torch.Tensor = self._processors(self.input_ids, raw)
        self._keep(scores, raw)
        return scores

    def _keep(self, scores: torch.Tensor, raw: torch.Tensor) -> None:
        """Keep the scores and the logits [1, V] of one pick, if `generate` returns them."""
        if self.scores is not None:
            self.scores += (scores,)
        if self.logits is not None:
            self.logits += (raw,)

    def _draw(self, probs: torch.Tensor, node: int) -> int:
        """Draw one token from `probs` float32[1, V]."""
        if self._noise is None and noise.known(probs.device, probs.shape[-1]):
            self._noise = noise.NoiseLookahead(probs.device, probs.shape[-1])
        return int(torch.multinomial(probs, num_samples=1))

    def _emit(self, token: int) -> None:
        self._new.append(token)
        self._length += 1
        if self._eos is None:
            self.finished = bool(self._criteria(self.input_ids, self.scores).all())
        else:
            self.finished = token in self._eos or self.remaining <= 0
        if self._streamer is not None:
            self._unstreamed.append(token)

    def stream(self) -> None:
        """Pass the tokens emitted since the last call to the streamer, one by one."""
        unstreamed, self._unstreamed = self._unstreamed, []
        if self._streamer is not None:
            for token in unstreamed:
                self._streamer.put(torch.tensor([token]))


def _known_stops(criteria: StoppingCriteriaList) -> frozenset[int] | None:
    """The stop tokens; None if other criteria than these and the length must be evaluated."""
    stops: set[int] = set()
    for criterion in criteria:
        if type(criterion) is EosTokenCriteria:
            stops.update(criterion.eos_token_id.tolist())
        elif type(criterion) is not MaxLengthCriteria:
            return None
    return frozenset(stops)
