"""Hot loops: numba functions over plain arrays and ints, each with a Python twin in the tests."""
