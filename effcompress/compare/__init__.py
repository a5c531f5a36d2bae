"""Comparisons: several recipes and seeds, run and put into one table."""
