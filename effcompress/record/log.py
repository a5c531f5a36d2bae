"""The record of a run (``metrics.jsonl``, ``plans.jsonl``) and its view in plain lines of text.

The two files are the truth; a view (this one, or the panel in ``record/panel.py``) only shows what
is being written. A number that is not finite never reaches the record: it stops the run, with the
name of the field.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import IO, Any, TextIO, final

from effcompress.errors import RunError
from effcompress.record.heartbeat import STACKS, Heartbeat, patience
from effcompress.record.panel import LiveView, Status, View
from effcompress.record.sentences import Event, removed, sentence
from effcompress.record.status_file import StatusFile
from effcompress.types import Cut

__all__ = ["Log", "NoView", "PlainView", "View", "make_view"]


def make_view(stream: TextIO | None = None, interactive: bool | None = None) -> View:
    """A live panel where there is a terminal to draw on, plain lines otherwise.

    ``stream`` defaults to stderr, which leaves stdout to whoever pipes the result on.
    ``interactive`` overrules the look at the stream.
    """
    out = sys.stderr if stream is None else stream
    if interactive is None:
        interactive = out.isatty() and os.environ.get("TERM") != "dumb"
    return LiveView(out) if interactive else PlainView(out)


@final
class Log:
    """Writes the record of one run into ``folder`` and shows it in ``view``."""

    def __init__(
        self,
        folder: Path,
        *,
        view: View,
        heartbeat: float = 20.0,
        silence: float | None = None,
        keep: bool = True,
    ) -> None:
        """``keep=False``: check what comes, and leave writing to another process. ``silence``:
        seconds after which the watchdog speaks, by default from ``EFFCOMPRESS_SILENCE``.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.view, self._phase = folder, view, "start"
        silence = patience() if silence is None else silence
        self._now = StatusFile(folder if keep else None, heartbeat)
        self._pulse = Heartbeat(
            self._beat, lambda: self._phase, heartbeat, silence, folder / STACKS
        )
        kept = ("metrics", "plans") if keep else ()
        self._files = {name: _open(folder / f"{name}.jsonl") for name in kept}

    def event(self, event: str, **fields: Any) -> None:
        """Append one line to ``metrics.jsonl`` and show it. NaN and infinity raise ``RunError``."""
        line = {"event": event, **fields}
        clean = _plain(line, "", _address(line))
        self._write("metrics", clean)
        self._now.event(clean)
        self._pulse.alive()
        self.view.event(clean)

    def plan(self, cut: Cut) -> None:
        """Append one decision to ``plans.jsonl``: what went, and what it looked like then."""
        line = {
            "step": cut.step,
            "tokens": cut.tokens,
            "plan": cut.plan,
            "saliency": cut.saliency,
            "removed": cut.removed,
            "scores": cut.scores,
            "params": cut.params,
        }
        self._write("plans", _plain(line, "", f"plan at step {cut.step}"))

    def phase(self, name: str, total_tokens: int | None = None) -> None:
        """A new part of the run begins; ``total_tokens`` is what it works through, if known."""
        self._phase = name
        self._now.phase(name)
        self._pulse.alive()
        self.view.phase(name, total_tokens)

    @property
    def doing(self) -> str:
        """Name of the phase."""
        return self._phase

    def progress(self, unit: str, done: int, total: int) -> None:
        """So many of ``total`` units of this phase are done; the record need not keep that."""
        self._now.progress(unit, done, total)
        self._pulse.alive()
        self.view.progress(unit, done, total)

    def note(self, text: str) -> None:
        """Tell the reader something that the record need not keep."""
        self._pulse.alive()
        self.view.note(text)

    def warn(self, text: str) -> None:
        """Something the reader should know; it stays in the record and in the report."""
        self.event("warning", text=text)

    def state(self) -> dict[str, int]:
        """Byte offsets of both files, for a checkpoint.

        The bytes are forced to the disk first: a checkpoint must never point past the end of a
        record that a power cut shortened.
        """
        for file in self._files.values():
            os.fsync(file.fileno())
        return {name: file.seek(0, os.SEEK_END) for name, file in self._files.items()}

    def rewind(self, state: Mapping[str, int]) -> None:
        """Forget what was written after ``state``, so that a resumed run leaves the same record as
        one that was never interrupted. The view learns what the kept part says.
        """
        for name, file in self._files.items():
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
        if not self._files:
            return
        kept = (self.folder / "metrics.jsonl").read_text(encoding="utf-8")
        self.view.restore([json.loads(line) for line in kept.splitlines()])

    def close(self) -> None:
        """Close the files and give the terminal back. Closing twice does nothing."""
        self._pulse.stop()
        self._now.close()
        self.view.close()
        for file in self._files.values():
            file.close()

    def _beat(self) -> None:
        self._now.beat(self._pulse.silent)
        self.view.beat()

    def _write(self, name: str, line: dict[str, Any]) -> None:
        file = self._files.get(name)
        if file is None:
            return
        try:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            file.flush()
        except OSError as error:
            where = str(self.folder / f"{name}.jsonl")
            raise RunError(f"the record cannot be written: {error}", where=where) from error


def _open(path: Path) -> IO[bytes]:
    """Open for writing at the end, without the half line that a killed run may have left."""
    path.touch()
    file = path.open("r+b")
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
    return file


def _address(line: Mapping[str, Any]) -> str:
    step = f" at step {line['step']}" if "step" in line else ""
    return f"{line['event']}{step}"


def _plain(value: Any, path: str, where: str) -> Any:
    """``value`` as plain JSON values; numbers of numpy become Python's own."""
    if isinstance(value, Mapping):
        return {
            str(key): _plain(item, f"{path}.{key}" if path else str(key), where)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{i}]", where) for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        if not math.isfinite(value):
            raise RunError(
                f"'{path}' is {float(value)}; the record takes finite numbers only",
                where=where,
                fix="Look at the text or the plugin that this number comes from; --resume goes on "
                "from the newest checkpoint.",
            )
        return float(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{where}: '{path}' is a {type(value).__name__}, which JSON cannot say")


@final
class NoView:
    """Shows nothing: for all processes of a run but one."""

    def event(self, event: Event) -> None: ...
    def phase(self, name: str, total_tokens: int | None = None) -> None: ...
    def progress(self, unit: str, done: int, total: int) -> None: ...
    def note(self, text: str) -> None: ...
    def restore(self, events: Iterable[Event]) -> None: ...
    def close(self) -> None: ...
    def beat(self) -> None: ...


@final
class PlainView:
    """Lines of text, for a log file: phases, results, a summary of cuts now and then, and a
    heartbeat.
    """

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
        """Take in one event and print what it is worth."""
        with self._lock:
            self._status.update(event)
            if event["event"] == "cut":
                self._cuts.update(event["removed"])
                if self._clock() - self._cuts_shown >= self._cuts_every:
                    self._show_cuts()
            elif text := sentence(event):
                self._show_cuts()
                self._print(text)

    def phase(self, name: str, total_tokens: int | None = None) -> None:
        """A new part of the run begins."""
        with self._lock:
            self._show_cuts()
            self._status.enter(name, total_tokens)
            self._print(f"== {name}")

    def progress(self, unit: str, done: int, total: int) -> None:
        """Part of a phase is done; the heartbeat says so."""
        with self._lock:
            self._status.advance(unit, done, total)

    def note(self, text: str) -> None:
        """Print a remark."""
        with self._lock:
            self._print(text)

    def restore(self, events: Iterable[Event]) -> None:
        """Take in the events of an earlier part of the run without printing them."""
        with self._lock:
            for event in events:
                self._status.update(event)

    def close(self) -> None:
        """Print what is still to be said."""
        with self._lock:
            self._show_cuts()

    def beat(self) -> None:
        """Print where the run is."""
        with self._lock:
            self._print(self._status.line())

    def _show_cuts(self) -> None:
        if self._cuts:
            self._print(f"cut {removed(self._cuts)} | {self._status.size()} parameters")
            self._cuts.clear()
            self._cuts_shown = self._clock()

    def _print(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()
