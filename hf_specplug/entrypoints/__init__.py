"""Ways to `generate` with a plug: one model, all models of a process, an unchanged program."""
