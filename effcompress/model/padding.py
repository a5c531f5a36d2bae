"""Zeros that fill a folder up: they would come alive if it were trained from scratch."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from effcompress.errors import SourceError
from effcompress.model.scratch import RECORD


def require_unpadded(folder: Path, vocab: int) -> None:
    """Raises SourceError if a weight has rows or columns of zeros and nothing says what the shapes
    were before. Reads the weights where there are any, and is through at the first zeros; rows of
    the ``vocab`` tokens may be zeros for another reason.
    """
    if (folder / RECORD).is_file():
        return
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  no mapping, it has no __iter__
                weight = tensors.get_tensor(name)
                if weight.dim() < 2 or vocab in weight.shape:
                    continue
                used = weight.ne(0)
                if not (used.flatten(1).any(1).all() and used.any(0).all()):
                    raise SourceError(
                        f"'{name}' has rows or columns of zeros, as folders padded with zeros do; "
                        "trained from scratch they would come alive, and this folder does not say "
                        "how wide the layers were",
                        where=f"model.folder: {folder}",
                        fix="export the run again (`effcompress export RUN --as exact`) and name "
                        "that folder",
                    )
