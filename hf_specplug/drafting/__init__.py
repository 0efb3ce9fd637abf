"""One tree from all drafters: search, mixer and budget, and what they keep between calls."""
