"""All that touches transformers: what `generate` hands over, families, caches, attention."""
