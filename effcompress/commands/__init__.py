"""Commands other than ``run`` and ``compare``."""
