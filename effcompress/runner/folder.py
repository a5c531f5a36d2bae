"""The output folder of a run: begun once, continued by ``--resume``, never silently overwritten."""

from __future__ import annotations

from pathlib import Path

from effcompress import recipe as recipes
from effcompress.errors import RecipeError
from effcompress.recipe import LoadedRecipe

RESOLVED = "recipe.resolved.yaml"
MARKS = ("metrics.jsonl", "config.json", "checkpoints")
"""What shows that a run has begun here."""


def output_folder(loaded: LoadedRecipe, output: Path | None) -> Path:
    """``--output``, or ``runs/<name>`` below the current folder (names cannot leave it)."""
    return output if output is not None else Path("runs") / loaded.recipe.name


def open_folder(loaded: LoadedRecipe, folder: Path, resume: bool) -> None:
    """Make the folder, or check that it is this recipe's run.

    Raises RecipeError: something is there and ``--resume`` was not given, or the run there was made
    from a recipe that says something else.
    """
    begun = [mark for mark in MARKS if (folder / mark).exists()]
    if begun and not resume:
        raise RecipeError(
            "the folder holds a run already",
            where=str(folder),
            fix=f"Continue it with --resume, or choose another: --output {folder}-2",
        )
    resolved = recipes.resolved(loaded)
    stored = folder / RESOLVED
    if resume and stored.exists():
        _same_recipe(stored.read_text(encoding="utf-8"), resolved, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(loaded.source, encoding="utf-8")
    stored.write_text(resolved, encoding="utf-8")


def _same_recipe(before: str, now: str, folder: Path) -> None:
    old, new = _values(before), _values(now)
    for key in [*old, *new]:
        if old.get(key) != new.get(key):
            raise RecipeError(
                f"the recipe changed since this run began: {key} was {old.get(key, 'absent')}, is "
                f"{new.get(key, 'absent')}",
                where=str(folder),
                fix="Change it back to continue, or start afresh with --output.",
            )


def _values(resolved: str) -> dict[str, str]:
    """Dotted key -> value as written, without the comments that tell origins."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    items: dict[str, int] = {}
    for line in resolved.splitlines():
        text = line.partition("  # ")[0].rstrip()
        body = text.lstrip(" ")
        if not body or body.startswith("#"):
            continue
        indent = len(text) - len(body)
        while path and path[-1][0] >= indent:
            path.pop()
        parent = ".".join(name for _, name in path)
        if body.startswith("- "):
            number = items.get(f"{parent}@{indent}", 0)
            items[f"{parent}@{indent}"] = number + 1
            path.append((indent, str(number)))
            body, indent = body[2:], indent + 2
        key, _, value = body.partition(":")
        path.append((indent, key))
        if value.strip():
            found[".".join(name for _, name in path)] = value.strip()
    return found
