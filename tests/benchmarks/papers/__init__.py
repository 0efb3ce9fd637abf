"""The published methods and ours on the same recorded answers and datastores, in one run."""
