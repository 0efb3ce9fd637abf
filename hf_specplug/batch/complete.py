"""What plain `generate` computes for rows that have ended while others go on: padding.

The cache, scores and logits that a call returns also cover the padding. It is known as soon as all
rows have ended, and runs as one chain per row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_specplug.tree import DraftTree
from hf_specplug.verify.row_acceptance import RowVerifier
from hf_specplug.verify.row_engine import RowEngine

_WIDTH = 64  # tokens of a row in one forward pass


def complete(engine: RowEngine, rows: Sequence[RowVerifier], pad: int) -> None:
    """Pad all rows to the length of the longest one, and hand back the cache.

    Args:
        engine: the engine of a call whose rows have ended, and whose cache outlives it.
        rows: all rows of the call.
        pad: the padding token.
    """
    lengths = [row.input_ids.shape[1] for row in rows]
    engine.restore()
    engine.cut([length - 1 for length in lengths])  # a row may have run past its end
    width = min(_WIDTH, engine.free_slots + 1)
    while min(lengths) < max(lengths):
        counts = [min(max(lengths) - length, width) for length in lengths]
        roots = [int(row.input_ids[0, -1]) for row in rows]
        chains = [DraftTree.path(np.full(max(count - 1, 0), pad, np.int32)) for count in counts]
        outputs = engine.step_rows(roots, chains)
        engine.keep_rows([range(count) for count in counts])
        for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
            row.pad(outputs[index], pad, count)
            lengths[index] += count
    engine.hand_back()
