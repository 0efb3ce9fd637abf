"""How stores are made: corpora, recipes, embedding, and the writer of shards."""
