"""Evidence that people can read: static SVG with a summary and a table, and a page of them. Standard library only."""
