"""`specplug bench`: one file for each question that it answers."""
