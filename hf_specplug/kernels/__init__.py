"""Hot loops: numba functions over arrays and numbers, each with a plain-Python twin in the tests.

Three arrays are common to most kernels:

    pool      int32[capacity, COLUMNS]  the nodes of the search (columns: `kernels.tree`)
    frontier  int32[n]                  the nodes to expand in this round, after their parents
    out       int32[rows, 3]            the proposals of a drafter (columns: `kernels.proposals`)

Columns have names. Those of the pool have no prefix (`TOKEN`, `PARENT`, ...); all others have one
that tells the array (`GRAM_COUNT`, `POINTER_SHARD`, ...).
"""
