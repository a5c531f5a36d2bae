"""Report page and model card of a run folder. Reads files, never the model."""

from effcompress.report.card import write_card
from effcompress.report.page import write

__all__ = ["write", "write_card"]
