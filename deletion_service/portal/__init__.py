"""Pages for data subjects."""
