"""Writes the record of a run (``metrics.jsonl``, ``plans.jsonl``) and shows it in a view: plain
lines of text here, the live panel in ``record/panel.py``.

The two files are the source of truth; views only show what is written. A number that is not finite
is never written: it stops the run with the name of its field.
"""

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, TextIO, cast, final

from effcompress.errors import RunError, printable
from effcompress.record import events
from effcompress.record.events import Event, Warn
from effcompress.record.heartbeat import STACKS, Heartbeat, patience
from effcompress.record.lasting import Lasting
from effcompress.record.panel import LiveView, Status, View
from effcompress.record.readable import clock_time
from effcompress.record.sentences import removed, sentence
from effcompress.record.status_file import StatusFile
from effcompress.types import Cut


def make_view(stream: TextIO | None = None, interactive: bool | None = None) -> View:
    """Returns a live panel if ``stream`` is a terminal that can redraw, plain lines otherwise. What
    the stream does not take later on is dropped.

    ``stream`` defaults to stderr, so that stdout carries the result alone. ``interactive``
    overrides the detection.
    """
    given: TextIO | None = sys.stderr if stream is None else stream
    if given is None:  # a process without standard error
        return NoView()
    if interactive is None:
        interactive = given.isatty() and os.environ.get("TERM") != "dumb"
    out = cast("TextIO", Lasting(given))
    return LiveView(out) if interactive else PlainView(out)


@final
class Log:
    """Writes the record of one run into ``folder`` and shows it; ``doing``: the current phase."""

    def __init__(
        self,
        folder: Path,
        *,
        view: View,
        heartbeat: float = 20.0,
        silence: float | None = None,
        keep: bool = True,
    ) -> None:
        """``heartbeat``: seconds between two of them. ``silence``: seconds without an event after
        which the watchdog dumps stacks, by default from ``EFFCOMPRESS_SILENCE``. ``keep=False``:
        events are checked but not written, for all processes but rank 0.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.view, self.doing = folder, view, "start"
        silence = patience() if silence is None else silence
        self._status_file = StatusFile(folder if keep else None, heartbeat)
        self._heartbeat = Heartbeat(
            self._beat, lambda: self.doing, heartbeat, silence, folder / STACKS
        )
        kept = ("metrics", "plans") if keep else ()
        self._files = {name: _open(folder / f"{name}.jsonl") for name in kept}

    def event(self, event: Event) -> None:
        """Appends one line to ``metrics.jsonl`` and shows it. NaN and infinity raise RunError."""
        line = events.line(event)
        self._write("metrics", line)
        # Views get what a reader of the file gets: numbers of numpy, say, are Python's own in it.
        written = events.parse(line)
        self._status_file.event(written)
        self._heartbeat.alive()
        self.view.event(written)

    def plan(self, cut: Cut) -> None:
        """Appends one cut to ``plans.jsonl``: the units that went, and their saliency then."""
        self._write("plans", events.plan_line(cut))

    def phase(self, name: str, total_tokens: int | None = None) -> None:
        """Begins a phase of the run; ``total_tokens``: tokens that it will train on, if known."""
        self.doing = name
        self._status_file.phase(name)
        self._heartbeat.alive()
        self.view.phase(name, total_tokens)

    def progress(self, unit: str, done: int, total: int | None) -> None:
        """Reports that ``done`` of ``total`` units of this phase are done; ``total`` is None where
        it is unknown. Shown, not recorded.
        """
        self._status_file.progress(unit, done, total)
        self._heartbeat.alive()
        self.view.progress(unit, done, total)

    def expect(self, seconds: float) -> None:
        """Forecasts how long this phase will take from now on; shown, not recorded."""
        self._status_file.expect(seconds)
        self._heartbeat.alive()
        self.view.expect(seconds)

    def note(self, text: str) -> None:
        """Shows a remark that is not recorded."""
        self._heartbeat.alive()
        self.view.note(text)

    def warn(self, text: str) -> None:
        """Records a warning, which the report repeats."""
        self.event(Warn(text=text))

    def state(self) -> dict[str, int]:
        """Returns the byte offsets of both files, for a checkpoint.

        Both are synced to disk first: after a power cut, a checkpoint must not point past the end
        of the record.
        """
        for file in self._files.values():
            os.fsync(file.fileno())
        return {name: file.seek(0, os.SEEK_END) for name, file in self._files.items()}

    def rewind(self, state: Mapping[str, int], copies: Mapping[str, bytes] | None = None) -> None:
        """Truncates both files to the offsets of a checkpoint, so that a resumed run leaves the
        same record as one that was never interrupted. The view is given the events that are kept.
        A file that differs from the checkpoint's copy is replaced by it, with a
        warning.

        Raises RunError when there is no copy and a file is shorter than its offset or damaged.
        """
        restored: list[str] = []
        for name, file in self._files.items():
            copy = (copies or {}).get(f"{name}.jsonl")
            if copy is not None and _first(file, len(copy)) != copy:
                file.truncate(0)
                file.seek(0)
                file.write(copy)
                file.flush()
                restored.append(f"{name}.jsonl")
            size, offset = file.seek(0, os.SEEK_END), state.get(name, 0)
            if offset > size:
                raise RunError(
                    f"the checkpoint needs {offset} bytes of this record, but only {size} are left",
                    where=str(self.folder / f"{name}.jsonl"),
                    fix="Put the file back, or start the run again in another folder.",
                )
        for name, file in self._files.items():
            file.truncate(state.get(name, 0))
            file.seek(0, os.SEEK_END)
        if self._files:
            self.view.restore(events.read(self.folder / "metrics.jsonl"))
        for name in restored:
            self.warn(f"{name} was not what this run wrote; the checkpoint's copy is in its place")

    def close(self) -> None:
        """Stops the heartbeat, closes the files, releases the terminal. May be called twice."""
        self._heartbeat.stop()
        self._status_file.close()
        self.view.close()
        for file in self._files.values():
            file.close()

    def _beat(self) -> None:
        self._status_file.beat(self._heartbeat.silent)
        self.view.beat()

    def _write(self, name: str, line: str) -> None:
        file = self._files.get(name)
        if file is None:
            return
        try:
            file.write(line.encode() + b"\n")
            file.flush()
        except OSError as error:
            raise RunError(
                f"the record cannot be written: {error.strerror or error}",
                where=str(self.folder / f"{name}.jsonl"),
                fix="Free some space, then --resume goes on from the newest checkpoint.",
            ) from error


def _open(path: Path) -> IO[bytes]:
    """Opens for appending and drops the half line that a killed run may have left."""
    path.touch()
    file = path.open("r+b")
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
    return file


def _first(file: IO[bytes], size: int) -> bytes:
    file.seek(0)
    return file.read(size)


class NoView(View):
    """Shows nothing: the view of all processes but rank 0."""


@final
class PlainView(View):
    """Prints text for a log file: phases, results, cuts every ``cuts_every`` seconds, beats."""

    def __init__(
        self,
        stream: TextIO,
        *,
        cuts_every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._status, self._clock = stream, Status(clock), clock
        self._lock = threading.RLock()
        self._cuts: Counter[str] = Counter()
        self._cuts_every, self._cuts_shown = cuts_every, clock()

    def event(self, event: Event) -> None:
        """Prints the line of an event; cuts are summed up and printed together."""
        with self._lock:
            self._status.update(event)
            if isinstance(event, events.Cut):
                self._cuts.update(event.removed)
                if self._clock() - self._cuts_shown >= self._cuts_every:
                    self._show_cuts()
            elif text := sentence(event):
                self._show_cuts()
                self._print(text)

    def phase(self, name: str, total_tokens: int | None = None) -> None:
        with self._lock:
            self._show_cuts()
            self._status.enter(name, total_tokens)
            self._print(f"== {name}")

    def progress(self, unit: str, done: int, total: int | None) -> None:
        """Keeps the progress of a phase for the next heartbeat."""
        with self._lock:
            self._status.advance(unit, done, total)

    def expect(self, seconds: float) -> None:
        with self._lock:
            self._status.expect(seconds)
            self._print(f"{self._status.phase}: about {clock_time(seconds)} left")

    def note(self, text: str) -> None:
        with self._lock:
            self._print(text)

    def restore(self, kept: Iterable[Event]) -> None:
        """Takes in the events before a checkpoint without printing them."""
        with self._lock:
            for event in kept:
                self._status.update(event)

    def close(self) -> None:
        """Prints the cuts that were not printed yet."""
        with self._lock:
            self._show_cuts()

    def beat(self) -> None:
        """Prints where the run stands."""
        with self._lock:
            self._print(self._status.line())

    def _show_cuts(self) -> None:
        if self._cuts:
            self._print(f"cut {removed(self._cuts)} | {self._status.size()} parameters")
            self._cuts.clear()
            self._cuts_shown = self._clock()

    def _print(self, text: str) -> None:
        self._stream.write(printable(text) + "\n")
        self._stream.flush()
