"""The live panel of a run, and the ``Status`` that plain lines and ``status`` show too."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TextIO, final

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from effcompress.errors import printable
from effcompress.record import events
from effcompress.record.events import Event
from effcompress.record.kind_labels import of
from effcompress.record.readable import clock_time, count
from effcompress.record.sentences import removed, sentence


class View:
    """What ``Log`` calls to show a run; here every method does nothing."""

    def event(self, event: Event) -> None: ...
    def phase(self, name: str, total_tokens: int | None = None) -> None: ...
    def progress(self, unit: str, done: int, total: int | None) -> None: ...
    def expect(self, seconds: float) -> None: ...
    def note(self, text: str) -> None: ...
    def beat(self) -> None: ...
    def restore(self, kept: Iterable[Event]) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` units (None: unknown) of a phase are done after ``seconds``."""

    unit: str
    done: int
    total: int | None
    seconds: float

    @property
    def eta(self) -> float | None:
        """Seconds left, if all units take equally long."""
        if self.total is None or not self.done:
            return None
        return self.seconds / self.done * (self.total - self.done)

    def __str__(self) -> str:
        left = "" if self.eta is None else f", {clock_time(self.eta)} left"
        of = "" if self.total is None else f" of {self.total}"
        return f"{self.unit} {self.done}{of}{left}"


@final
class Status:
    """How far a run is, from its events so far."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.started = clock()
        self.phase = "start"
        self.progress: Progress | None = None
        self.until: float | None = None
        """When the phase is expected to end, by the clock, where it was forecast."""
        self._unit_began = self.started
        self.total_tokens: int | None = None
        self.run: events.Run | None = None
        self.step: events.Step | None = None
        self.cut: events.Cut | None = None
        self.mixture: events.Mixture | None = None
        self.losses: deque[float] = deque(maxlen=400)
        self.rates: deque[float] = deque(maxlen=20)

    def update(self, event: Event) -> None:
        match event:
            case events.Run():
                self.run = event
                self.total_tokens = event.total_tokens or self.total_tokens
            case events.Step():
                self.step, self.progress = event, None
                self.losses.append(event.loss)
                self.rates.append(max(0.0, event.tokens_per_second))
            case events.Cut():
                self.cut, self.progress = event, None
            case events.Mixture():
                self.mixture = event

    def enter(self, phase: str, total_tokens: int | None) -> None:
        self.phase, self.progress, self._unit_began = phase, None, self.clock()
        self.until = None
        self.total_tokens = total_tokens or self.total_tokens

    def advance(self, unit: str, done: int, total: int | None) -> None:
        """Takes in progress of the phase; ``done=0`` starts its clock."""
        if not done:
            self._unit_began = self.clock()
        self.progress = Progress(unit, done, total, self.clock() - self._unit_began)

    def expect(self, seconds: float) -> None:
        """Takes in how long the phase is expected to take from now on."""
        self.until = self.clock() + seconds

    @property
    def params(self) -> int | None:
        """Parameters now."""
        if self.cut and (self.step is None or self.cut.step >= self.step.step):
            return self.cut.params  # the cut of a step comes after it
        latest = self.step or self.run
        return latest.params if latest else None

    @property
    def target(self) -> int | None:
        """Parameters wanted at the end; None where nothing is pruned."""
        return self.run.target_params if self.run else None

    @property
    def rate(self) -> float | None:
        """Tokens per second over the last 20 steps: the harmonic mean, as steps have as many."""
        return statistics.harmonic_mean(self.rates) if self.rates else None

    @property
    def elapsed(self) -> float:
        """Seconds since the view began."""
        return self.clock() - self.started

    @property
    def eta(self) -> float | None:
        """Seconds left of a phase that reports its progress or was forecast (the proof), or of
        training from the tokens left; None where nothing is known, as for the export. A phase that
        takes longer than was forecast has none either.
        """
        if self.progress is not None:
            return self.progress.eta
        if self.until is not None:
            return left if (left := self.until - self.clock()) > 0 else None
        if not self.rate or not self.total_tokens or not self.step:
            return None
        left = self.total_tokens - self.step.tokens
        return left / self.rate if left > 0 else None

    def size(self) -> str:
        """``127M -> 114.3M``: parameters now and the target."""
        if self.params is None:
            return ""
        goal = f" -> {count(self.target)}" if self.target else ""
        return f"{count(self.params)}{goal}"

    def last_cut(self) -> str:
        """``FFN 2, hidden 1``: the units of the last cut."""
        return removed(self.cut.removed) if self.cut else ""

    def weights(self) -> str:
        """``prose 62 %, code 38 %``: the weights of the domains now, where they change."""
        held = self.mixture.weights if self.mixture else {}
        falling = sorted(held.items(), key=lambda pair: -pair[1])
        return ", ".join(f"{name} {weight:.0%}".replace("%", " %") for name, weight in falling)

    def line(self) -> str:
        """Everything in one line of plain text."""
        parts = [f"[{clock_time(self.elapsed)}] {self.phase}"]
        if self.progress is not None:
            return f"{parts[0]} | {self.progress}"
        if self.step:
            of = f" of {count(self.total_tokens)}" if self.total_tokens else ""
            parts.append(f"step {self.step.step}, {count(self.step.tokens)}{of} tokens")
            parts.append(f"{count(self.rate or 0)} tokens/s, loss {self.step.loss:.3f}")
        if self.params is not None:
            parts.append(f"{self.size()} parameters")
        if self.mixture:
            parts.append(f"mixture {self.weights()}")
        if self.cut:
            parts.append(f"last cut {self.last_cut()}")
        if self.eta is not None:
            parts.append(f"{clock_time(self.eta)} left")
        return " | ".join(parts)


BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of ``values`` in ``width`` characters, each for the mean of equally many."""
    if len(values) < 2:
        return ""
    width = min(width, len(values))
    edges = [i * len(values) // width for i in range(width + 1)]
    means = [statistics.fmean(values[a:b]) for a, b in pairwise(edges)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(BLOCKS[round((m - low) / span * (len(BLOCKS) - 1))] for m in means)


@final
class LiveView(View):
    """A panel that redraws itself; results and warnings scroll above it."""

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
        """Takes in one event; results and warnings also get a line of their own."""
        self._begin()
        self.status.update(event)
        if text := sentence(event):
            style = {"warning": "yellow", "end": "bold"}.get(event.event, "")
            failed = isinstance(event, events.End) and event.status == "failed"
            self.console.print(Text(printable(text), style="bold red" if failed else style))

    def phase(self, name: str, total_tokens: int | None = None) -> None:
        self._begin()
        self.status.enter(name, total_tokens)

    def progress(self, unit: str, done: int, total: int | None) -> None:
        self._begin()
        self.status.advance(unit, done, total)

    def expect(self, seconds: float) -> None:
        self._begin()
        self.status.expect(seconds)

    def note(self, text: str) -> None:
        """Shows a remark above the panel."""
        self._begin()
        self.console.print(Text(printable(text), style="dim"))

    def restore(self, kept: Iterable[Event]) -> None:
        """Takes in the events before a checkpoint without showing them."""
        for event in kept:
            self.status.update(event)

    def close(self) -> None:
        """Leaves the last panel on screen and releases the terminal."""
        if self._live.is_started:
            self._live.stop()

    def render(self) -> RenderableType:
        """The panel as it is now."""
        rows = Table.grid(padding=(0, 2), expand=True)
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
        for label, content in _rows(self.status, max(8, self.console.width - 50)):
            rows.add_row(label, content)
        name = self.status.run.name if self.status.run else "effcompress"
        phase = printable(self.status.phase)
        title = Text.assemble((f" {printable(name)} ", "bold"), (f"{phase} ", "cyan"))
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


def _bar(fraction: float, text: str, width: int, color: str) -> RenderableType:
    """A bar of fixed width with its numbers to the right."""
    line = Table.grid(padding=(0, 2))
    bar = ProgressBar(
        total=1.0, completed=fraction, width=width, complete_style=color, finished_style=color
    )
    line.add_row(bar, Text(text))
    return line


def _rows(status: Status, width: int) -> Iterator[tuple[str, RenderableType]]:
    """Label and content of each row for which there are events."""
    before, now, target = status.run and status.run.params, status.params, status.target
    if before and now and target and before > target:
        done = (before - now) / (before - target)
        yield "parameters", _bar(done, f"{status.size()} ({now / before - 1:.1%})", width, "blue")
    elif now:
        yield "parameters", Text(count(now))
    if (part := status.progress) is not None:
        if part.total is None:
            yield part.unit, Text(str(part.done))
        else:
            said = f"{part.done} of {part.total}"
            yield part.unit, _bar(part.done / part.total, said, width, "cyan")
        return
    step, total = status.step, status.total_tokens
    if step and total:
        done = step.tokens / total
        text = f"{count(step.tokens)} of {count(total)} ({done:.0%})"
        yield "tokens", _bar(done, text, width, "green")
    if step:
        yield "step", Text(f"{step.step} at {count(status.rate or 0)} tokens/s")
        course = (sparkline([*status.losses], width), "magenta")
        yield "loss", Text.assemble(f"{step.loss:.3f}  ", course)
    if status.mixture:
        yield "mixture", Text(status.weights())
    if (cut := status.cut) is not None:
        gone, lowest = cut.share_removed.items(), cut.saliency.items()
        yield "removed", Text("   ".join(f"{of(k).short} {part:.1%}" for k, part in gone))
        yield "last cut", Text(f"{status.last_cut()} at step {cut.step}")
        yield "saliency", Text("   ".join(f"{of(k).short} {low:.1e}" for k, low in lowest))
