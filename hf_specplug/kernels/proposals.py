"""The rows that drafters return: (search node, proposed token, evidence bucket), int32[n, 3]."""

from __future__ import annotations

from hf_specplug.kernels._njit import inline

PROPOSAL_NODE, PROPOSAL_TOKEN, PROPOSAL_BUCKET = range(3)


@inline
def propose(out, rows, node, token, bucket):
    """Write one proposal to row `rows` of `out` and return the new number of rows."""
    out[rows, PROPOSAL_NODE] = node
    out[rows, PROPOSAL_TOKEN] = token
    out[rows, PROPOSAL_BUCKET] = bucket
    return rows + 1


@inline
def is_proposed(out, begin, end, token):
    """Whether one of the rows [begin, end) of `out` proposes `token`."""
    found = False
    for row in range(begin, end):
        if out[row, PROPOSAL_TOKEN] == token:
            found = True
            break
    return found
