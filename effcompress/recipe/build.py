"""Converts validated YAML values into the frozen ``Recipe``, with the origin of every value."""

import dataclasses
import glob
import math
import os
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from effcompress.errors import RecipeError, did_you_mean
from effcompress.recipe.json_schema import hints, is_mapping, is_sequence, unwrap
from effcompress.recipe.quantities import QUANTITIES
from effcompress.recipe.source_map import Document, Key, beside, dotted, there
from effcompress.registry import Bound, Knob, Registry
from effcompress.spec import Recipe


class Builder:
    """Converts values to the annotated types and records in ``origins`` where each came from."""

    def __init__(self, document: Document, registry: Registry) -> None:
        self.document, self.registry = document, registry
        self.origins: dict[str, str] = {}

    def recipe(self) -> Recipe:
        """Builds the whole recipe. Raises RecipeError for what a schema cannot express: missing
        files, counts that are not whole (``1.2345k``), numbers that are not finite.
        """
        return self._dataclass(Recipe, self.document.values, ())

    def value(self, annotation: Any, value: Any, key: Key, metadata: Mapping[str, Any]) -> Any:
        inner, tag, _ = unwrap(annotation)
        if inner is Bound and value is not None:
            return self._bound(value, key, metadata["plugin"])
        if dataclasses.is_dataclass(inner) and isinstance(inner, type) and value is not None:
            return self._dataclass(inner, value, key)
        if is_sequence(inner) and value is not None:
            return self._sequence(inner, value, key, metadata)
        if is_mapping(inner) and value is not None:
            item = typing.get_args(inner)[1]
            return {k: self.value(item, v, (*key, k), {}) for k, v in value.items()}
        if inner is Any or isinstance(value, dict):
            return self._anything(value, key)
        self._note(key)
        return None if value is None else self._scalar(inner, tag, value, key, metadata)

    def _dataclass(self, cls: type, given: Mapping[str, Any] | str, key: Key) -> Any:
        fields = dataclasses.fields(cls)
        given = {"name": given} if isinstance(given, str) else given  # a plugin, without its knobs
        return cls(**{f.name: self._field(given, f, hints(cls)[f.name], key) for f in fields})

    def _bound(self, value: Any, key: Key, kind: str) -> Bound:
        given = {"name": value} if isinstance(value, str) else value
        plugin = self.registry.get(kind, given["name"])
        self._note((*key, "name"), written_at=key)
        declared = plugin.knobs.values()
        knobs = {k.name: self._field(given, k, k.annotation, key) for k in declared}
        return Bound(plugin.knowing(knobs), knobs)

    def _field(
        self, given: Mapping[str, Any], field: dataclasses.Field[Any] | Knob, as_: Any, key: Key
    ) -> Any:
        """The value given for a key of a section or a knob, else its default."""
        at, default = (*key, field.name), field.default
        metadata = field.metadata if isinstance(field, dataclasses.Field) else {}
        if "beside" in metadata:
            return self._bound(given, key, metadata["plugin"])
        if field.name in given:
            return self.value(as_, given[field.name], at, metadata)
        if dataclasses.is_dataclass(default):
            # Built from {} rather than taken as it is, so that each value gets an origin.
            return self._dataclass(type(default), {}, at)
        self._default(default, at)
        return default

    def _sequence(
        self, inner: Any, value: Any, key: Key, metadata: Mapping[str, Any]
    ) -> tuple[Any, ...] | list[Any]:
        item = typing.get_args(inner)[0]
        listed = value if isinstance(value, list) else [value]
        if not listed:
            self._note(key)
        if unwrap(item)[1] == "path":
            return tuple(self._paths(listed, key))
        built = [self.value(item, v, (*key, i), metadata) for i, v in enumerate(listed)]
        return built if typing.get_origin(inner) is list else tuple(built)

    def _anything(self, value: Any, key: Key) -> Any:
        if isinstance(value, dict) and value:
            return {k: self._anything(v, (*key, k)) for k, v in value.items()}
        if isinstance(value, list) and value:
            return [self._anything(v, (*key, i)) for i, v in enumerate(value)]
        self._note(key)
        return value

    def _scalar(
        self, inner: Any, tag: str, value: Any, key: Key, metadata: Mapping[str, Any]
    ) -> Any:
        if tag == "path":
            return self._path(value, key, folder="folder" in metadata)
        if metadata.get("near_recipe"):
            near = self._absolute(value, key)
            return str(near) if there(near, folder=True) else value
        try:
            value = QUANTITIES[tag].read(value) if tag in QUANTITIES else value
        except ValueError as error:
            raise self._error(key, f"{dotted(key)}: {error}") from error
        if isinstance(value, str):
            return value
        if inner is float and not math.isfinite(value):
            raise self._error(key, f"{dotted(key)} is {value}, but must be a finite number")
        return inner(value) if inner in (int, float) else value

    def _paths(self, listed: list[str], key: Key) -> Iterator[Path]:
        """The files of a list; a pattern (``*``, ``?``, ``[``, ``**``) stands for those it matches,
        in the order of their names.
        """
        origins: list[Key] = []
        for index, written in enumerate(listed):
            at = (*key, index)
            path = self._absolute(written, at)
            if there(path, folder=False) or not glob.has_magic(written):
                found = [self._path(written, at, folder=False)]
            else:
                found = [Path(f) for f in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
                found = [file for file in found if file.is_file()]
            if not found:
                what = f"{dotted(at)}: no file matches '{written}'"
                raise self._error(at, what, f"No file is called '{path}'.")
            origins += [at] * len(found)
            yield from found
        for index, at in enumerate(origins):
            mark = self.document.mark(at)
            self.origins[dotted((*key, index))] = mark.origin

    def _path(self, written: str, key: Key, *, folder: bool) -> Path:
        path = self._absolute(written, key)
        if there(path, folder=folder):
            return path
        noun, mark = "folder" if folder else "file", self.document.mark(key)
        hint = did_you_mean(path.name, beside(path)).partition("Known:")[0].strip()
        looked = os.path.normpath(mark.folder / Path(written).parent)
        start = "current folder" if mark.file is None else "folder of the recipe file"
        what = f"{dotted(key)}: no {noun} '{written}' (looked in '{looked}')"
        if not folder and there(path, folder=True):
            hint = f"This is a folder; its files: '{Path(written) / '*'}'."
        elif "://" in written:
            hint = "This is an address: download it, and name the file."
        elif os.path.lexists(path):
            hint = f"It is there, but no {noun}: a device, a pipe, or a link that leads nowhere."
        raise self._error(key, what, hint or f"Relative paths start at the {start}.")

    def _absolute(self, written: str, key: Key) -> Path:
        mark = self.document.mark(key)
        try:
            path = Path(written).expanduser()
        except RuntimeError as error:  # `~name` where there is no user of that name
            raise self._error(key, f"{dotted(key)}: no home folder of '{written}'") from error
        return Path(os.path.abspath(mark.folder / path))  # noqa: PTH100

    def _error(self, key: Key, what: str, fix: str | None = None) -> RecipeError:
        return RecipeError(what, where=self.document.mark(key).where, fix=fix)

    def _note(self, key: Key, written_at: Key | None = None) -> None:
        marks = self.document.marks
        mark = marks.get(key) or marks.get(written_at or key[:-1])
        self.origins[dotted(key)] = mark.origin if mark else "default"

    def _default(self, value: Any, key: Key) -> None:
        if isinstance(value, tuple | list) and value:
            for index in range(len(value)):
                self.origins[dotted((*key, index))] = "default"
        self.origins[dotted(key)] = "default"
