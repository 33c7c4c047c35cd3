"""Exact deletion: adapters that learned from one slice of the records each and are removed with it, never merged."""
