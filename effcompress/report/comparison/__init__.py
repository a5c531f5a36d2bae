"""Comparison of runs: their records, what differs, the best and its ties, page and tables."""
