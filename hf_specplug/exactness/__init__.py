"""Whether drafts are exact on a model as it is: evidence, and the trial that makes it."""
