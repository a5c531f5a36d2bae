"""Parses YAML text into a ``Document``. The only module that reads or writes YAML.

The values are those of ``yaml.safe_load`` with four differences:
``3e-4`` is a number (YAML 1.1 wants ``3.0e-4``), ``2024-01-31`` stays text, and so do ``2:4`` and
``1:30.5`` (YAML 1.1 reads 124: two hours and four minutes in minutes). ``012`` and ``0o12``, which
YAML 1.1 and 1.2 read as different numbers, are refused.

Files are bounded before they are read, and values (aliases and merges written out) while they are.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from effcompress.errors import RecipeError, did_you_mean, short
from effcompress.recipe.source_map import Document, Key, Mark, beside, dotted

BYTES, VALUES, LEVELS, DIGITS = 2**20, 10_000, 64, 40
"""The largest recipe file; the most values in it, the deepest nesting and the longest number."""

_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
_OCTAL = "octal"
_WHOLE = re.compile(r"[-+]?(?:0b_*[01][01_]*|0x_*[0-9a-fA-F][0-9a-fA-F_]*|0|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"
    r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_LEADING_ZERO = re.compile(r"[-+]?0o?[0-7_]+$")
_INTS, _FLOATS = _TAG + "int", _TAG + "float"
_NO_TAG, _MERGES = "Write it without a tag ('!...').", "E.g. `<<: *anchor`."

_WORDS = (
    ("'\\t'", "a tab begins a word or indents this line", "Use spaces: YAML takes no tabs here."),
    ("special characters", "a character that no text holds", "Save the recipe as plain UTF-8."),
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
    """Reads values, and notes in ``lines`` the mark of every key."""

    def __init__(self, text: str, file: Path | None, given: str) -> None:
        super().__init__(text)
        self.file, self.given = file, given
        self.level = self.count = 0
        self.lines: dict[Key, Mark] = {(): Mark(file, 1, given)}

    def at_line(self, node: yaml.Node) -> Mark:
        return Mark(self.file, node.start_mark.line + 1, self.given)

    def named(self, at: Key) -> str:
        """The key of a value, for error messages: behind that of ``--set``."""
        given = self.given.partition("=")[0].strip()
        return dotted((given, *at)) if given else dotted(at)

    def written(self, node: yaml.Node) -> str | None:
        return node.value if isinstance(node, yaml.ScalarNode) else None

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Composes a node of the text; what is too deep or too many is refused before it is."""
        self.level += 1
        event: Any = self.peek_event()
        self._bounded(Mark(self.file, event.start_mark.line + 1, self.given))
        node = super().compose_node(parent, index)
        self.level -= 1
        return node

    def _bounded(self, mark: Mark) -> None:
        self.count += 1
        if self.level > LEVELS:
            what = f"values are nested more than {LEVELS} levels deep"
            raise RecipeError(what, where=mark.where, fix="Nest less: no key of a recipe needs it.")
        if self.count > VALUES:
            what = f"more than {VALUES:,} values, with aliases and merges written out"
            raise RecipeError(what, where=mark.where, fix="Name each value once, without aliases.")

    def read(self, node: yaml.Node, at: Key, above: tuple[yaml.Node, ...] = ()) -> Any:
        """The value of a node. ``above``: the nodes that it lies in."""
        if node in above:
            said = f"{self.named(at)} contains itself"
            raise self._error(node, said, "Write the values out, without this alias.")
        above = (*above, node)
        self.level = len(above)
        self._bounded(self.at_line(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, at)
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            raise self._error(node, f"{self.named(at)} has the type {node.tag}", _NO_TAG)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, at, above)
        for i, item in enumerate(node.value):
            self.lines[(*at, i)] = replace(self.at_line(item), written=self.written(item))
        return [self.read(item, (*at, i), above) for i, item in enumerate(node.value)]

    def _scalar(self, node: yaml.ScalarNode, at: Key) -> Any:
        """A plain value. Raises RecipeError: a tag that the text does not fit, a number that is too
        long or that YAML versions read differently, text that no file or process takes.
        """
        text, name = node.value, self.named(at)
        fits = self.resolve(yaml.ScalarNode, text, (True, False))
        if node.tag == _OCTAL:
            sign, base = text[: text[0] in "+-"], 8 if "o" in text else 10
            digits = text.replace("_", "").lstrip("+-0o")
            what = f"{name} is {short(text)}, which YAML versions read as different numbers"
            meant = f"{sign}{int(digits or '0', base)}" if len(digits) < DIGITS else "a number"
            raise self._error(node, what, f"Write {meant}, or put it in quotes if it is text.")
        if node.tag not in (fits, _TAG + "str") and (node.tag, fits) != (_FLOATS, _INTS):
            kinds = f"{name} has the type {short(node.tag)}, but is {short(text)}"
            raise self._error(node, kinds, _NO_TAG)
        if node.tag in (_INTS, _FLOATS) and len(text) > DIGITS:
            raise self._error(node, f"{name} is the number {short(text)}", "Write fewer digits.")
        if node.tag == _TAG + "str" and ("\0" in text or (not text.isascii() and _lone(text))):
            what = f"{name} holds a character that no file name and no text may hold: {short(text)}"
            raise self._error(node, what, "Take out NUL and halves of surrogate pairs.")
        return self.construct_object(node, deep=True)

    def _error(self, node: yaml.Node, what: str, fix: str | None) -> RecipeError:
        return RecipeError(what, where=self.at_line(node).where, fix=fix)

    def _mapping(
        self, node: yaml.MappingNode, at: Key, above: tuple[yaml.Node, ...]
    ) -> dict[str, Any]:
        result: dict[str, Any] = {}
        own: dict[str, Mark] = {}
        # `<<` first: keys of the mapping itself override merged ones.
        for name, value in sorted(node.value, key=lambda pair: pair[0].tag != _MERGE):
            if name.tag == _MERGE:
                many = isinstance(value, yaml.SequenceNode)
                for part in reversed(value.value if many else [value]):
                    result.update(self._merged(part, at, above))
                continue
            key, mark = self._name(name, at), self.at_line(name)
            mark = replace(mark, written=self.written(value))
            if key in own:
                what = f"{self.named((*at, key))} is written twice"
                fix = f"Keep this one or the one on line {own[key].line}."
                raise RecipeError(what, where=mark.where, fix=fix)
            own[key] = self.lines[(*at, key)] = mark
            result[key] = self.read(value, (*at, key), above)
        return result

    def _merged(self, node: yaml.Node, at: Key, above: tuple[yaml.Node, ...]) -> dict[str, Any]:
        values = self.read(node, at, above)
        if isinstance(values, dict):
            return values
        raise self._error(node, f"'<<' takes a mapping, this is {kind(values)}", _MERGES)

    def _name(self, node: yaml.Node, at: Key) -> str:
        has, written = "not text", "..."
        if isinstance(node, yaml.ScalarNode):
            written = short(node.value)
            key = None if node.tag == _OCTAL else self._scalar(node, at)
            if isinstance(key, str):
                return key
            has = has if node.tag == _OCTAL else kind(key)
        what = f"a key of {self.named(at)} is {has}"
        raise self._error(node, what, f"Keys are text; write it in quotes: '{written}':")


def _lone(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


class _Dumper(yaml.SafeDumper): ...


# Only reading changes numbers: written values keep their quotes, for other YAML 1.1 readers.
_READ = ("timestamp", "value", "int", "float")
for _class, _dropped in ((_Loader, _READ), (_Dumper, ("timestamp",))):
    _class.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0].removeprefix(_TAG) not in _dropped]
        for first, pairs in _class.yaml_implicit_resolvers.items()
    }
    _class.add_implicit_resolver(_FLOATS, _FLOAT, list("-+0123456789."))
    _class.add_implicit_resolver(_OCTAL, _LEADING_ZERO, list("-+0"))
_Loader.add_implicit_resolver(_INTS, _WHOLE, list("-+0123456789"))


def read_file(path: Path) -> tuple[str, Document]:
    """Returns the text of a recipe file and its document, a mapping.

    Raises RecipeError with ``file:line`` for a missing or unreadable file, text that is not UTF-8,
    invalid YAML, a duplicate key, an empty file, and for a document that is not a mapping.
    """
    text = _text(path)
    document = parse(text, path)
    if document.values is None:
        fix = "A recipe has `model:`, `data:` and `prune:`, `sparsify:` or `train:`."
        raise RecipeError("the file is empty", where=f"{path}:1", fix=fix)
    if not isinstance(document.values, dict):
        what = f"a recipe is a mapping of keys, this is {kind(document.values)}"
        raise RecipeError(what, where=f"{path}:1", fix="Begin with `model:`, not with a value.")
    return text, document


def parse(text: str, file: Path | None, given: str = "") -> Document:
    """Parses ``text`` with the mark of every key; ``given`` instead of a file for ``--set``."""
    try:
        loader = _Loader(text, file, given)
        node = loader.get_single_node()
        if node is None:
            return Document(None, loader.lines)
        loader.lines[()] = replace(loader.lines[()], written=loader.written(node))
        return Document(loader.read(node, ()), loader.lines)
    except RecipeError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        what, line, fix = _in_words(error, text)
        mark = Mark(file, line + 1, given)
        raise RecipeError(f"not YAML: {what}", where=mark.where, fix=fix) from error


def scalar(value: Any) -> str:
    """Writes one value as one line of YAML that ``parse`` reads back as the same value."""
    style = '"' if isinstance(value, str) and not (value.isprintable() and value.strip()) else None
    text = yaml.dump(
        value, Dumper=_Dumper, default_style=style, width=2**31, allow_unicode=True
    ).removesuffix("...\n")
    return text.strip()


def block(values: Mapping[str, Any]) -> str:
    """Writes values as YAML in blocks, in their order."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


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
    return f"the text '{short(value)}'" if isinstance(value, str) else f"the number {value}"


def _in_words(error: Exception, text: str) -> tuple[str, int, str | None]:
    """What is wrong, on which line (from 0 on), and what to do."""
    if not isinstance(error, yaml.MarkedYAMLError):
        problem = str(getattr(error, "reason", error)).splitlines()[0]
        line = text.count("\n", 0, getattr(error, "position", 0))
        known = ((words, line, fix) for sign, words, fix in _WORDS if sign in problem)
        return next(known, (problem, line, None))
    problem = error.problem or error.context or "not YAML"
    mark = error.problem_mark or error.context_mark
    line = mark.line if mark else 0
    for sign, words, fix in _WORDS:
        if sign in f"{error.context} {problem}":
            return words, line, fix
    return problem, line, "Check indentation, quotes and brackets on this line and the one above."


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(BYTES + 1)
    except FileNotFoundError as error:
        near = [name for name in beside(path) if name.endswith((".yaml", ".yml"))]
        fix = did_you_mean(path.name, near) if near else f"No recipe lies in '{path.parent}'."
        raise RecipeError("no such recipe file", where=str(path), fix=fix) from error
    except IsADirectoryError as error:
        fix = "Name a .yaml file in it."
        raise RecipeError("a folder, not a recipe", where=str(path), fix=fix) from error
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise RecipeError(f"cannot be read: {said}", where=str(path)) from error
    if len(raw) > BYTES:
        what = f"the file is larger than {BYTES // 1024} KiB: no recipe"
        raise RecipeError(what, where=str(path), fix="Name a recipe file (.yaml).")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what, fix = "the file is not UTF-8 text", "Save it as UTF-8."
        raise RecipeError(what, where=f"{path}:{line}", fix=fix) from error
