"""The only mutations of weights by decision: mask, commit."""
