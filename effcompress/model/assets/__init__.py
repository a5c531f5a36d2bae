"""Model weights that a Python package carries."""
