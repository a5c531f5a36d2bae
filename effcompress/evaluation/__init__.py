"""The same measurements before and after."""

from effcompress.evaluation.generate import REPETITION_PENALTY, continuation
from effcompress.evaluation.perplexity import Perplexity, perplexity

__all__ = ["REPETITION_PENALTY", "Perplexity", "continuation", "perplexity"]
