"""A run: from settings and start states to weights, epoch after epoch, in a folder."""
