"""The audit trail: ids and reason codes, sealed into a hash chain."""
