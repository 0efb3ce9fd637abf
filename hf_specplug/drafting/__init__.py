"""Drafting one tree from all drafters: search, mixer, budget, and their state across calls."""
