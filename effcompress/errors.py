"""What went wrong, where, and what to type instead.

The command line prints ``str(error)`` (at most three lines) and exits with ``exit_code``:
2 when the user's input is wrong, 1 when a run failed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EffcompressError(Exception):
    """The one error family a user meets.

    ``what`` is one sentence, ``where`` an address (``file:line``, a dotted module path, a plugin),
    ``fix`` what to type or do instead.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  {self.fix}" if self.fix else head


class RecipeError(EffcompressError, ValueError):
    """A recipe says something that cannot be meant. ``where`` is ``file:line``."""

    exit_code = 2


class PluginError(EffcompressError, ValueError):
    """A plugin cannot be registered, found or imported. ``where`` is ``file:line``."""

    exit_code = 2


class SourceError(EffcompressError, ValueError):
    """A model or a text that the recipe names is missing, unreadable or not what it says."""

    exit_code = 2


class CoverageError(EffcompressError, ValueError):
    """A parameter the family's declaration does not reach, or one it names and nobody has."""

    exit_code = 2


class SurgeryError(EffcompressError):
    """A cut that would leave model, optimizer and configuration in disagreement."""


class RunError(EffcompressError):
    """A run that cannot go on, or whose result failed its proof."""


class NotFinite(RunError):
    """A number of training is not finite. The weights are as they were before that step."""


class Stopped(EffcompressError):
    """A run ended because somebody asked for it, and can go on: no failure.

    The exit code is 0, as schedulers want it; after Ctrl-C it is 130, so that a shell does not go
    on with what stands behind ``&&``.
    """

    exit_code = 0


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"Did you mean 'taylor'? "`` or an empty string, then the list of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.55)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(names)}."
