"""Holds the names, shapes and types of stored weights against what the configuration says."""

import re
from collections.abc import Iterator, Mapping

from effcompress.errors import SourceError
from effcompress.model.classes import ignores_stored, renames
from effcompress.model.lineage import is_pruned
from effcompress.model.multimodal import text_name
from effcompress.model.source import config_of, label_of, outer_of, stored_tensors
from effcompress.model.suitability import OTHER_HEADS, extract
from effcompress.network.axis_map import resolve_model
from effcompress.recipe import LoadedRecipe
from effcompress.types import Config, Shapes

_LAYER = re.compile(r"\.\d+\.")
Stored = Mapping[str, tuple[str, tuple[int, ...]]]
_FIX = "config.json and the weights must belong together: take both from the same model."
_STRIP = (
    "store them without it: save_file({k.removeprefix('%s'): v for k, v in load_file(f).items()}, "
    "f, {'format': 'pt'})"
)


def require_fitting(loaded: LoadedRecipe) -> None:
    """Raises SourceError where loading would fail, or whole numbers would be taken for weights, as
    far as headers of the files tell. Names that a class converts when it loads are not judged, nor
    those of undeclared architectures.
    """
    spec = loaded.recipe.model
    config, stored = config_of(spec), stored_tensors(spec)
    if config is None or not stored or is_pruned(config):
        return
    axes = resolve_model(config).axes
    if axes.family.traced:
        return
    where = f"{loaded.where('model.folder' if spec.folder else 'model.hub')}: {label_of(spec)}"
    if (outer := outer_of(spec)) is not None:
        stored = {own: how for name, how in stored.items() if (own := text_name(name))}
        parts = {name.split(".")[1] for name in stored if _LAYER.search(name)}
        kind = str(config["model_type"])
        if not any(part == "layers" or renames(kind, f"{part}.") for part in parts):
            what = f"'{outer}' stores the layers of its text model under names of its own"
            raise SourceError(what, where=where, fix=extract(outer))
    elif prefix := _prefix(axes.shapes, {*stored}):
        what = f"the name of every weight begins with '{prefix}', which no class expects"
        raise SourceError(what, where=where, fix=_STRIP % prefix)
    found = [*_misfits(config, axes.shapes, _with_base(axes.shapes, stored))]
    if found:
        more = f"; and {len(found) - 1} more" if len(found) > 1 else ""
        what = f"weights and architecture do not fit: {found[0]}{more}"
        raise SourceError(what, where=where, fix=_FIX)


def _prefix(shapes: Shapes, stored: set[str]) -> str:
    first = next(iter(shapes))
    prefixes = {name.removesuffix(first) for name in stored if name.endswith(first)}
    return next((p for p in prefixes if p and all(p + name in stored for name in shapes)), "")


def _with_base(shapes: Shapes, stored: Stored) -> Stored:
    """``stored`` with the names of the class with a head, where one without a head wrote it."""
    base = f"{next(iter(shapes)).partition('.')[0]}."
    if any(name.startswith(base) for name in stored):
        return stored
    return {base + name if base + name in shapes else name: how for name, how in stored.items()}


def _misfits(config: Config, shapes: Shapes, stored: Stored) -> Iterator[str]:
    forms = {_LAYER.sub(".N.", name) for name in stored}
    known = {_LAYER.sub(".N.", name) for name in shapes}
    others = sorted(stored.keys() - shapes.keys())
    plain = all(name.startswith(OTHER_HEADS) for name in others)  # else a class could convert some
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
    for name in others:
        of_layer = _LAYER.search(name) and _LAYER.sub(".N.", name) in known
        if of_layer or (shapes.keys() <= stored.keys() and name.startswith(OTHER_HEADS)):
            yield f"{name} is stored, and config.json has no place for it"


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
