"""The same measurements before and after."""

from effcompress.evaluation.generate import continuation
from effcompress.evaluation.perplexity import Perplexity, perplexity

__all__ = ["Perplexity", "continuation", "perplexity"]
