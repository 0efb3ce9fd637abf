"""Whether drafts are exact on a given model: cached evidence, and the trial that yields it."""
