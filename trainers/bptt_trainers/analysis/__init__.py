"""What the update rules do, made visible: fields, descents, diagnostics, and tasks whose answer is known."""
