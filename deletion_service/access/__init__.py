"""Who may do what: one table; API keys; staff roles."""
