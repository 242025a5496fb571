"""What is written, one way for each kind of record."""
