"""Errors that users meet: what went wrong, where, and what to type instead.

The command line prints ``str(error)`` (at most three lines) and exits with ``exit_code``:
2 when the user's input is wrong, 1 when a run failed.
"""

import difflib
import errno
import re
from collections.abc import Iterable

_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def printable(text: str) -> str:
    """Returns ``text`` with U+FFFD for all that a terminal obeys, XML forbids or UTF-8 cannot say:
    control characters but for tab and newline, other line separators, marks that turn the direction
    of writing, and lone surrogates.
    """
    return _UNPRINTABLE.sub("\ufffd", text)


class _Shown(BaseException):
    """What is shown without a traceback, as ``printable`` says: ``what`` is one sentence, ``where``
    an address (``file:line``, a dotted module path, a plugin), ``fix`` what to type or do instead.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = printable(what)
        self.where, self.fix = where and printable(where), fix and printable(fix)
        super().__init__(self.what)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        fix = "\n".join(short(line, 1000) for line in (self.fix or "").split("\n"))
        return short(head, 1000) + (f"\n  {fix}" if fix else "")


class EffcompressError(_Shown, Exception):
    """Base class of all errors that are shown without a traceback; shown as ``printable`` says.

    ``what`` is one sentence, ``where`` an address (``file:line``, a dotted module path, a plugin),
    ``fix`` what to type or do instead.
    """


class RecipeError(EffcompressError, ValueError):
    """A recipe has an invalid key or value. ``where`` is ``file:line``."""

    exit_code = 2


class PluginError(EffcompressError, ValueError):
    """A plugin cannot be registered, found or imported. ``where`` is ``file:line``."""

    exit_code = 2


class SourceError(EffcompressError, ValueError):
    """A model or a text that the recipe names is missing, unreadable or invalid."""

    exit_code = 2


class CoverageError(EffcompressError, ValueError):
    """A family's declaration misses a parameter, or names one that the model does not have."""

    exit_code = 2


class SurgeryError(EffcompressError):
    """A cut would leave model, optimizer and configuration in disagreement."""


class RunError(EffcompressError):
    """A run cannot continue, or its result failed the proof."""


class NotFinite(RunError):
    """A loss or gradient is not finite. The weights are those before that step."""


class Stopped(_Shown):
    """A signal stopped the run after a checkpoint; ``--resume`` continues it. Not a failure, and,
    as KeyboardInterrupt, no Exception: it comes wherever the program is, and what handles every
    failure of a library there must not take it for one.

    The exit code is 0 after SIGTERM, which job schedulers expect (75 with ``--resume=auto``, which
    tells a script to start again), 130 after Ctrl-C and 129 where the terminal was closed, so that
    a shell does not run what follows ``&&``.
    """

    exit_code = 0


def short(text: str, length: int = 80) -> str:
    """Shortens a text to one line of at most ``length`` characters, for error messages."""
    line = text if text.isprintable() else repr(text)[1:-1]
    return line if len(line) <= length else f"{line[: length - 3]}..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns a fix such as ``did you mean 'taylor'? Known: magnitude, taylor.``"""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.55)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(names)}."


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error of a library says; empty where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether the error, or one that caused it, means that no space (or quota) is left.

    Libraries written in Rust report it as text, not as an ``OSError`` with a number.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
