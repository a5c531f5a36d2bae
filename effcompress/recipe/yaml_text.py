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
_HALF = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")
"""Surrogates but for those by which Python names bytes of file names that are not UTF-8."""
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
    """Reads values, and notes in ``lines`` the mark of every key."""

    def __init__(self, text: str, file: Path | None, given: str) -> None:
        super().__init__(text)
        self.file, self.given = file, given
        self.lines: dict[Key, Mark] = {(): Mark(file, 1, given)}

    def at_line(self, node: yaml.Node) -> Mark:
        return Mark(self.file, node.start_mark.line + 1, self.given)

    def read(self, node: yaml.Node, at: Key, above: tuple[yaml.Node, ...] = ()) -> Any:
        """The value of a node. ``above``: the nodes that it lies in."""
        if node in above:
            raise RecipeError(f"{dotted(at)} contains itself", where=self.at_line(node).where)
        above = (*above, node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, at, above)
        if isinstance(node, yaml.SequenceNode):
            self.lines |= {(*at, i): self.at_line(item) for i, item in enumerate(node.value)}
            return [self.read(item, (*at, i), above) for i, item in enumerate(node.value)]
        result = self.construct_object(node, deep=True)
        if not isinstance(result, _PLAIN):
            what = f"{dotted(at)} has the type {node.tag}"
            raise RecipeError(what, where=self.at_line(node).where, fix="Write plain text.")
        return self._whole(result, node) if isinstance(result, str) else result

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
            if key in own:
                what = f"{dotted((*at, key))} is written twice"
                fix = f"Keep this one or the one on line {own[key].line}."
                raise RecipeError(what, where=mark.where, fix=fix)
            own[key] = self.lines[(*at, key)] = mark
            result[key] = self.read(value, (*at, key), above)
        return result

    def _merged(self, node: yaml.Node, at: Key, above: tuple[yaml.Node, ...]) -> dict[str, Any]:
        values = self.read(node, at, above)
        if isinstance(values, dict):
            return values
        what = f"'<<' takes a mapping, this is {kind(values)}"
        raise RecipeError(what, where=self.at_line(node).where, fix="E.g. `<<: *anchor`.")

    def _name(self, node: yaml.Node, at: Key) -> str:
        key = self.construct_object(node, deep=True)
        if isinstance(key, str):
            return self._whole(key, node)
        written = node.value if isinstance(node, yaml.ScalarNode) else "..."
        what = f"a key of {dotted(at)} is {kind(key) if isinstance(key, _PLAIN) else 'not text'}"
        fix = f"Keys are text; write it in quotes: '{written}':"
        raise RecipeError(what, where=self.at_line(node).where, fix=fix)

    def _whole(self, text: str, node: yaml.Node) -> str:
        """Joins the pairs of surrogates that JSON writes one character with."""
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        if half := _HALF.search(whole):
            what = f"'\\u{ord(half[0]):04x}' is half of a character (a lone surrogate)"
            fix = "Write the character itself, in UTF-8."
            raise RecipeError(what, where=self.at_line(node).where, fix=fix)
        return whole


class _Dumper(yaml.SafeDumper): ...


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
        return Document(None if node is None else loader.read(node, ()), loader.lines)
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


def _in_words(error: Exception, text: str) -> tuple[str, int, str | None]:
    """What is wrong, on which line (from 0 on), and what to do."""
    if not isinstance(error, yaml.MarkedYAMLError):
        problem = str(getattr(error, "reason", error)).splitlines()[0]
        return problem, text.count("\n", 0, getattr(error, "position", 0)), None
    problem = error.problem or error.context or "not YAML"
    mark = error.problem_mark or error.context_mark
    line = mark.line if mark else 0
    for sign, words, fix in _WORDS:
        if sign in f"{error.context} {problem}":
            return words, line, fix
    return problem, line, "Check indentation, quotes and brackets on this line and the one above."


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
        what, fix = "the file is not UTF-8 text", "Save it as UTF-8."
        raise RecipeError(what, where=f"{path}:{line}", fix=fix) from error
