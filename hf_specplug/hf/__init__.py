"""Everything that depends on transformers: `generate`, model families, KV caches, attention."""
