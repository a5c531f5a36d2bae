"""Parses YAML text into a ``Document``. The only module that reads or writes YAML.

The values are those of ``yaml.safe_load`` with three differences:
``3e-4`` is a number (YAML 1.1 wants ``3.0e-4``), ``2024-01-31`` stays text, and so does ``2:4``
(YAML 1.1 reads 124: two hours and four minutes in minutes).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from effcompress.errors import RecipeError, did_you_mean
from effcompress.recipe.source_map import Document, Key, Mark, dotted

_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
_WHOLE = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$")
_EXPONENT = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$")
_PLAIN = (str, int, float, bool, type(None))

_WORDS = (
    ("'\\t'", "a tab indents this line", "Indent with spaces: YAML takes no tabs."),
    (
        "mapping values are not allowed",
        "a ':' that YAML cannot place",
        "Check the indentation; put text that contains ': ' in quotes.",
    ),
    ("could not find expected ':'", "a key without ':'", "Write `key: value`."),
    ("single document", "a second document ('---') begins here", "Keep one recipe per file."),
    ("undefined alias", "an alias without its anchor", "Define it first: `&name value`."),
    (
        "found unexpected end of stream",
        "a quote or bracket is open at the end",
        "Close it: every ' \" [ { needs its partner.",
    ),
)


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    pass


# Only reading changes whole numbers: written values keep their quotes, for other YAML 1.1 readers.
for _class, _dropped in ((_Loader, ("timestamp", "int")), (_Dumper, ("timestamp",))):
    _class.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0].removeprefix(_TAG) not in _dropped]
        for first, pairs in _class.yaml_implicit_resolvers.items()
    }
    _class.add_implicit_resolver(_TAG + "float", _EXPONENT, list("-+0123456789"))
_Loader.add_implicit_resolver(_TAG + "int", _WHOLE, list("-+0123456789"))


def read_file(path: Path) -> tuple[str, Document]:
    """Returns the text of a recipe file and its document, a mapping.

    Raises RecipeError with ``file:line`` for a missing or unreadable file, text that is not UTF-8,
    invalid YAML, a duplicate key, an empty file, and for a document that is not a mapping.
    """
    text = _text(path)
    document = parse(text, path)
    if document.values is None:
        raise RecipeError(
            "the file is empty",
            where=f"{path}:1",
            fix="A recipe has `model:`, `data:` and `prune:`, `sparsify:` or `train:`.",
        )
    if not isinstance(document.values, dict):
        raise RecipeError(
            f"a recipe is a mapping of keys, this is {kind(document.values)}",
            where=f"{path}:1",
            fix="Begin with `model:`, not with a value.",
        )
    return text, document


def parse(text: str, file: Path | None, given: str = "") -> Document:
    """Parses ``text`` with the mark of every key; ``given`` instead of a file for ``--set``."""
    reader = _Reader(file, given)
    try:
        loader = _Loader(text)
        reader.loader = loader
        node = loader.get_single_node()
        values = None if node is None else reader.value(node, ())
    except yaml.MarkedYAMLError as error:
        raise _in_words(error, reader) from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        position = getattr(error, "position", 0)
        mark = reader.mark(text.count("\n", 0, position))
        problem = str(getattr(error, "reason", error)).splitlines()[0]
        raise RecipeError(f"not YAML: {problem}", where=mark.where) from error
    return Document(values, reader.marks)


def scalar(value: Any) -> str:
    """Writes one value as one line of YAML that ``parse`` reads back as the same value."""
    style = '"' if isinstance(value, str) and not (value.isprintable() and value.strip()) else None
    text = yaml.dump(
        value, Dumper=_Dumper, default_style=style, width=2**31, allow_unicode=True
    ).removesuffix("...\n")
    return text.strip()


def kind(value: Any) -> str:
    """Describes the type of a value for error messages."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"the text '{value}'" if isinstance(value, str) else f"the number {value}"


class _Reader:
    """Walks YAML nodes once, building values and marks."""

    def __init__(self, file: Path | None, given: str) -> None:
        self.file, self.given = file, given
        self.marks: dict[Key, Mark] = {(): self.mark(0)}
        self.loader: Any = None
        self._open: list[int] = []

    def mark(self, line: int) -> Mark:
        return Mark(self.file, line + 1, self.given)

    def value(self, node: yaml.Node, at: Key) -> Any:
        line = node.start_mark.line
        if id(node) in self._open:
            raise RecipeError(f"{dotted(at)} contains itself", where=self.mark(line).where)
        self._open.append(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, at)
            if isinstance(node, yaml.SequenceNode):
                return [self._item(item, (*at, i)) for i, item in enumerate(node.value)]
            result = self.loader.construct_object(node, deep=True)
        finally:
            self._open.pop()
        if not isinstance(result, _PLAIN):
            problem = f"{dotted(at)} has the type {node.tag}"
            raise RecipeError(problem, where=self.mark(line).where, fix="Write plain text.")
        return result

    def _item(self, node: yaml.Node, at: Key) -> Any:
        self.marks[at] = self.mark(node.start_mark.line)
        return self.value(node, at)

    def _mapping(self, node: yaml.MappingNode, at: Key) -> dict[str, Any]:
        result: dict[str, Any] = {}
        own: dict[str, int] = {}
        # `<<` first: keys of the mapping itself override merged ones.
        for name, value in sorted(node.value, key=lambda pair: pair[0].tag != _MERGE):
            if name.tag == _MERGE:
                many = isinstance(value, yaml.SequenceNode)
                for part in reversed(value.value if many else [value]):
                    result.update(self._merged(part, at))
                continue
            key, line = self._name(name, at), name.start_mark.line
            if key in own:
                raise RecipeError(
                    f"{dotted((*at, key))} is written twice",
                    where=self.mark(line).where,
                    fix=f"Keep this one or the one on line {own[key] + 1}.",
                )
            own[key] = line
            self.marks[(*at, key)] = self.mark(line)
            result[key] = self.value(value, (*at, key))
        return result

    def _merged(self, node: yaml.Node, at: Key) -> dict[str, Any]:
        values = self.value(node, at)
        if isinstance(values, dict):
            return values
        where = self.mark(node.start_mark.line).where
        problem = f"'<<' takes a mapping, this is {kind(values)}"
        raise RecipeError(problem, where=where, fix="E.g. `<<: *anchor`.")

    def _name(self, node: yaml.Node, at: Key) -> str:
        key = self.loader.construct_object(node, deep=True)
        if isinstance(key, str):
            return key
        written = node.value if isinstance(node, yaml.ScalarNode) else "..."
        raise RecipeError(
            f"a key of {dotted(at)} is {kind(key) if isinstance(key, _PLAIN) else 'not text'}",
            where=self.mark(node.start_mark.line).where,
            fix=f"Keys are text; write it in quotes: '{written}':",
        )


def _in_words(error: yaml.MarkedYAMLError, reader: _Reader) -> RecipeError:
    problem = error.problem or error.context or "not YAML"
    mark = error.problem_mark or error.context_mark
    where = reader.mark(mark.line if mark else 0).where
    for sign, words, fix in _WORDS:
        if sign in f"{error.context} {problem}":
            return RecipeError(f"not YAML: {words}", where=where, fix=fix)
    return RecipeError(
        f"not YAML: {problem}",
        where=where,
        fix="Check indentation, quotes and brackets on this line and the one above.",
    )


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        folder = path.parent
        files = [*folder.iterdir()] if folder.is_dir() else []
        near = [p.name for p in files if p.suffix in {".yaml", ".yml"}]
        fix = did_you_mean(path.name, near) if near else f"No recipe lies in '{folder}'."
        raise RecipeError("no such recipe file", where=str(path), fix=fix) from error
    except IsADirectoryError as error:
        fix = "Name a .yaml file in it."
        raise RecipeError("a folder, not a recipe", where=str(path), fix=fix) from error
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=str(path)) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            "the file is not UTF-8 text", where=f"{path}:{line}", fix="Save it as UTF-8."
        ) from error
