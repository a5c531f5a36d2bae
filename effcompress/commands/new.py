"""``effcompress new``: writes a plugin file and its test, to start from."""

import keyword
import re
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import effcompress
from effcompress.answer import Answer
from effcompress.errors import PluginError, RunError, did_you_mean
from effcompress.injectable import INPUTS
from effcompress.registry import REGISTRY
from effcompress.report.render import filled

PACKAGE = "effcompress_plugins"
"""The package whose folder ``templates`` holds a plugin and its test for each kind."""
ENDING = ".py.jinja"
ELSEWHERE = {
    "family": "`effcompress inspect FOLDER --template FILE` traces a model and writes its family.",
}
"""Kinds of which a plugin follows from more than a name -> what to type."""


def new(kind: str, name: str, output: Path) -> Answer:
    """Writes ``output/NAME.py``, a working plugin, and ``output/test_NAME.py``.

    Raises PluginError for a kind or name that cannot be, or that there is, and where one of the
    files exists; RunError where they cannot be written.
    """
    templates = templates_of()
    if kind in ELSEWHERE:
        said = f"a {kind} is not written from a template"
        raise PluginError(said, where=kind, fix=ELSEWHERE[kind])
    if kind not in INPUTS or kind not in templates:
        kinds = [known for known in INPUTS if known in templates]
        raise PluginError(f"no kind of plugin named '{kind}'", fix=did_you_mean(kind, kinds))
    _require_name(kind, name, templates[kind])
    made = {output / f"{name}.py": kind, output / f"test_{name}.py": f"test_{kind}"}
    for file in made:
        if file.exists() or file.is_symlink():
            fix = "Name another plugin, or another folder with --output."
            raise PluginError("this file is there already", where=str(file), fix=fix)
    _require_free_module(name)
    try:
        output.mkdir(parents=True, exist_ok=True)
        for file, template in made.items():
            with file.open("x", encoding="utf-8") as stream:
                stream.write(filled(template, templates, name=name))
    except OSError as error:
        said = f"cannot be written: {error.strerror}"
        raise RunError(said, where=error.filename or str(output)) from error
    plugin, test = made
    notes = (
        f"Written: {plugin} and {test}",
        f"Test it: pytest {test}",
        f"Use it: the docstring of {plugin.name} says what to write in a recipe beside it",
    )
    return Answer({"plugin": str(plugin), "test": str(test), "kind": kind}, (), notes)


def templates_of() -> dict[str, str]:
    """Returns kind, or ``test_`` and kind -> template."""
    folder = files(PACKAGE) / "templates"
    found = (file for file in folder.iterdir() if file.name.endswith(ENDING))
    return {f.name.removesuffix(ENDING): f.read_text(encoding="utf-8") for f in found}


def _require_name(kind: str, name: str, template: str) -> None:
    """Raises PluginError for a name that no plugin can have, or that one has."""
    words = f"'{name}'"
    if not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name):
        fix = "Write a word of Python: letters, digits and _, no digit first, e.g. taylor_power."
        raise PluginError(f"{words} cannot be the name of a function", where="NAME", fix=fix)
    taken = {plugin.name: plugin for plugin in REGISTRY.all(kind)}
    if name in taken:
        said = f"there is a {kind} {words} already, from {taken[name].where}"
        raise PluginError(said, where="NAME", fix="Choose another name.")
    injected = {given for inputs in INPUTS.values() for given in inputs}
    # Words of the file itself: what it imports, its arguments, its other functions.
    if name in {*effcompress.__all__, *INPUTS, *injected} or _uses(template, name):
        said = f"{words} has a meaning in plugin files already"
        raise PluginError(said, where="NAME", fix="Choose another name, e.g. with a suffix.")


def _uses(template: str, name: str) -> bool:
    """Whether the file for another name contains this word."""
    text = filled("it", {"it": template}, name="another_name")
    return re.search(rf"\b{re.escape(name)}\b", text) is not None


def _require_free_module(name: str) -> None:
    """Raises PluginError where ``import NAME`` finds another module, which the file would hide."""
    if name in sys.modules or find_spec(name) is not None:
        said = f"'{name}' is a Python module already, and a file of that name would hide it"
        raise PluginError(said, where="NAME", fix="Choose another name.")
