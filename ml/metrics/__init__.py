"""Metrics: intervals, separation, fluency, utility. They measure; they never decide."""
