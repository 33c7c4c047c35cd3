"""REST v1. Thin callers of domain functions: read the body, ask one function, show the row."""
