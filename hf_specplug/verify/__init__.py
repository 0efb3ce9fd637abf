"""Checking drafts with the target: what can be checked, masks, cache, forwards, acceptance."""
