"""Recorded texts, replayed without the model: recordings, simulation, tuning."""
