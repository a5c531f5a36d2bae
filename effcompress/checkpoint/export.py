"""Writes the model as a Hugging Face folder, completely or not at all."""

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from effcompress import fault, processes
from effcompress.checkpoint.files import Piece, write_files
from effcompress.distributed.world import ALONE, World
from effcompress.errors import RunError
from effcompress.types import Shapes

EXPORTING = ".exporting"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


@dataclass(frozen=True)
class Written:
    """A folder that was written: its bytes, and the hash (SHA-256) of each file of weights."""

    bytes: int
    hashes: Mapping[str, str] = field(default_factory=dict)


def export(
    pieces: Sequence[Piece], beside: Callable[[Path], None], folder: Path, world: World = ALONE
) -> Written:
    """Writes a model into ``folder``: ``pieces`` as safetensors files, and what ``beside`` writes
    on rank 0 (configuration, tokenizer, other files). A collective.

    Files are written under a temporary folder and moved into place with ``config.json`` last, so
    after an interruption the folder does not load as a model.
    Raises RunError when the disk is full, or a file does not hold what was written.
    """
    work = world.agree(lambda: _room(folder))
    try:
        # Rank 0's other files first: what is wrong with them is said before weights are written.
        world.agree(lambda: beside(work))
        hashes = write_files(work, pieces, world)
        return Written(world.agree(lambda: _move(work, folder)), hashes)
    except (OSError, ValueError) as error:
        raise RunError(
            f"the model cannot be written: {error}",
            where=str(folder),
            fix="Free some space, or take away what is in the way; a run then continues with "
            "--resume.",
        ) from error
    finally:
        if world.main:
            shutil.rmtree(work, ignore_errors=True)


def _room(folder: Path) -> Path:
    """Makes an empty folder to write into."""
    work = folder / f"{EXPORTING}-{os.getpid()}"
    processes.sweep(folder, EXPORTING)
    work.mkdir(parents=True, exist_ok=True)
    return work


def _move(work: Path, folder: Path) -> int:
    """Moves the files into place, and deletes the weights of an earlier export; returns bytes."""
    made = sorted(filter(Path.is_file, work.rglob("*")), key=lambda f: f.name == "config.json")
    size = sum(f.stat().st_size for f in made)
    (folder / "config.json").unlink(missing_ok=True)
    for old in filter(_WEIGHTS.fullmatch, (f.name for f in folder.iterdir())):
        (folder / old).unlink()
    mask = os.umask(0)
    os.umask(mask)
    for file in made:
        fault.point("export")
        file.chmod(0o666 & ~mask)
        target = folder / file.relative_to(work)
        target.parent.mkdir(exist_ok=True)  # `additional_chat_templates`
        file.replace(target)
    return size


def require_fit(skeleton: nn.Module, given: Shapes) -> None:
    """Raises RunError naming the first tensor that the class wants otherwise, or not at all."""
    stored = skeleton.state_dict().keys()
    held = [(name, b) for name, b in skeleton.named_buffers() if name in stored]
    wanted = {name: tuple(p.shape) for name, p in (*skeleton.named_parameters(), *held)}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise RunError(
                f"shape {given.get(name)} does not fit the exported class, which wants "
                f"{wanted.get(name)}",
                where=name,
            )
