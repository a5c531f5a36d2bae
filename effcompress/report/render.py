"""Fills the templates of ``templates/``: pages, cards and pictures of their own."""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from effcompress import processes
from effcompress.errors import printable

PARTIAL = ".partial"


def _literal(text: str) -> Markup:
    """Text that Markdown shows as it is, in a table too."""
    # An underscore within a word (acc_norm) is plain text in Markdown.
    return Markup(re.sub(r"([\\`*\[\]<>|]|(?<!\w)_|_(?!\w))", r"\\\1", text))  # noqa: S704 (escaped right here)


def _code(text: str) -> Markup:
    """A code span of Markdown, with more backticks than the text has in a row."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    air = " " if len(fence) > 1 else ""
    return Markup(f"{fence}{air}{text}{air}{fence}")  # noqa: S704 (code spans show HTML as text)


def _breakable(text: str) -> Markup:
    """Text that may be broken behind ``_``, ``/`` and ``.``, as long names must be."""
    return Markup(re.sub(r"([_/.])(?=\w)", r"\1<wbr>", str(escape(text))))  # noqa: S704 (escaped right here)


def _whole(text: str) -> Markup:
    """Text whose options (``--seeds``) stay on one line."""
    options = r"(?<![\w-])(--[\w-]+)"
    return Markup(re.sub(options, r'<span class="option">\1</span>', str(escape(text))))  # noqa: S704 (escaped right here)


_TEMPLATES = Environment(
    loader=PackageLoader("effcompress.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {"literal": _literal, "code": _code, "breakable": _breakable, "whole": _whole}


def render(template: str, **names: Any) -> str:
    """Returns a template with its names filled in; HTML in them is escaped. Raises
    ``jinja2.UndefinedError`` where the template asks for a name that is not given.
    """
    return _TEMPLATES.get_template(template).render(**names)


def filled(template: str, templates: Mapping[str, str], **names: Any) -> str:
    """Returns one of ``templates``, which may extend each other, with its names filled in as plain
    text. Raises ``jinja2.UndefinedError`` where it asks for a name that is not given.
    """
    made = Environment(
        loader=DictLoader(dict(templates)),
        autoescape=False,  # noqa: S701 (not HTML)
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return made.get_template(template).render(**names)


def replace(path: Path, text: str) -> None:
    """Writes a file atomically, readable for everyone; control characters become a sign."""
    processes.sweep(path.parent, PARTIAL)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{PARTIAL}-{os.getpid()}-")
    work = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(printable(text))
        work.chmod(0o644)  # temporary files are private
        work.replace(path)
    except BaseException:
        work.unlink(missing_ok=True)
        raise
