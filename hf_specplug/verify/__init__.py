"""Verification of drafts by the target: engines, masks, forward passes and acceptance."""
