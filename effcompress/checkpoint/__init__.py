"""Writes and reads checkpoints, exports the model and proves the export."""

import tempfile
from pathlib import Path

from effcompress import processes
from effcompress.checkpoint.export import EXPORTING, Written, export, require_fit
from effcompress.checkpoint.files import Piece
from effcompress.checkpoint.measurement import read_measurement, write_measurement
from effcompress.checkpoint.prove import Classes, text_settings  # isort: split

from effcompress.checkpoint.proof import PROVING, Proof, prove
from effcompress.checkpoint.save import (
    MISFITS,
    WRITING,
    GrowingCopy,
    Saved,
    Writing,
    begin,
    newest,
    publish,
    save,
    size,
    steps,
    thin,
)

__all__ = [
    "MISFITS",
    "Classes",
    "GrowingCopy",
    "Piece",
    "Proof",
    "Saved",
    "Writing",
    "Written",
    "begin",
    "export",
    "newest",
    "prove",
    "publish",
    "read_measurement",
    "require_fit",
    "save",
    "size",
    "steps",
    "sweep",
    "text_settings",
    "thin",
    "write_measurement",
]


def sweep(folder: Path) -> None:
    """Deletes what killed processes left of checkpoints and exports in a run's folder, and of
    proofs in the folder for temporary files.
    """
    places = ((folder / "checkpoints", WRITING), (folder, EXPORTING))
    for where, name in (*places, (Path(tempfile.gettempdir()), PROVING)):
        processes.sweep(where, name)
