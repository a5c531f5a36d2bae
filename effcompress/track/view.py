"""A view that wraps the run's own view and passes its events on to trackers."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, final

from effcompress.errors import first_line
from effcompress.record import events
from effcompress.record.events import Event, step_of
from effcompress.record.log import Log
from effcompress.record.panel import View
from effcompress.spec import Recipe
from effcompress.track.curves import Value, curves, settings
from effcompress.track.trackers import OPEN, PATIENCE, Opened, Place

T = TypeVar("T")
LONGEST = 2.0 * PATIENCE
"""Timeout in seconds for a tracker to start or to finish."""


def watch(log: Log, recipe: Recipe, plain: Mapping[str, Any], *, offline: bool) -> None:
    """Passes events on to the recipe's trackers, on rank 0. ``plain``: the recipe as values."""
    spec = recipe.track
    if spec is not None:
        place = Place(log.folder, recipe.name, spec.project, offline)
        log.view = Watched(log.view, spec.to, place, plain, log.warn)


@final
class Watched(View):
    """Passes everything on to ``view``. Values are collected by optimizer step and sent to the
    trackers when an event of a later step comes, so that every curve has one point per step.
    """

    def __init__(
        self,
        view: View,
        names: Iterable[str],
        place: Place,
        plain: Mapping[str, Any],
        warn: Callable[[str], None],
    ) -> None:
        self.view, self._place, self._plain, self._warn = view, place, plain, warn
        self._names = [*dict.fromkeys(names)]
        self._open: dict[str, Opened] = {}
        self._begun = False
        self._step = 0
        self._values: dict[str, Value] = {}

    def event(self, event: Event) -> None:
        """Shows one event."""
        self.view.event(event)
        if not self._begun:
            self._begin(None)
        self._take(event)

    def restore(self, kept: Iterable[Event]) -> None:
        """Starts the trackers; those that lack events before the checkpoint are sent them."""
        kept = [*kept]
        self.view.restore(kept)
        self._begin(max((step_of(event) or 0 for event in kept), default=None))
        if self._open:
            for event in kept:
                self._take(event)

    def close(self) -> None:
        """Sends the values of the last step and finishes the trackers."""
        self._show()
        # The record may have ended: a failure from here on is shown, not recorded.
        self._warn = self.view.note
        for name, opened in [*self._open.items()]:
            self._try(name, lambda opened=opened: _within(LONGEST, opened.tracker.finish))
        self._open = {}
        self.view.close()

    # Trackers are sent events alone: all else is for the view.

    def phase(self, name: str, total_tokens: int | None = None) -> None:
        self.view.phase(name, total_tokens)

    def expect(self, seconds: float) -> None:
        self.view.expect(seconds)

    def progress(self, unit: str, done: int, total: int | None) -> None:
        self.view.progress(unit, done, total)

    def note(self, text: str) -> None:
        self.view.note(text)

    def beat(self) -> None:
        self.view.beat()

    def _begin(self, step: int | None) -> None:
        self._begun = True
        place = replace(self._place, step=step)
        for name in self._names:
            opened = self._try(name, lambda name=name: _within(LONGEST, lambda: OPEN[name](place)))
            if opened is not None:
                self._open[name] = opened
                if opened.note:
                    self.view.note(opened.note)

    def _take(self, event: Event) -> None:
        step = step_of(event)
        if step is not None and step != self._step:
            self._show()
            self._step = step
        if isinstance(event, events.Run):
            values = settings(self._plain, event)
            for name, opened in [*self._open.items()]:
                self._try(name, lambda opened=opened: opened.configure(values))
        found = curves(event)
        if "warning" in found and "warning" in self._values:
            found["warning"] = f"{self._values['warning']}\n\n{found['warning']}"
        self._values |= found

    def _show(self) -> None:
        values, self._values = self._values, {}
        for name, opened in [*self._open.items()]:
            if values and self._step >= opened.since:
                self._try(name, lambda opened=opened: opened.tracker.log(values, step=self._step))

    def _try(self, name: str, call: Callable[[], T]) -> T | None:
        """Calls a tracker; one that fails is dropped, with a warning."""
        try:
            # Some trackers print to stdout, which is reserved for the result.
            with contextlib.redirect_stdout(sys.stderr):
                return call()
        except Exception as error:  # noqa: BLE001  trackers raise anything, and the run must go on
            self._open.pop(name, None)
            said = first_line(error) or type(error).__name__
            self._warn(f"{name} is shown nothing more, the run goes on without it: {said}")
        return None


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Returns or raises what ``call`` does; TimeoutError if late, and its thread is abandoned."""
    done: list[T] = []
    failed: list[Exception] = []

    def work() -> None:
        try:
            done.append(call())
        except Exception as error:  # noqa: BLE001  raised again below, in the calling thread
            failed.append(error)

    thread = threading.Thread(target=work, name="tracker", daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise TimeoutError(f"no answer within {seconds:.0f} seconds")
    return done[0]
