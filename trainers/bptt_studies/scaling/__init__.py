"""How time, memory and loss grow with the task."""
