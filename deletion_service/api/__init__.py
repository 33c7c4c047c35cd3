"""REST doors for machines."""
