"""The progress of a comparison: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO, cast, final

from rich.console import Console
from rich.progress import (
    BarColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from effcompress.errors import printable
from effcompress.record import events
from effcompress.record.events import Event
from effcompress.record.lasting import Lasting
from effcompress.record.readable import clock_time, count

if TYPE_CHECKING:
    from effcompress.compare.entries import Job
    from effcompress.compare.processes import Progress

HEARTBEAT = 20.0
"""Seconds between two plain lines about the runs under way."""
SAMPLE = 2.0
"""Seconds between two samples of the overall speed. rich keeps 1000: the last half hour."""
WINDOW = 3600.0
"""Seconds that the estimates of the time left look back."""


def make_progress(*, plain: bool = False, stream: TextIO | None = None) -> Progress:
    """Returns bars where ``stream`` (by default stderr) is a terminal, plain lines elsewhere or if
    ``plain``, because another view draws on the terminal.
    """
    given = sys.stderr if stream is None else stream
    drawn = given.isatty() and os.environ.get("TERM") != "dumb" and not plain
    return RunsProgress(Console(file=cast("TextIO", Lasting(given))), drawn=drawn)


@final
class RunsProgress:
    """One bar for all runs and one for each that is under way; what ended leaves a line above.

    Without a terminal (``drawn=False``) the same bars are kept but not drawn: each event of the
    comparison is a line, and every 20 s so is each run.
    """

    def __init__(
        self, console: Console, *, drawn: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        named = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        self.bars = Bars(
            TextColumn("{task.description}", markup=False, table_column=named),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True)),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            get_time=clock,
            speed_estimate_period=WINDOW,
            disable=not drawn,
            refresh_per_second=4,
            expand=True,
        )
        self._console, self._drawn, self._clock = console, drawn, clock
        self._runs: dict[str, TaskID] = {}
        self._all: TaskID | None = None
        self._number = self._ended = self._failed = 0
        self._said = self._sampled = clock()

    def checking(self, number: int) -> None:
        """Says that recipes are checked: schedules of large models take seconds to play."""
        if number:
            self._say(f"checking {number} recipe{'s' * (number != 1)}", "dim")

    def begin(self, jobs: Sequence[Job], done: Sequence[Job]) -> None:
        """Starts to draw, or says how many runs there are."""
        if not jobs:
            return  # folders alone: nothing runs
        self._number, self._ended = len(jobs), len(done)
        self._all = self.bars.add_task("", total=len(jobs), completed=len(done), note="")
        # rich takes the speed between samples: the first one only starts the clock.
        self.bars.update(self._all, advance=1e-9)
        self._count()
        if self._drawn:
            self.bars.start()
            return
        before = f", {len(done)} of them done before" if done else ""
        self._say(f"{len(jobs)} run{'s' * (len(jobs) != 1)}{before}")

    def started(self, job: Job) -> None:
        """Adds a bar."""
        name = _named(job)
        self._runs[name] = self.bars.add_task(name, total=None, note="starting")
        if not self._drawn:
            self._say(f"{self._place()} {name}: started")

    def event(self, job: Job, event: Event) -> None:
        """Moves the bar of a run."""
        task = self._runs.get(_named(job))
        if task is None:
            return
        if isinstance(event, events.Run):
            target = f" -> {count(event.target_params)}" if event.target_params else ""
            note = f"{count(event.params)}{target} parameters"
            self.bars.update(task, total=event.total_tokens or None, note=note)
        elif isinstance(event, events.Step):
            total = self._task(task).total
            of = f" of {count(total)}" if total else ""
            note = f"{count(event.tokens)}{of} tokens, loss {event.loss:.3f}"
            # A bar that is full stops its clock, but evaluation and export follow the last token.
            done = min(event.tokens, total - 1) if total else event.tokens
            self.bars.update(task, completed=done, note=note)

    def ended(self, job: Job, seconds: float, reason: str) -> None:
        """Replaces the bar of a run by a line."""
        name = _named(job)
        if (task := self._runs.pop(name, None)) is not None:
            self.bars.remove_task(task)
        self._ended += 1
        self._failed += bool(reason)
        self._count()
        why = f": {' '.join(reason.split())}" if reason else ""
        said = f"{name}: {'failed' if reason else 'done'} after {clock_time(seconds)}{why}"
        if not self._drawn:
            said = f"{self._place()} {said}{self._left()}"
        self._say(said, "red" if reason else "")

    def beat(self) -> None:
        """Samples the overall speed; in plain text, now and then says what is under way."""
        now = self._clock()
        if now - self._sampled >= SAMPLE:
            self._sampled = now
            self._count()
        if self._drawn or now - self._said < HEARTBEAT:
            return
        for name, run in self._runs.items():
            task = self._task(run)
            spent = clock_time(task.elapsed or 0.0)
            self._say(f"{self._place()} {name}: {task.fields['note']}, {spent}{self._left()}")

    def close(self) -> None:
        """Leaves the last state of the bars standing and gives the terminal back."""
        if self._drawn:
            self.bars.stop()

    def _task(self, number: TaskID) -> Task:
        return next(task for task in self.bars.tasks if task.id == number)

    def _count(self) -> None:
        """Moves the bar of all runs by the runs that ended and the fractions of those under way."""
        if self._all is None:
            return
        running = [self._task(run) for run in self._runs.values()]
        part = sum(task.completed / task.total for task in running if task.total)
        said = f"{self._ended} of {self._number} runs"
        failed = f"{self._failed} failed" if self._failed else ""
        self.bars.update(self._all, completed=self._ended + part, description=said, note=failed)

    def _place(self) -> str:
        """``[3/12]``: how many runs have ended."""
        return f"[{self._ended}/{self._number}]"

    def _left(self) -> str:
        """``, about 1:05 left``."""
        seconds = None if self._all is None else self._task(self._all).time_remaining
        return f", about {clock_time(seconds)} left" if seconds else ""

    def _say(self, text: str, style: str = "") -> None:
        self._said, text = self._clock(), printable(text)
        if self._drawn:
            self._console.print(Text(text, style=style))
        else:  # not by the console, which would wrap at 80 columns
            self._console.file.write(text + "\n")
            self._console.file.flush()


def _named(job: Job) -> str:
    """``taylor, seed 0``."""
    return printable(f"{job.label}, seed {job.seed}")
