"""Writes the model as a Hugging Face folder, completely or not at all."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from effcompress import fault, processes
from effcompress.errors import RunError

EXPORTING = ".exporting"


def export(
    skeleton: Any,
    tensors: Mapping[str, Tensor],
    save_tokenizer: Callable[[Path], None],
    folder: Path,
    files: Mapping[str, str] | None = None,
) -> int:
    """Writes the model into ``folder``: safetensors, configuration, generation config, tokenizer,
    and further text ``files`` by name.

    ``skeleton`` is a stock model on the meta device; ``tensors`` are its parameters, and buffers
    that it stores, by name.
    Files are written under a temporary folder and moved into place with ``config.json`` last, so
    after an interruption the folder does not load as a model.
    Returns the bytes written. Raises RunError when names or shapes disagree, or the disk is full.
    """
    require_fit(skeleton, tensors)
    # assign: meta tensors cannot be copied into. Not strict: a tied output matrix has no entry.
    skeleton.load_state_dict(dict(tensors), strict=False, assign=True)
    skeleton.tie_weights()

    def fill(work: Path) -> None:
        skeleton.save_pretrained(work, safe_serialization=True)
        save_tokenizer(work)
        for name, text in (files or {}).items():
            (work / name).write_text(text, encoding="utf-8")

    return place(fill, folder)


def place(fill: Callable[[Path], None], folder: Path) -> int:
    """Lets ``fill`` write a model into an empty folder, and moves its files into ``folder``, with
    ``config.json`` last. Returns the bytes written. Raises RunError when the disk is full.
    """
    work = folder / f"{EXPORTING}-{os.getpid()}"
    processes.sweep(folder, EXPORTING)
    try:
        work.mkdir(parents=True, exist_ok=True)
        fill(work)
        made = sorted(filter(Path.is_file, work.rglob("*")), key=lambda f: f.name == "config.json")
        size = sum(f.stat().st_size for f in made)
        (folder / "config.json").unlink(missing_ok=True)
        mask = os.umask(0)
        os.umask(mask)
        for file in made:
            fault.point("export")
            file.chmod(0o666 & ~mask)  # safetensors writes them as 0600, whatever the umask
            target = folder / file.relative_to(work)
            target.parent.mkdir(exist_ok=True)  # `additional_chat_templates`
            file.replace(target)
    except (OSError, ValueError) as error:
        raise RunError(f"the model cannot be written: {error}", where=str(folder)) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return size


def require_fit(skeleton: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raises RunError naming the first tensor that the class wants otherwise, or not at all."""
    stored = skeleton.state_dict().keys()
    held = [(name, b) for name, b in skeleton.named_buffers() if name in stored]
    wanted = {name: tuple(p.shape) for name, p in (*skeleton.named_parameters(), *held)}
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise RunError(
                f"shape {given.get(name)} does not fit the exported class, which wants "
                f"{wanted.get(name)}",
                where=name,
            )
