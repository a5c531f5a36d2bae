"""Writes and reads checkpoints, exports the model and proves the export."""

from effcompress.checkpoint.export import export
from effcompress.checkpoint.prove import manners  # isort: split

from effcompress.checkpoint.proof import Proof, prove
from effcompress.checkpoint.save import (
    MISFITS,
    Saved,
    Writing,
    begin,
    newest,
    publish,
    save,
    size,
    steps,
)

__all__ = [
    "MISFITS",
    "Proof",
    "Saved",
    "Writing",
    "begin",
    "export",
    "manners",
    "newest",
    "prove",
    "publish",
    "save",
    "size",
    "steps",
]
