"""The output folder of a run: created once, continued by ``--resume``, never overwritten."""

import fcntl
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from effcompress import recipe as recipes
from effcompress.errors import RecipeError, SourceError
from effcompress.recipe import LoadedRecipe
from effcompress.record import status, status_file
from effcompress.record.tail import read_tail
from effcompress.spec import ModelSpec

RESOLVED, VALUES = "recipe.resolved.yaml", "recipe.resolved.json"
"""The run's recipe for people and commands; its values alone, which ``--resume`` compares."""
WRITTEN = ("recipe.yaml", RESOLVED, VALUES, "metrics.jsonl", "plans.jsonl", "checkpoints")
WRITTEN += (status.AT, "exports.jsonl")
WRITTEN += ("pictures", "stacks.txt", "trackers.json", "tensorboard")
WRITTEN += (status_file.NAME, f".{status_file.NAME}")
"""Files and folders that a run writes into as they are; all others it replaces."""
_FILES = ("recipe.yaml", VALUES, "metrics.jsonl", "plans.jsonl", "report.html", status_file.NAME)
_FILES += ("exports.jsonl", "README.md", "config.json")
"""Names under which a folder would be in the way."""


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
            if not known or moved(loaded, folder):
                said = json.dumps(recipes.plain(loaded.recipe), indent=1)
                (folder / VALUES).write_text(said, encoding="utf-8")
                # Last: the file that makes the folder a run's.
                held.truncate(0)
                held.write(recipes.resolved(loaded))
                held.flush()
        except OSError as error:
            raise RecipeError(
                f"the output folder cannot be made: {error.strerror}",
                where=str(folder),
                fix="Name another one with --output, where you may write.",
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
    says something else, or one of the files in it is a link or may not be written.
    """
    stored, fix = folder / RESOLVED, _elsewhere(folder)
    wrong = ""
    if (run := status.run_of_size(folder)) is not None:
        what, output = "a size of the run above; that run writes it", shlex.quote(str(run))
        fix = f"Resume that run: effcompress run {shlex.quote(str(run / RESOLVED))} --output "
        raise RecipeError(what, where=str(folder), fix=f"{fix}{output} --resume")
    if folder.exists() and not folder.is_dir():
        wrong = "this is a file, not a folder"
    elif folder.exists() and any(folder.iterdir()):
        if not stored.is_file():
            wrong = "the folder is not empty, and what is in it is no run of effcompress"
        else:
            require_free(folder)
            _require_own(folder, fix)
            _require_writable(folder, fix)
            if begun(folder) and not resume:
                wrong, fix = "the folder holds a run already", f"Continue it with --resume. {fix}"
            elif begun(folder):
                same_recipe(loaded, folder, moves=True)
                if not finished_for_good(folder):
                    return True
                wrong = "this run has finished, and kept no checkpoint (save.keep_after: 0)"
    if wrong:
        raise RecipeError(wrong, where=str(folder), fix=fix)
    return False


def _require_own(folder: Path, fix: str) -> None:
    """Raises RecipeError for a link, or a folder in the place of a file, that a run would write."""
    if link := next((name for name in WRITTEN if (folder / name).is_symlink()), None):
        wrong = "this is a link; a run writes, and deletes, in its own folder only"
        fix = f"Move what it points to here, or link the whole folder. {fix}"
        raise RecipeError(wrong, where=str(folder / link), fix=fix)
    if odd := next((name for name in _FILES if (folder / name).is_dir()), None):
        wrong = "this is a folder, and a run writes a file of that name"
        raise RecipeError(wrong, where=str(folder / odd), fix=f"Move it away. {fix}")


def _require_writable(folder: Path, fix: str) -> None:
    """Raises RecipeError for the first file or folder of a run in which a run may not write: it
    would notice at the end of all training.
    """
    held = [folder, *(path for name in WRITTEN if (path := folder / name).exists())]
    for path in held:
        if not os.access(path, os.W_OK | (os.X_OK if path.is_dir() else os.R_OK)):
            wrong = "a run writes here, and you may not"
            raise RecipeError(wrong, where=str(path), fix=f"Change that (chmod, mount). {fix}")


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
    name = Path(os.path.realpath(folder)).name or "runs/mine"
    return f"Another folder: --output {folder.parent / name}-2"


_LOOPS = ("train", "recover")
HOW = {f"{loop}.{key}" for loop in _LOOPS for key in ("recompute", "compile")} | {"save.background"}
HOW |= {"distributed.replicas", "distributed.accumulate"}
"""Keys that may change between start and ``--resume``: they do not change the result."""
BEFORE = {"distributed.gather": "fp32"}
"""Key -> the value of what versions without it did, where that is not null."""
MOVED = {"prune.reduce.members": "prune.reduce.members.name"}
"""Key in resolved recipes of older versions -> the same key now."""


def begun(folder: Path) -> bool:
    """Whether the folder holds a checkpoint or a model, which a new run would overwrite."""
    return any((folder / "checkpoints").glob("step-*")) or (folder / "config.json").exists()


def finished_for_good(folder: Path) -> bool:
    """Whether the run succeeded and no checkpoint is left that it could be resumed from."""
    end = read_tail(folder / "metrics.jsonl").end
    held = any((folder / "checkpoints").glob("step-*"))
    return end is not None and end.status == "success" and not held


_PLACES = re.compile(
    r"model\.(folder|gguf|tokenizer)|plugins\.\d+"
    r"|data\.domains\..+\.(jsonl|txt|parquet|validation)\.\d+"
)
"""Keys of files and folders whose content a resumed run compares by its hash."""


def same_recipe(loaded: LoadedRecipe, folder: Path, *, moves: bool = False) -> None:
    """Raises RecipeError with the first value in which a recipe differs from that of the run in
    ``folder``. Keys that do not change the result may differ and, if the run compares what is there
    (``moves``), the folders of files of the same names.
    """
    now = _values(recipes.plain(loaded.recipe))
    for stored in stored_values(folder):
        require_equal(stored, now, folder, moves=moves)


def moved(loaded: LoadedRecipe, folder: Path) -> bool:
    """Whether the recipe of the run in ``folder`` names files in other places than a recipe."""
    now = _values(recipes.plain(loaded.recipe))
    stored = (pair for old in stored_values(folder) for pair in old.items())
    return any(now.get(key, was) != was and _moved(key, was, now[key]) for key, was in stored)


def _moved(key: str, was: str, now: str) -> bool:
    """Whether a value is the same file's or folder's name in another place."""
    was, now = (text[1:-1] if text[:1] in "'\"" else text for text in (was, now))
    both = was.startswith("/") and now.startswith("/")
    return both and bool(_PLACES.fullmatch(key)) and Path(was).name == Path(now).name


def require_equal(
    old: Mapping[str, str], new: Mapping[str, str], folder: Path, *, moves: bool = False
) -> None:
    """Raises RecipeError with the first key whose values differ. A key that the version which began
    the run did not have is null there, or as ``BEFORE`` says. ``moves``: see ``same_recipe``.
    """
    for key in [*old, *new]:
        was, now = old.get(key, BEFORE.get(key, "null")), new.get(key, "null")
        if was != now and not (moves and _moved(key, was, now)):
            fix = "Change it back to continue, or start afresh with --output."
            if was.startswith("/") and now.startswith("/"):  # of a project that was moved
                fix = f"To continue, let the run find it where it was (ln -s {now} {was}), with "
                fix += f"{folder / RESOLVED} as the recipe; or start afresh with --output."
            raise RecipeError(
                f"the recipe changed since this run began: {key} was {old.get(key, 'absent')}, is "
                f"{new.get(key, 'absent')}",
                where=str(folder),
                fix=fix,
            )


def stored_values(folder: Path) -> list[dict[str, str]]:
    """Reads the recipe of a run, from YAML and, unless an older version began the run, from JSON:
    dotted key -> value, without the keys in which two processes of one run may differ (trackers,
    and how layers are computed). Raises RecipeError where it cannot be read.
    """
    exact = folder / VALUES
    try:
        found = [_values(recipes.read(folder / RESOLVED))]
    except (RecipeError, UnicodeDecodeError) as error:
        raise RecipeError(
            "this is not the recipe that a run wrote",
            where=str(folder / RESOLVED),
            fix="Put the file back, or start afresh with --output.",
        ) from error
    try:
        if exact.is_file():
            found.append(_values(json.loads(exact.read_text(encoding="utf-8"))))
    except (OSError, ValueError, RecursionError) as error:
        fix = f"Remove it: {RESOLVED} beside it says the same."
        raise RecipeError("not the values of a recipe", where=str(exact), fix=fix) from error
    return found


def _values(tree: Any) -> dict[str, str]:
    return {
        MOVED.get(key, key): value
        for key, value in recipes.values(tree).items()
        if key.partition(".")[0] != "track" and key not in HOW
    }
