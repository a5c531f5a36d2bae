"""Takes the folders of this machine out of what a report or a card says: both are passed on."""

import re

_ROOT = r"(?:~\w*|[A-Za-z]:)?[\\/]"
_QUOTED = re.compile(rf"""(["']){_ROOT}[^"'\n]*[\\/](?=[^"'\n\\/]+\1)""")
_PLAIN = re.compile(rf"""(?<![\w.:/~\\"'])(?:{_ROOT})(?:[^\s\\/,;:\[\]{{}}()"']+[\\/])+""")
_LINE = re.compile(rf"^(\s*(?:- )*(?:[\w.-]+:[ ]+)?)(?:{_ROOT})[^#\n]*[\\/]", re.MULTILINE)
"""A value of a resolved recipe, which may have spaces."""
_WHOLE = re.compile(rf"""(?<![\w.:/~\\"'])(?:{_ROOT}).*[\\/]""")


def label_without_folders(text: str) -> str:
    """The same for the description of a source, which has one path at most; it may have spaces."""
    return _WHOLE.sub("", text)


def without_folders(text: str) -> str:
    """Returns the text with only the last part of every absolute path in it: of ``/a/b/c.jsonl``
    stays ``c.jsonl``. Relative paths and addresses (``https://...``) stay as they are.
    """
    return _PLAIN.sub("", _QUOTED.sub(r"\1", text))


def recipe_without_folders(text: str) -> str:
    """The same for a resolved recipe: a value that is a path may have spaces in it."""
    return without_folders(_LINE.sub(r"\1", text))
