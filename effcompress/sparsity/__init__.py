"""Zeros within the weights of linear layers: which, what makes up for them, and that they stay."""
