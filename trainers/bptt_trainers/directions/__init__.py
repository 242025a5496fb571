"""Where to go: update directions of a controller, and when they can be trusted."""
