"""Report page and model card of a run folder. Reads files, never the model."""

from effcompress.report.card import write_card
from effcompress.report.page import write
from effcompress.report.render import PARTIAL

__all__ = ["PARTIAL", "write", "write_card"]
