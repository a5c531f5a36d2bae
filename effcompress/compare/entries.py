"""Resolves the targets of a comparison into jobs (a recipe with one seed) and existing runs.

Everything is checked before anything runs; nothing here imports torch.
"""

import glob
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from effcompress import recipe as recipes
from effcompress.errors import RecipeError, SourceError
from effcompress.recipe import LoadedRecipe
from effcompress.record.status import AT, run_of_size
from effcompress.runner.folder import RESOLVED, begun, same_recipe, stored_values
from effcompress.runner.preflight import preflight

RUNS, LOGS = "runs", "logs"
"""Folders of a comparison: runs, and the output that they printed."""
OWN = ("seed", "name")
"""Keys in which the runs of one method may differ."""


@dataclass(frozen=True)
class Job:
    """One recipe with one seed, to be run into ``folder``; ``log`` receives its output."""

    label: str
    seed: int
    loaded: LoadedRecipe
    overrides: tuple[str, ...]
    folder: Path
    log: Path


@dataclass(frozen=True)
class Entry:
    """A method: the jobs of a recipe, or folders of existing runs."""

    label: str
    jobs: tuple[Job, ...] = ()
    folders: tuple[Path, ...] = ()


def enter(
    targets: Sequence[Path], seeds: Sequence[int], overrides: Sequence[str], *, offline: bool
) -> list[Entry]:
    """Resolves recipes (files) and runs (folders) into entries, whose jobs have no folders yet. The
    folder ``at`` of a run stands for the models of all sizes in it, a pattern for the recipes and
    runs that it matches.

    Raises RecipeError or SourceError for the first recipe that cannot run, for a folder that holds
    no run, for a pattern that matches none, and for a target that is named twice.
    """
    targets = [one for target in targets for one in _meant(target)]
    counted = Counter(target.resolve() for target in targets)
    if twice := [target for target in targets if counted[target.resolve()] > 1]:
        fix = "Name every recipe and every run once."
        raise RecipeError("named twice", where=str(twice[0]), fix=fix)
    labels = _labels(targets)
    found: list[Entry] = []
    for target, label in zip(targets, labels, strict=True):
        if target.is_dir():
            if not _holds_run(target):
                raise SourceError(
                    "this folder holds no run: metrics.jsonl is missing",
                    where=str(target),
                    fix="Name the folder of a run, e.g. runs/quickstart, or a recipe.",
                )
            found.append(Entry(label, folders=(target,)))
            continue
        loaded = recipes.load(target, overrides)
        own = tuple(seeds) or (loaded.recipe.seed,)
        jobs = [_with_seed(loaded, seed, label, tuple(overrides)) for seed in own]
        found.append(Entry(label, tuple(jobs)))
    for entry in found:  # after all recipes were read, because this takes longer
        if entry.jobs:
            preflight(entry.jobs[0].loaded, offline=offline)
    return _together(found)


def _meant(target: Path) -> Iterator[Path]:
    """Yields what a target stands for; most for themselves. A shell replaces a pattern before it
    gets here, but not in quotes, nor on every system.
    """
    sizes = target.is_dir() and run_of_size(target / "any") is not None
    if not sizes and (target.exists() or not glob.has_magic(str(target))):
        yield target
        return
    found = glob.glob(str(target / "*" if sizes else target))  # noqa: PTH207  any root
    runs = [path for path in sorted(map(Path, found)) if path.is_file() or _holds_run(path)]
    if not runs:
        raise SourceError(
            f"no run{'' if sizes else ' and no recipe'} is here",
            where=str(target),
            fix=f"Name the folder of a run, or of a size that it has left: runs/mine/{AT}/1.1B.",
        )
    yield from runs


def _holds_run(folder: Path) -> bool:
    return (folder / "metrics.jsonl").is_file()


def place(entries: Sequence[Entry], output: Path) -> list[Entry]:
    """Gives jobs folders below ``output``. Raises RecipeError if it holds something else."""
    if output.exists() and not output.is_dir():
        raise RecipeError("this is a file, not a folder", where=str(output), fix="Name a folder.")
    ours = (output / RUNS).is_dir() or (output / "comparison.json").is_file()
    if output.is_dir() and any(output.iterdir()) and not ours:
        raise RecipeError(
            "the folder is not empty, and what is in it is no comparison",
            where=str(output),
            fix="Name another folder with --output.",
        )
    placed = [replace(e, jobs=tuple(_placed(job, output) for job in e.jobs)) for e in entries]
    for job in (job for entry in placed for job in entry.jobs):
        require_same(job)
    return placed


def require_same(job: Job) -> None:
    """Raises RecipeError if the run in the job's folder has a recipe with other values."""
    if (job.folder / RESOLVED).is_file() and begun(job.folder):
        same_recipe(job.loaded, job.folder)


def name_of(entries: Sequence[Entry]) -> str:
    """Names a comparison: ``taylor-vs-random``, ``taylor-vs-8-more``."""
    labels = [re.sub(r"[^A-Za-z0-9._-]+", "-", entry.label) for entry in entries]
    if len(labels) > 3:
        labels = [labels[0], f"{len(labels) - 1}-more"]
    return "-vs-".join(labels)


def _labels(targets: Sequence[Path]) -> list[str]:
    """Returns the names of files and folders, with the parent folder's where two are equal."""
    paths = [target.resolve() for target in targets]
    runs = {path: run for path in paths if (run := run_of_size(path)) is not None}
    labels = [path.name if path.is_dir() else path.stem for path in paths]
    # A size is called by its run, too: sizes of several runs have equal names.
    labels = [
        f"{runs[path].name}-{label}" if path in runs else label
        for path, label in zip(paths, labels, strict=True)
    ]
    counted = Counter(labels)
    longer = [
        f"{path.parent.name}-{label}" if counted[label] > 1 else label
        for path, label in zip(paths, labels, strict=True)
    ]
    for label, number in Counter(longer).items():
        if number > 1:
            raise RecipeError(
                f"{number} of these would be called '{label}'", fix="Rename one of the files."
            )
    return longer


def _with_seed(loaded: LoadedRecipe, seed: int, label: str, overrides: tuple[str, ...]) -> Job:
    if seed != loaded.recipe.seed:
        overrides = (*overrides, f"seed={seed}")
        loaded = replace(
            loaded,
            recipe=replace(loaded.recipe, seed=seed),
            origins={**loaded.origins, "seed": "--set"},
        )
    return Job(label, seed, loaded, overrides, Path(), Path())


def _placed(job: Job, output: Path) -> Job:
    name = f"{job.label}_{job.seed}"
    return replace(job, folder=output / RUNS / name, log=output / LOGS / f"{name}.log")


def _together(entries: Sequence[Entry]) -> list[Entry]:
    """Merges runs of one recipe with different seeds into one entry, named like the first."""
    merged: dict[str, Entry] = {}
    for entry in entries:
        key = _recipe_of(entry.folders[0]) if entry.folders else None
        key = f"run {key}" if key else f"entry {entry.label}"
        first = merged.get(key, Entry(entry.label))
        jobs, folders = (*first.jobs, *entry.jobs), (*first.folders, *entry.folders)
        merged[key] = replace(first, jobs=jobs, folders=folders)
    return [*merged.values()]


def _recipe_of(folder: Path) -> str | None:
    """Returns a key of a run's recipe without its seed and name; None for a run without recipe."""
    if not (folder / RESOLVED).is_file():
        return None
    said = stored_values(folder)[-1]
    return repr(sorted((key, value) for key, value in said.items() if key not in OWN))
