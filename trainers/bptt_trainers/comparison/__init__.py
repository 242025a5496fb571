"""Methods side by side, on the same held-out start states."""
