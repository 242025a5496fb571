"""The best that is known of each task, by planners, and how far above it what was trained ends."""
