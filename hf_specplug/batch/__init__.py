"""Calls with several rows: the decoding loop, and how such a call begins and ends."""
