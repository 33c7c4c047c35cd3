"""Letters to the people concerned; thin, logged by hash."""
