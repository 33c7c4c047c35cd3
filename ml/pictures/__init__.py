"""Evidence that people can read: static SVG with a summary and a table. Standard library only, no page's style."""
