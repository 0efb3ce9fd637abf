"""Checking drafts with the target: what a model can check, masks, cache, forward passes, acceptance."""
