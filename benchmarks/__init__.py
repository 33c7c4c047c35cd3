"""Timings that design decisions rest on: `python -m benchmarks`. CPU seconds and ratios, never wall time."""
