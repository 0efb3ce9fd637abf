"""Near-ties: does rounding explain that a token differs?

In bfloat16 and float16 a forward pass over several tokens rounds differently from one over a single
token. Where two tokens are almost equally likely, this decides between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from hf_specplug.bench.generation import first_difference
from hf_specplug.hf import adapter
from hf_specplug.hf.call import NOT_FOR_THE_MODEL, Call
from hf_specplug.hf.call_settings import build_stop_strings
from hf_specplug.verify.noise import generator_state

_WIDEST = 64.0  # margin up to which is searched, in logits
_HALVINGS = 24


@dataclass(frozen=True)
class Difference:
    """The first token at which two answers differ.

    Attributes:
        position: its index in the answer.
        plain, drafted: the token ids; None where the answer has ended.
        margin: by how much the logit of the drafted token would have to be higher for plain
            decoding to pick it. In greedy decoding without processors this is its distance from
            the best logit. None if nothing up to 64 makes plain decoding pick it.
        rounding: what rounding may change in the distance between two logits there: twice the
            largest change of a logit between decoding token by token and one forward pass over the
            whole text, or one step of the dtype if that is larger.
        reproducible: whether a repetition of the plain call gave the same tokens.
    """

    position: int
    plain: int | None
    drafted: int | None
    margin: float | None
    rounding: float
    reproducible: bool

    @property
    def near_tie(self) -> bool:
        """Whether rounding explains the difference."""
        return self.reproducible and self.margin is not None and self.margin <= self.rounding

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "near_tie": self.near_tie}


def explain(
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    settings: dict[str, Any],
    seed: int,
    answers: tuple[list[int], list[int]],
) -> Difference:
    """Repeat a plain call, and measure the margin at the first difference.

    Args:
        model: not attached.
        inputs: `input_ids` and `attention_mask`, each int64[1, n].
        settings: further arguments of `generate`.
        seed: of the call.
        answers: token ids of the plain and of the drafted answer, which differ.
    """
    position = first_difference(*answers) or 0
    plain, drafted = (each[position] if position < len(each) else None for each in answers)
    watch, arguments = _Watch(position), {**inputs, **settings}
    build_stop_strings(model, arguments)
    torch.manual_seed(seed)
    output = model.generate(**arguments, custom_generate=watch)
    again = output[0, inputs["input_ids"].shape[1] :].tolist()
    margin, rounding = None, 0.0
    if plain is not None and watch.seen is not None:
        rounding = _rounding(model, watch.seen)
        if drafted is not None:
            margin = _margin(watch.pick(watch.seen), watch.seen.logits, plain, drafted)
    return Difference(position, plain, drafted, margin, rounding, again == answers[0])


@dataclass
class _Seen:
    """What plain decoding sees at one position: text, logits, processed scores, generator state."""

    text: torch.Tensor
    logits: torch.Tensor
    scores: torch.Tensor
    state: torch.Tensor


class _Watch:
    """A decoding method: plain decoding that keeps what it sees before token `position`."""

    def __init__(self, position: int) -> None:
        self._position = position
        self.seen: _Seen | None = None

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: Any,
        generation_config: Any,
        **rest: Any,
    ) -> Any:
        kwargs = {key: rest[key] for key in rest if key not in NOT_FOR_THE_MODEL}
        first, last = _Copy(), _Copy(self._keep)
        self._first, self._at = first, input_ids.shape[1] + self._position
        self._process, self._samples = logits_processor, generation_config.do_sample
        watched = LogitsProcessorList([first, *logits_processor, last])
        call = Call(model, input_ids, generation_config, kwargs)
        return adapter.plain(call, watched, stopping_criteria, None)

    def _keep(self, text: torch.Tensor, scores: torch.Tensor) -> None:
        if text.shape[1] == self._at:
            state = generator_state(scores.device)
            self.seen = _Seen(text.clone(), self._first.scores, scores.clone(), state)

    def pick(self, seen: _Seen) -> Callable[[torch.Tensor], int]:
        """The token that plain decoding picks there, as a function of logits [1, V]."""
        process = self._process
        generator = torch.Generator(seen.scores.device)
        guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor  # keeps a cache: asked only once
        again = not any(isinstance(processor, guidance) for processor in process)

        def picked(logits: torch.Tensor) -> int:
            if again:
                scores = process(seen.text, logits.clone())
            else:
                scores = seen.scores + (logits - seen.logits)
            if not self._samples:
                return int(scores.argmax())
            generator.set_state(seen.state)
            probs = torch.softmax(scores, dim=-1)
            return int(torch.multinomial(probs, num_samples=1, generator=generator))

        return picked


class _Copy(LogitsProcessor):  # type: ignore[misc]
    """Changes nothing; keeps the last scores, and shows them to `act`."""

    def __init__(self, act: Callable[[torch.Tensor, torch.Tensor], None] | None = None) -> None:
        self._act = act

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.scores = scores.clone()
        if self._act is not None:
            self._act(input_ids, scores)
        return scores


def _margin(
    pick: Callable[[torch.Tensor], int], logits: torch.Tensor, plain: int, drafted: int
) -> float | None:
    """The smallest increase of the logit of `drafted` that makes `pick` choose it."""

    def picked(increase: float) -> int:
        other = logits.clone()
        other[0, drafted] += increase
        return pick(other)

    low, high = 0.0, _WIDEST
    if picked(low) != plain or picked(high) != drafted:
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if picked(middle) == drafted else (middle, high)
    return high


def _rounding(model: PreTrainedModel, seen: _Seen) -> float:
    """What rounding may change in the distance of two logits, see `Difference.rounding`."""
    with torch.no_grad():
        whole = model(seen.text, use_cache=False).logits[:, -1].float()
    change = float((whole - seen.logits).abs().max())
    step = torch.finfo(model.dtype).eps * float(seen.logits.abs().max())
    return max(2 * change, step)
