"""Refusal by energy while a model answers, and filters that only suppress.

Nothing here changes a weight, so nothing here may be called erasure: a guard stands before a model, and whoever holds
the weights can take it away.
"""
