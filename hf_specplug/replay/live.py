"""Live replay: a model verifies the drafts for recorded answers, which it is forced to give.

It takes a forward pass per step, unlike a simulation. In return drafters learn from the model's
likely tokens after rejected nodes, too, as they do when the model answers freely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)

from hf_specplug.drafters.contract import Drafter
from hf_specplug.drafting.ensemble import Ensemble
from hf_specplug.drafting.mixer import Mixer
from hf_specplug.drafting.search import TreeSearch
from hf_specplug.hf.call import NOT_FOR_THE_MODEL, Call
from hf_specplug.replay.recording import Recording
from hf_specplug.replay.simulate import Texts
from hf_specplug.replay.teacher_forcing import Answer, measure
from hf_specplug.runner import Runner
from hf_specplug.telemetry.stats import Stats
from hf_specplug.verify.acceptance import Verifier


def replay_live(
    model: PreTrainedModel,
    recording: Recording,
    drafters: Sequence[Drafter],
    mixer: Mixer,
    nodes: int | str = 16,
    search: type[TreeSearch] = TreeSearch,
    progress: Callable[[Texts], Texts] = lambda texts: texts,
) -> Stats:
    """Generate every recorded answer; the arguments are those of `simulate.replay`.

    Raises:
        RecordingError: the model ended an answer early, at an end token that it holds.

    Example:
        >>> drafters = create(["context"])  # doctest: +SKIP
        >>> stats = replay_live(model, load("r"), drafters, Mixer(["context"]))  # doctest: +SKIP
    """
    stats = Stats()
    ensemble = Ensemble(list(drafters))
    ensemble.mixer = mixer
    runner = Runner(ensemble, stats, nodes, True, search, Verifier)

    def decode(
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> Any:
        inputs = {key: kwargs[key] for key in kwargs if key not in NOT_FOR_THE_MODEL}
        call = Call(model, input_ids, generation_config, inputs)
        return runner.run(call, logits_processor, stopping_criteria, None, None)

    for text in progress(recording):
        prompt = torch.from_numpy(text.tokens[: text.prompt_length]).long()[None].to(model.device)
        answer = Answer(text.task, prompt, text.answer.tolist())
        measure(model.generate, answer, {"custom_generate": decode})
    return stats
