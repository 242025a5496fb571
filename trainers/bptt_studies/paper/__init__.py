"""The paper's experiments as data, their results, and the report made from those."""
