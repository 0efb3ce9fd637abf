"""A trial of a batch: the logits of each row's tree or chain, compared with plain decoding.

The rows keep paths of different lengths. Then one of them leaves, and the other one goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from hf_specplug.exactness.paths import Path, made_tree, paths_of
from hf_specplug.hf.call import Call
from hf_specplug.hf.plan import TREE, CallPlan
from hf_specplug.hf.prefill import Prompt, next_kwargs
from hf_specplug.tree import EMPTY
from hf_specplug.verify.aligned import AlignedEngine
from hf_specplug.verify.ragged import RaggedEngine

Place = tuple[int, Path]  # a row of the batch, and the tokens after its prompt


def drafted_logits(
    call: Call, mode: str, prompt: Prompt, t: Sequence[int]
) -> dict[Place, torch.Tensor]:
    """The logits of three forward passes over all rows, by place.

    Args:
        call: a call with two or more rows. The others do as the first two.
        mode: tree or chain.
        prompt: its state after prefill; not changed.
        t: seven tokens.
    """
    if mode == TREE:
        #   row 0   t0 ── t1 ── t3          kept: t0 t2 t4
        #            └─── t2 ── t4
        first, kept_of_first = made_tree([-1, -1, 0, 1], [t[1], t[2], t[3], t[4]]), [0, 2, 4]
        next_of_first = made_tree([-1, -1], [t[5], t[6]])
    else:
        #   row 0   t0 ── t1 ── t3          kept: t0 t1
        first, kept_of_first = made_tree([-1, 0], [t[1], t[3]]), [0, 1]
        next_of_first = made_tree([-1], [t[5]])
    #   row 1   t0 ── t5                    kept: t0
    trees = [first, made_tree([-1], [t[5]])]
    #   then    t3 with t5 or t6; t1 with t2 and t3, of which t1 and t2 are kept; row 0 leaves
    second = [next_of_first, made_tree([-1, 0], [t[2], t[3]])]
    rows = range(call.rows)
    found: dict[Place, torch.Tensor] = {}
    kind = RaggedEngine if mode == TREE else AlignedEngine
    engine = kind(replace(call, kwargs={}), CallPlan(mode))
    try:
        engine.resume(prompt.copied())
        texts: list[Path] = [() for _ in rows]
        roots = [t[0] for _ in rows]
        for grown, kept, after in (
            (trees, [kept_of_first, [0]], [t[3], t[1]]),
            (second, [[0], [0, 1]], [t[1], t[6]]),
        ):
            outputs = engine.step_rows(roots, [grown[row % 2] for row in rows])
            for row, (text, root) in enumerate(zip(texts, roots, strict=True)):
                tree = grown[row % 2]
                places = paths_of(text, root, tree)
                logits = outputs[row].logits.float()
                found.update({(row, path): one for path, one in zip(places, logits, strict=True)})
                texts[row] = places[kept[row % 2][-1]]
            engine.keep_rows([kept[row % 2] for row in rows])
            roots = [after[row % 2] for row in rows]
        engine.select([1])
        logits = engine.step_rows([roots[1]], [EMPTY])[0].logits.float()
        found[1, (*texts[1], roots[1])] = logits[0]
    finally:
        engine.close()
    return found


def expected_logits(
    model: PreTrainedModel, prompt: Prompt, paths: Sequence[Path]
) -> dict[Place, torch.Tensor]:
    """The logits of plain decoding with the same path in all rows, for paths in lexical order."""
    found: dict[Place, torch.Tensor] = {}

    def visit(path: Path, before: Prompt) -> None:
        new = before.input_ids.new_full((len(before.input_ids), 1), path[-1])
        ids = torch.cat([before.input_ids, new], dim=1)
        inputs = model.prepare_inputs_for_generation(ids, next_sequence_length=1, **before.kwargs)
        outputs = model(**inputs, return_dict=True)
        kwargs = next_kwargs(model, outputs, before.kwargs)
        after = Prompt(ids, kwargs, before.per_token)
        for row, logits in enumerate(outputs.logits[:, -1].float()):
            found[row, path] = logits
        for child in paths:
            if child[:-1] == path:
                visit(child, after.copied())

    visit(paths[0], prompt.copied())
    return found
