"""The output folder of a run: created once, continued by ``--resume``, never overwritten."""

import fcntl
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from effcompress import recipe as recipes
from effcompress.errors import RecipeError, SourceError
from effcompress.recipe import LoadedRecipe
from effcompress.record import status_file
from effcompress.spec import ModelSpec

RESOLVED = "recipe.resolved.yaml"
WRITTEN = ("recipe.yaml", RESOLVED, "metrics.jsonl", "plans.jsonl", "checkpoints", "pictures")
WRITTEN += (status_file.NAME, f".{status_file.NAME}", "stacks.txt", "trackers.json", "tensorboard")
"""Files and folders that a run writes into as they are; all others it replaces."""


def output_folder(loaded: LoadedRecipe, output: Path | None) -> Path:
    """``--output``, or ``runs/<name>`` below the current folder (names cannot leave it)."""
    return output if output is not None else Path("runs") / loaded.recipe.name


def opened(
    target: LoadedRecipe | Path, overrides: Sequence[str] = ()
) -> tuple[LoadedRecipe, ModelSpec]:
    """Returns a recipe and the model it names: for a recipe its source model; for a run folder the
    run's result, with the run's own recipe and ``overrides``.

    Raises SourceError when the folder holds no finished run.
    """
    if not isinstance(target, Path):
        return target, target.recipe.model
    resolved = target / RESOLVED
    if not resolved.is_file() or not (target / "config.json").is_file():
        raise SourceError(
            "this folder holds no finished run", where=str(target), fix="Name a recipe or a run."
        )
    return recipes.load(resolved, overrides), ModelSpec(folder=target)


@contextmanager
def open_folder(loaded: LoadedRecipe, folder: Path, resume: bool) -> Iterator[None]:
    """Creates the folder, or checks that it holds this recipe's run. Within the context, other
    processes are kept out by a lock, which ends with this process in whatever way.

    A run that died before its first checkpoint starts again from the beginning. Raises RecipeError
    as ``check_folder`` does.
    """
    known = check_folder(loaded, folder, resume)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context((folder / RESOLVED).open("a", encoding="utf-8"))
            _lock(held, folder)
            if not known:
                (folder / "recipe.yaml").write_text(loaded.source, encoding="utf-8")
                held.truncate(0)
                held.write(recipes.resolved(loaded))
                held.flush()
        except OSError as error:
            raise RecipeError(
                f"the output folder cannot be made: {error.strerror}", where=str(folder)
            ) from error
        yield


def _lock(file: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _taken(folder, status_file.read(folder)) from None
    except OSError:  # a file system without locks: what `now.json` says must do
        pass


def check_folder(loaded: LoadedRecipe, folder: Path, resume: bool) -> bool:
    """Returns whether the folder holds this recipe's run, to be resumed. Writes nothing.

    Raises RecipeError: the folder holds something that is no run, or a run that another process
    works on, or a run and ``--resume`` was not given, or the run there was made from a recipe that
    says something else, or one of the files in it is a link.
    """
    stored, fix = folder / RESOLVED, _elsewhere(folder)
    wrong, where = "", folder
    if folder.exists() and not folder.is_dir():
        wrong = "this is a file, not a folder"
    elif folder.exists() and any(folder.iterdir()):
        if not stored.is_file():
            wrong = "the folder is not empty, and what is in it is no run of effcompress"
        else:
            require_free(folder)
            if link := next((name for name in WRITTEN if (folder / name).is_symlink()), None):
                wrong = "this is a link; a run writes, and deletes, in its own folder only"
                where = folder / link
                fix = f"Move what it points to here, or link the whole folder. {fix}"
            elif begun(folder) and not resume:
                wrong, fix = "the folder holds a run already", f"Continue it with --resume. {fix}"
            elif begun(folder):
                same_recipe(stored_recipe(folder), recipes.resolved(loaded), folder)
                return True
    if wrong:
        raise RecipeError(wrong, where=str(where), fix=fix)
    return False


def require_free(folder: Path) -> None:
    """Raises RecipeError where a process works on the run in ``folder``."""
    now = status_file.read(folder)
    if now is not None and now.open and now.alive():
        raise _taken(folder, now)


def _taken(folder: Path, now: status_file.StatusRecord | None) -> RecipeError:
    who = "another process has just begun this run"
    if now is not None and now.open:
        who = f"process {now.pid} on host {now.host} is running this since {now.started[:19]} UTC"
    watch = f"Watch it: effcompress status {shlex.quote(str(folder))}"
    return RecipeError(who, where=str(folder), fix=f"{watch}. {_elsewhere(folder)}")


def _elsewhere(folder: Path) -> str:
    name = folder.resolve().name or "runs/mine"
    return f"Another folder: --output {folder.parent / name}-2"


_LOOPS = ("train", "recover")
HOW = {f"{loop}.{key}" for loop in _LOOPS for key in ("recompute", "compile")} | {"save.background"}
"""Keys that may change between start and ``--resume``: they do not change the result."""
MOVED = {"prune.reduce.members": "prune.reduce.members.name"}
"""Key in resolved recipes of older versions -> the same key now."""


def begun(folder: Path) -> bool:
    """Whether the folder holds a checkpoint or a model, which a new run would overwrite."""
    return any((folder / "checkpoints").glob("step-*")) or (folder / "config.json").exists()


def same_recipe(before: str, now: str, folder: Path) -> None:
    """Raises RecipeError with the first value in which two resolved recipes differ; ``folder`` is
    the folder of the earlier run. Keys that do not change the result may differ.
    """
    old, new = values(before), values(now)
    for key in [*old, *new]:
        if old.get(key) != new.get(key):
            raise RecipeError(
                f"the recipe changed since this run began: {key} was {old.get(key, 'absent')}, is "
                f"{new.get(key, 'absent')}",
                where=str(folder),
                fix="Change it back to continue, or start afresh with --output.",
            )


def stored_recipe(folder: Path) -> str:
    """Returns the resolved recipe of a run. Raises RecipeError where it is damaged."""
    path = folder / RESOLVED
    try:
        text = path.read_text(encoding="utf-8")
        recipes.values(text)
        return text
    except (RecipeError, UnicodeDecodeError) as error:
        raise RecipeError(
            "this is not the recipe that a run wrote",
            where=str(path),
            fix="Put the file back, or start afresh with --output.",
        ) from error


def values(resolved: str) -> dict[str, str]:
    """Reads a resolved recipe into dotted key -> value, without the keys in which two processes of
    one run may differ: trackers, and how layers are computed.
    """
    return {
        MOVED.get(key, key): value
        for key, value in recipes.values(resolved).items()
        if key.partition(".")[0] != "track" and key not in HOW
    }
