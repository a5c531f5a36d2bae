"""What a comparison looks like while it runs: a panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from effcompress.record.events import Event
from effcompress.record.panel import Status
from effcompress.record.readable import clock_time, count

if TYPE_CHECKING:
    from effcompress.compare.entries import Job
    from effcompress.compare.processes import Progress

HEARTBEAT = 20.0
"""Seconds between two plain lines about what is under way."""
Clock = Callable[[], float]


def make_progress(*, plain: bool = False, stream: TextIO | None = None) -> Progress:
    """A panel where there is a terminal to draw on (and nobody else draws: ``plain``)."""
    out = sys.stderr if stream is None else stream
    panel = out.isatty() and os.environ.get("TERM") != "dumb" and not plain
    return PanelProgress(Console(file=out)) if panel else PlainProgress(out)


def named(job: Job) -> str:
    """``taylor, seed 0``."""
    return f"{job.label}, seed {job.seed}"


@final
class Course:
    """How far a comparison is, from what it was told."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.total = self.ended = self.failed = 0
        self.at_once = 1
        self.running: dict[str, Status] = {}
        self.took: list[float] = []

    def begin(self, jobs: Sequence[Job], done: Sequence[Job], at_once: int) -> None:
        """So many jobs, of which some were done before."""
        self.total, self.ended, self.at_once = len(jobs), len(done), max(1, at_once)

    def start(self, job: Job) -> None:
        """One more is under way."""
        self.running[named(job)] = Status(self.clock)

    def event(self, job: Job, event: Event) -> None:
        """Something was written into a record."""
        if named(job) in self.running:
            self.running[named(job)].update(event)

    def end(self, job: Job, seconds: float, reason: str) -> None:
        """One less is under way."""
        self.running.pop(named(job), None)
        self.took.append(seconds)
        self.ended += 1
        self.failed += bool(reason)

    @property
    def eta(self) -> float | None:
        """Seconds left, if the others take as long as those that ended; None before the first."""
        if not self.took:
            return None
        mean = sum(self.took) / len(self.took)
        spent = sum(min(mean, status.elapsed) for status in self.running.values())
        return max(0.0, mean * (self.total - self.ended) - spent) / self.at_once

    def left(self) -> str:
        """``, about 1:05 left``."""
        return (
            ""
            if self.eta is None or self.ended == self.total
            else (f", about {clock_time(self.eta)} left")
        )

    def place(self) -> str:
        """``[3/12]``: how many have ended."""
        return f"[{self.ended}/{self.total}]"


def doing(status: Status) -> str:
    """What a run does now: ``1.2k of 2.6k tokens, loss 5.213, 0:04``."""
    parts: list[str] = []
    if status.step:
        of = f" of {count(status.total_tokens)}" if status.total_tokens else ""
        parts.append(f"{count(status.step.tokens)}{of} tokens, loss {status.step.loss:.3f}")
    elif status.run:
        parts.append(f"{status.size()} parameters")
    else:
        parts.append("starting")
    return ", ".join([*parts, clock_time(status.elapsed)])


def outcome(job: Job, seconds: float, reason: str) -> str:
    """``taylor, seed 0: done after 0:14``."""
    after = clock_time(seconds)
    if not reason:
        return f"{named(job)}: done after {after}"
    return f"{named(job)}: failed after {after}: {' '.join(reason.split())}"


def to_check(number: int) -> str:
    """What is said while nothing runs yet: schedules of large models take seconds to play."""
    return f"checking {number} recipe{'' if number == 1 else 's'}"


@final
class PlainProgress:
    """Lines of text, for a log file."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream, self._course, self._said = stream, Course(clock), clock()

    def checking(self, number: int) -> None:
        """Say that recipes are checked."""
        if number:
            self._say(to_check(number))

    def begin(self, jobs: Sequence[Job], done: Sequence[Job], at_once: int) -> None:
        """Say how much there is to do."""
        self._course.begin(jobs, done, at_once)
        if not jobs:
            return  # folders alone: nothing runs
        before = f", {len(done)} of them done before" if done else ""
        self._say(f"{len(jobs)} run{'' if len(jobs) == 1 else 's'}{before}")

    def started(self, job: Job) -> None:
        """Say what begins."""
        self._course.start(job)
        self._say(f"{self._course.place()} {named(job)}: started")

    def event(self, job: Job, event: Event) -> None:
        """Keep it for the next heartbeat."""
        self._course.event(job, event)

    def ended(self, job: Job, seconds: float, reason: str) -> None:
        """Say what became of it."""
        self._course.end(job, seconds, reason)
        said = outcome(job, seconds, reason)
        self._say(f"{self._course.place()} {said}{self._course.left()}")

    def beat(self) -> None:
        """StatusRecord and then: say what is under way."""
        if self._course.clock() - self._said < HEARTBEAT:
            return
        for name, status in self._course.running.items():
            self._say(f"{self._course.place()} {name}: {doing(status)}{self._course.left()}")

    def close(self) -> None:
        """Nothing to give back."""

    def _say(self, text: str) -> None:
        self._said = self._course.clock()
        self._stream.write(text + "\n")
        self._stream.flush()


@final
class PanelProgress:
    """A bar and a line for each run under way; what ended scrolls above."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console, self._course = console, Course(clock)
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=4)

    def checking(self, number: int) -> None:
        """Say that recipes are checked."""
        if number:
            self._console.print(Text(to_check(number), style="dim"))

    def begin(self, jobs: Sequence[Job], done: Sequence[Job], at_once: int) -> None:
        """Start to draw."""
        self._course.begin(jobs, done, at_once)
        self._live.start()

    def started(self, job: Job) -> None:
        """One more line."""
        self._course.start(job)

    def event(self, job: Job, event: Event) -> None:
        """The next redraw shows it."""
        self._course.event(job, event)

    def ended(self, job: Job, seconds: float, reason: str) -> None:
        """Leave a line above the panel."""
        self._course.end(job, seconds, reason)
        style = "red" if reason else ""
        self._console.print(Text(outcome(job, seconds, reason), style=style))

    def beat(self) -> None:
        """Nothing: the panel redraws itself."""

    def close(self) -> None:
        """Leave the last panel standing and give the terminal back."""
        if self._live.is_started:
            self._live.stop()

    def render(self) -> RenderableType:
        """The panel as it is now."""
        course = self._course
        bar = ProgressBar(total=max(1, course.total), completed=course.ended, width=28)
        failed = f", {course.failed} failed" if course.failed else ""
        said = f"{course.ended} of {course.total} runs{failed}{course.left()}"
        head = Table.grid(padding=(0, 2))
        head.add_row(bar, Text(said))
        lines = [
            Text(f"  {name}: {doing(status)}", style="dim", overflow="ellipsis", no_wrap=True)
            for name, status in course.running.items()
        ]
        return Group(head, *lines)
