"""What a run looks like while it runs, and the panel that shows it on a terminal.

This panel and the plain lines in ``record/log.py`` draw from the same ``Status`` and
``record/sentences.py``.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TextIO, final

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from effcompress.record.kind_labels import of
from effcompress.record.sentences import Event, clock_time, count, removed, sentence


class View(Protocol):
    """What ``Log`` needs of a view."""

    def event(self, event: Event) -> None: ...

    def phase(self, name: str, total_tokens: int | None = None) -> None: ...

    def progress(self, unit: str, done: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...

    def beat(self) -> None: ...

    def restore(self, events: Iterable[Event]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Progress:
    """So many of ``total`` units of a phase are done, after so many ``seconds`` of it."""

    unit: str
    done: int
    total: int
    seconds: float

    @property
    def eta(self) -> float | None:
        """Seconds left, if units take equally long."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None

    def __str__(self) -> str:
        left = "" if self.eta is None else f", {clock_time(self.eta)} left"
        return f"{self.unit} {self.done} of {self.total}{left}"


@final
class Status:
    """What the events said so far, as far as somebody waiting wants to know it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.started = clock()
        self.phase = "start"
        self.progress: Progress | None = None
        self._unit_began = self.started
        self.total_tokens: int | None = None
        self.run: Event = {}
        self.step: Event = {}
        self.cut: Event = {}
        self.losses: deque[float] = deque(maxlen=400)
        self.rates: deque[float] = deque(maxlen=20)

    def update(self, event: Event) -> None:
        """Take in one event."""
        kind = event["event"]
        if kind == "run":
            self.run = event
            self.total_tokens = event.get("total_tokens") or self.total_tokens
        elif kind == "step":
            self.step, self.progress = event, None
            self.losses.append(event["loss"])
            self.rates.append(event["tokens_per_second"])
        elif kind == "cut":
            self.cut, self.progress = event, None

    def enter(self, phase: str, total_tokens: int | None) -> None:
        """A new part of the run begins."""
        self.phase, self.progress, self._unit_began = phase, None, self.clock()
        self.total_tokens = total_tokens or self.total_tokens

    def advance(self, unit: str, done: int, total: int) -> None:
        """Part of a phase is done; with none ``done``, it begins within the phase."""
        if not done:
            self._unit_began = self.clock()
        self.progress = Progress(unit, done, total, self.clock() - self._unit_began)

    @property
    def params(self) -> int | None:
        """Parameters now."""
        # Of one step, the cut comes after it.
        latest = max(self.cut, self.step, key=lambda event: event.get("step", -1))
        return latest.get("params", self.run.get("params"))

    @property
    def rate(self) -> float | None:
        """Tokens per second, averaged over the time of the last steps."""
        return statistics.harmonic_mean(self.rates) if self.rates else None

    @property
    def elapsed(self) -> float:
        """Seconds since the view began."""
        return self.clock() - self.started

    @property
    def eta(self) -> float | None:
        """Seconds left, from the tokens left (or from what is left of a phase)."""
        if self.progress is not None:
            return self.progress.eta
        if not self.rate or not self.total_tokens:
            return None
        return max(0, self.total_tokens - self.step["tokens"]) / self.rate

    def size(self) -> str:
        """``127M -> 114.3M``: parameters now and the target."""
        if self.params is None:
            return ""
        target = self.run.get("target_params")
        return f"{count(self.params)} -> {count(target)}" if target else count(self.params)

    def last_cut(self) -> str:
        """``FFN 2, hidden 1``: what went last."""
        return removed(self.cut["removed"]) if self.cut else ""

    def line(self) -> str:
        """Everything in one line of plain text."""
        parts = [f"[{clock_time(self.elapsed)}] {self.phase}"]
        if self.progress is not None:
            return f"{parts[0]} | {self.progress}"
        if self.step:
            of = f" of {count(self.total_tokens)}" if self.total_tokens else ""
            parts.append(f"step {self.step['step']}, {count(self.step['tokens'])}{of} tokens")
            parts.append(f"{count(self.rate or 0)} tokens/s, loss {self.step['loss']:.3f}")
        if self.params is not None:
            parts.append(f"{self.size()} parameters")
        if self.cut:
            parts.append(f"last cut {self.last_cut()}")
        if self.eta is not None:
            parts.append(f"{clock_time(self.eta)} left")
        return " | ".join(parts)


BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of ``values`` in ``width`` characters; each shows the mean of its share."""
    if len(values) < 2:
        return ""
    width = min(width, len(values))
    edges = [i * len(values) // width for i in range(width + 1)]
    means = [statistics.fmean(values[a:b]) for a, b in pairwise(edges)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(BLOCKS[round((m - low) / span * (len(BLOCKS) - 1))] for m in means)


@final
class LiveView:
    """A panel that redraws itself; what deserves to stay (results, warnings) scrolls above it."""

    def __init__(
        self,
        stream: TextIO,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.status = Status(clock)
        self.console = console or Console(file=stream)
        self._live = Live(
            get_renderable=self.render, console=self.console, refresh_per_second=4, transient=False
        )

    def event(self, event: Event) -> None:
        """Take in one event; results and warnings also get a line of their own."""
        self._begin()
        self.status.update(event)
        if text := sentence(event):
            style = {"warning": "yellow", "end": "bold"}.get(event["event"], "")
            self._say(text, "bold red" if event.get("status") == "failed" else style)

    def phase(self, name: str, total_tokens: int | None = None) -> None:
        """A new part of the run begins."""
        self._begin()
        self.status.enter(name, total_tokens)

    def progress(self, unit: str, done: int, total: int) -> None:
        """Part of a phase is done."""
        self._begin()
        self.status.advance(unit, done, total)

    def note(self, text: str) -> None:
        """Show a remark above the panel."""
        self._begin()
        self._say(text, "dim")

    def beat(self) -> None:
        """Nothing: the panel redraws itself."""

    def restore(self, events: Iterable[Event]) -> None:
        """Take in the events of an earlier part of the run without showing them."""
        for event in events:
            self.status.update(event)

    def close(self) -> None:
        """Leave the last panel standing and give the terminal back."""
        if self._live.is_started:
            self._live.stop()

    def render(self) -> RenderableType:
        """The panel as it is now."""
        rows = Table.grid(padding=(0, 2), expand=True)
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
        for label, content in _rows(self.status, max(8, self.console.width - 50)):
            rows.add_row(label, content)
        name = self.status.run.get("name", "effcompress")
        title = Text.assemble((f" {name} ", "bold"), (f"{self.status.phase} ", "cyan"))
        spent = f" {clock_time(self.status.elapsed)} elapsed"
        left = "" if self.status.eta is None else f", {clock_time(self.status.eta)} left"
        return Panel(
            rows,
            title=title,
            title_align="left",
            subtitle=f"{spent}{left} ",
            subtitle_align="right",
            border_style="dim",
        )

    def _begin(self) -> None:
        if not self._live.is_started:
            self._live.start()

    def _say(self, text: str, style: str) -> None:
        self.console.print(Text(text, style=style))


def _bar(share: float, text: str, width: int, color: str) -> RenderableType:
    """A bar of fixed width with its numbers to the right."""
    line = Table.grid(padding=(0, 2))
    bar = ProgressBar(
        total=1.0, completed=share, width=width, complete_style=color, finished_style=color
    )
    line.add_row(bar, Text(text))
    return line


def _rows(status: Status, width: int) -> Iterator[tuple[str, RenderableType]]:
    """The lines of the panel, as far as there is something to say."""
    before, now, target = status.run.get("params"), status.params, status.run.get("target_params")
    if before and now and target and before > target:
        share = (before - now) / (before - target)
        yield "parameters", _bar(share, f"{status.size()} ({now / before - 1:.1%})", width, "blue")
    elif now:
        yield "parameters", Text(count(now))
    if (part := status.progress) is not None:
        yield part.unit, _bar(part.done / part.total, f"{part.done} of {part.total}", width, "cyan")
        return
    step, total = status.step, status.total_tokens
    if step and total:
        share = step["tokens"] / total
        text = f"{count(step['tokens'])} of {count(total)} ({share:.0%})"
        yield "tokens", _bar(share, text, width, "green")
    if step:
        speed = f"{step['step']} at {count(status.rate or 0)} tokens/s"
        yield "step", Text(speed)
        loss = Text.assemble(
            f"{step['loss']:.3f}  ", (sparkline([*status.losses], width), "magenta")
        )
        yield "loss", loss
    if status.cut:
        shares = status.cut.get("share_removed", {}).items()
        yield "removed", Text("   ".join(f"{of(k).short} {s:.1%}" for k, s in shares))
        yield "last cut", Text(f"{status.last_cut()} at step {status.cut['step']}")
        lowest = status.cut.get("saliency", {}).items()
        yield "saliency", Text("   ".join(f"{of(k).short} {s:.1e}" for k, s in lowest))
