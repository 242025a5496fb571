"""The paper's two toy examples."""
