"""Methods of drafting by others and by us, on the same recorded answers in one run."""
