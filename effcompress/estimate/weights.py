"""Holds the names, shapes and types of stored weights against what the configuration says."""

import re
from collections.abc import Iterator

from effcompress.errors import SourceError
from effcompress.model.classes import ignores_stored
from effcompress.model.lineage import is_pruned
from effcompress.model.source import config_of, label_of, outer_of, stored_tensors
from effcompress.network.axis_map import resolve_model
from effcompress.recipe import LoadedRecipe
from effcompress.types import Config, Shapes

_LAYER = re.compile(r"\.\d+\.")
_FIX = "config.json and the weights must belong together: take both from the same model."
_STRIP = (
    "store them without it: save_file({k.removeprefix('%s'): v for k, v in load_file(f).items()}, "
    "f, {'format': 'pt'})"
)


def require_fitting(loaded: LoadedRecipe) -> None:
    """Raises SourceError where loading would fail, or whole numbers would be taken for weights, as
    far as headers of the files tell. Names that a class converts when it loads are not judged, nor
    those of undeclared architectures and of text models inside others.
    """
    spec = loaded.recipe.model
    config, stored = config_of(spec), stored_tensors(spec)
    if config is None or not stored or is_pruned(config) or outer_of(spec) is not None:
        return
    axes = resolve_model(config).axes
    if axes.family.traced:
        return
    where = loaded.where(f"model.{'folder' if spec.folder else 'hub'}")
    if prefix := _prefix(axes.shapes, {*stored}):
        what = f"the name of every weight begins with '{prefix}', which no class expects"
        raise SourceError(what, where=f"{where}: {label_of(spec)}", fix=_STRIP % prefix)
    found = [*_misfits(config, axes.shapes, stored)]
    if found:
        more = f"; and {len(found) - 1} more" if len(found) > 1 else ""
        what = f"weights and architecture do not fit: {found[0]}{more}"
        raise SourceError(what, where=f"{where}: {label_of(spec)}", fix=_FIX)


def _prefix(shapes: Shapes, stored: set[str]) -> str:
    first = next(iter(shapes))
    prefixes = {name.removesuffix(first) for name in stored if name.endswith(first)}
    return next((p for p in prefixes if p and all(p + name in stored for name in shapes)), "")


def _misfits(
    config: Config, shapes: Shapes, stored: dict[str, tuple[str, tuple[int, ...]]]
) -> Iterator[str]:
    forms = {_LAYER.sub(".N.", name) for name in stored}
    known = {_LAYER.sub(".N.", name) for name in shapes}
    plain = stored.keys() <= shapes.keys()  # nothing is there that a class could convert
    for name, shape in shapes.items():
        if name not in stored:
            if plain or _LAYER.sub(".N.", name) in forms:
                yield f"{name} is missing"
            continue
        kind, there = stored[name]
        if there != tuple(shape):
            yield f"{name} is stored as {_sizes(there)}, and config.json makes it {_sizes(shape)}"
        elif not config.get("quantization_config") and not kind.startswith(("F", "BF")):
            yield f"{name} is stored as {kind}, the code of a quantised weight"
    if ignores_stored(str(config["model_type"])):
        return
    for name in stored:
        if name not in shapes and _LAYER.search(name) and _LAYER.sub(".N.", name) in known:
            yield f"{name} is stored, and config.json has no place for it"


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
