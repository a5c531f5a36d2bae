"""Measurements of a model, the same before and after pruning."""

from effcompress.evaluation.agreement import agreement
from effcompress.evaluation.generate import REPETITION_PENALTY, continuation
from effcompress.evaluation.perplexity import perplexity

__all__ = ["REPETITION_PENALTY", "agreement", "continuation", "perplexity"]
