"""Exact deletion: adapters that learned from one slice of the records each, stored unmerged, and removed with it."""
