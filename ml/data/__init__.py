"""Records in, token batches out."""
