"""Writing down everything, reading it back, and proving the result."""

from effcompress.checkpoint.export import export
from effcompress.checkpoint.proof import Proof, prove
from effcompress.checkpoint.resume import newest
from effcompress.checkpoint.save import Saved, save, size, steps

__all__ = ["Proof", "Saved", "export", "newest", "prove", "save", "size", "steps"]
