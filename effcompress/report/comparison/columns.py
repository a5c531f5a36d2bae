"""The columns of a comparison: their values for a run and its dense model, and their format."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from effcompress.record import readable
from effcompress.report.comparison.facts import Facts
from effcompress.report.comparison.spread import Spread, geometric_mean

Number = Callable[[Facts], float | None]
QUALITY = "perplexity"
"""Key of the column that methods are ranked by."""
HUGE = 1e6
EQUAL = 1e-9
"""Relative deviation below which all seeds gave the same."""
PLUS_MINUS = "\u00b1"


@dataclass(frozen=True)
class Column:
    """``of`` returns the value of a run, ``dense`` that of the model it started from (None: it has
    no run of its own). ``brief`` is the title for a terminal, if it is another; ``help`` one
    sentence. ``write`` formats a mean; ``spreads``: whether the deviation is written too.
    """

    key: str
    title: str
    help: str
    write: Callable[[float], str]
    of: Number
    dense: Number = lambda _: None
    spreads: bool = False
    brief: str = ""

    def cell(self, value: Spread | None) -> str:
        """Returns mean and deviation as text; empty for an unknown value."""
        if value is None:
            return ""
        text = self.write(value.mean)
        if self.spreads and value.deviation and value.deviation > EQUAL * abs(value.mean):
            text += f" {PLUS_MINUS} {self.write(value.deviation)}"
        return text


def perplexity(value: float) -> str:
    """``23.41``; a power of ten where there are too many digits."""
    return readable.power(value) if abs(value) >= HUGE else readable.decimal(value)


def share(value: float) -> str:
    """``45.3 %``."""
    return f"{100 * value:.1f} %"


def amount(value: float) -> str:
    """``113.01M``, ``18.79k``, ``512``: enough digits to see half a percent."""
    size, unit = next(((s, u) for s, u in readable.UNITS if abs(value) >= s), (1.0, ""))
    return (
        f"{value / size:.0f}" if size == 1 else f"{value / size:.2f}".rstrip("0").rstrip(".") + unit
    )


def elapsed(value: float) -> str:
    """``84 ms``, ``5 min 1 s``."""
    return f"{1000 * value:.0f} ms" if 0 < value < 0.95 else readable.duration(value)


def nothing(_: Facts) -> float:
    """Zero: the dense model was neither cut nor trained."""
    return 0.0


SIZE = (
    Column(
        "params",
        "parameters",
        "parameters of the result (a tied embedding counts once)",
        amount,
        lambda f: f.params,
        lambda f: f.dense_params,
        brief="params",
    ),
    Column(
        "removed",
        "removed",
        "parameters that are gone: the file is smaller and the model faster",
        amount,
        lambda f: f.dense_params - f.params,
        nothing,
    ),
    Column(
        "zeroed",
        "zeroed",
        "weights that are zero but still there: file and speed are unchanged",
        amount,
        lambda f: f.zeroed,
        nothing,
    ),
)
SPENT = (
    Column(
        "trained",
        "training tokens",
        "tokens trained on after (or while) pruning",
        amount,
        lambda f: f.trained,
        nothing,
        brief="tokens",
    ),
    Column(
        "flops",
        "training FLOPs",
        "operations of training, forward and backward, counted at the size of every step",
        readable.power,
        lambda f: f.flops,
        nothing,
        brief="FLOPs",
    ),
    Column(
        "prune_seconds",
        "pruning time",
        "spent on measuring, choosing and removing; saliency that rides on training is part of "
        "training",
        elapsed,
        lambda f: f.prune_seconds,
        brief="prune",
    ),
    Column(
        "prune_memory",
        "pruning memory",
        "peak while pruning: of the process on a CPU, of the device on a GPU",
        readable.size,
        lambda f: f.prune_memory,
        brief="memory",
    ),
    Column(
        "seconds",
        "wall time",
        "of the whole run: evaluation, training, export and its proof included",
        elapsed,
        lambda f: f.seconds,
        brief="time",
    ),
)


def columns(facts: Iterable[Facts]) -> tuple[Column, ...]:
    """Returns all columns; the runs give the domains and tasks."""
    known = list(facts)
    domains = _names(f.after or f.before for f in known)
    tasks = _names(f.tasks_after or f.tasks_before for f in known)
    quality = [
        Column(
            QUALITY,
            "perplexity",
            "of held-out text, per token: the geometric mean over the domains; lower is better",
            perplexity,
            lambda f: geometric_mean(f.after.values()) if f.after else None,
            lambda f: geometric_mean(f.before.values()) if f.before else None,
            spreads=True,
        )
    ]
    quality += map(_of_domain, domains if len(domains) > 1 else ())
    if tasks:
        mean = Column(
            "accuracy",
            "accuracy",
            f"mean over the {len(tasks)} zero-shot tasks; higher is better",
            share,
            lambda f: _average(f.tasks_after, tasks),
            lambda f: _average(f.tasks_before, tasks),
            spreads=True,
            brief="acc",
        )
        quality += [mean, *map(_of_task, tasks if len(tasks) > 1 else ())]
    return (*SIZE, *quality, *SPENT)


def _of_domain(name: str) -> Column:
    return Column(
        f"{QUALITY}/{name}",
        name,
        f"perplexity of held-out text of the domain {name}",
        perplexity,
        lambda f: (f.after or {}).get(name),
        lambda f: (f.before or {}).get(name),
        spreads=True,
    )


def _of_task(name: str) -> Column:
    return Column(
        f"accuracy/{name}",
        name,
        f"accuracy in the zero-shot task {name}",
        share,
        lambda f: (f.tasks_after or {}).get(name),
        lambda f: (f.tasks_before or {}).get(name),
    )


def _average(tasks: Mapping[str, float] | None, all_of: list[str]) -> float | None:
    """None where a task is missing: means over different tasks are not comparable."""
    if not tasks or any(name not in tasks for name in all_of):
        return None
    return statistics.fmean(tasks[name] for name in all_of)


def _names(found: Iterable[Mapping[str, float] | None]) -> list[str]:
    return list(dict.fromkeys(name for one in found for name in one or ()))
