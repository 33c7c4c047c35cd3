"""Unlearning and verification of causal language models: a plain library that never imports Django."""
