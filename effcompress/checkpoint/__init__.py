"""Writing down everything, reading it back, and proving the result."""

from effcompress.checkpoint.export import export
from effcompress.checkpoint.proof import Proof, prove
from effcompress.checkpoint.resume import newest
from effcompress.checkpoint.save import TENSORS, Saved, save, steps

__all__ = ["TENSORS", "Proof", "Saved", "export", "newest", "prove", "save", "steps"]
