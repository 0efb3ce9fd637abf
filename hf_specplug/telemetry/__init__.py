"""What happened: statistics, calibration, the trees of a call, and their pictures."""
