"""Comparison of runs: reads their records, flags differences, names the best and its ties, writes
page and tables.
"""
