"""Several recipes and seeds, run side by side and put into one table."""
