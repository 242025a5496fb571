"""Settings by name: the paper's, and those that a study found."""
