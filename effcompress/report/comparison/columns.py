"""The columns of a comparison: their values for a run and its dense model, and their format."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter, methodcaller

from effcompress.record import readable
from effcompress.report.comparison.facts import Facts
from effcompress.report.comparison.spread import Spread, geometric_mean

Number = Callable[[Facts], float | None]
QUALITY = "perplexity"
"""Key of the column that methods are ranked by."""
HUGE = 1e6
EQUAL = 1e-9
"""Relative deviation below which all seeds gave the same."""


@dataclass(frozen=True)
class Column:
    """``of`` returns the value of a run, ``dense`` that of the model it started from. ``brief`` is
    the title for a terminal, if it is another; ``help`` one sentence. ``write`` formats a mean;
    ``spreads``: whether the deviation is written too. ``key`` has a slash where the column is that
    of a single domain or task.
    """

    key: str
    title: str
    help: str
    write: Callable[[float], str]
    of: Number
    dense: Number
    spreads: bool = False
    brief: str = ""

    def cell(self, value: Spread | None) -> str:
        """Returns mean and deviation as text; empty for an unknown value."""
        if value is None:
            return ""
        text = self.write(value.mean)
        if self.spreads and value.deviation and value.deviation > EQUAL * abs(value.mean):
            text += f" \u00b1 {self.write(value.deviation)}"
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


HELP = {
    "params": "parameters of the result (a tied embedding counts once)",
    "removed": "parameters that are gone: the file is smaller and the model faster",
    "zeroed": "weights that are zero but still there: file and speed are unchanged",
    "trained": "tokens trained on after (or while) pruning",
    "flops": "operations of training steps (forward, backward and teacher, counted at the size of "
    "every step) and of calibration, search, repairs and refits beside them",
    "agreement": "held-out tokens for which the source model's most likely next token is the same; "
    "mean over the domains",
    "divergence": "KL divergence of the source model's next-token distribution to this one's, nats "
    "per token; mean over the domains",
    "prune_seconds": "spent on measuring, choosing and removing; saliency that rides on training "
    "is part of training",
    "prune_memory": "peak while pruning: of the process on a CPU, of the device on a GPU",
    "seconds": "of the whole run: evaluation, training, export and its proof included",
}


def _fact(key: str, title: str, write: Callable[[float], str], brief: str, dense: Number) -> Column:
    """A column of the fact ``key``."""
    return Column(key, title, HELP[key], write, attrgetter(key), dense, brief=brief)


def _zero(_: Facts) -> float:
    """The dense model was neither cut nor trained."""
    return 0.0


def _none(_: Facts) -> None:
    """The dense model has no run of its own."""


SIZE = (
    _fact("params", "parameters", amount, "params", attrgetter("dense_params")),
    _fact("removed", "removed", amount, "", _zero),
    _fact("zeroed", "zeroed", amount, "", _zero),
)
SPENT = (
    _fact("trained", "training tokens", amount, "tokens", _zero),
    _fact("flops", "training FLOPs", readable.power, "FLOPs", _zero),
    _fact("prune_seconds", "pruning time", elapsed, "prune", _none),
    _fact("prune_memory", "pruning memory", readable.size, "memory", _none),
    _fact("seconds", "wall time", elapsed, "time", _none),
)


def _one(_: Facts) -> float:
    """The dense model agrees with itself."""
    return 1.0


ALIKE = (
    replace(_fact("agreement", "same token", share, "same", _one), spreads=True),
    replace(_fact("divergence", "KL to source", readable.decimal, "KL", _zero), spreads=True),
)


def columns(facts: Iterable[Facts]) -> tuple[Column, ...]:
    """Returns all columns: quality, size and cost, then single domains and tasks of the runs."""
    known = list(facts)
    domains = _names(f.after or f.before for f in known)
    tasks = _names(f.tasks_after or f.tasks_before for f in known)
    told = "of held-out text, per token: the geometric mean over the domains; lower is better"
    quality = [_measured(QUALITY, "perplexity", told, lambda found: geometric_mean(found.values()))]
    single: list[Column] = []
    for name in domains if len(domains) > 1 else ():
        told = f"perplexity of held-out text of the domain {name}"
        single.append(_measured(f"{QUALITY}/{name}", name, told, methodcaller("get", name)))
    if tasks:
        told = f"mean over the {len(tasks)} zero-shot tasks; higher is better"
        mean = _measured("accuracy", "accuracy", told, lambda f: _average(f, tasks), tasks=True)
        quality.append(replace(mean, brief="acc"))
    if any(f.agreement is not None for f in known):
        quality += ALIKE
    for name in tasks if len(tasks) > 1 else ():
        told, get = f"accuracy in the zero-shot task {name}", methodcaller("get", name)
        one = _measured(f"accuracy/{name}", name, told, get, tasks=True)
        single.append(replace(one, spreads=False))
    return (*quality, *SIZE, *SPENT, *single)


def _measured(
    key: str,
    title: str,
    help: str,
    take: Callable[[Mapping[str, float]], float | None],
    *,
    tasks: bool = False,
) -> Column:
    """A column of what ``take`` returns of perplexities by domain, or of accuracies by task."""
    before, after = ("tasks_before", "tasks_after") if tasks else ("before", "after")

    def number(field: str) -> Number:
        return lambda facts: take(found) if (found := getattr(facts, field)) else None

    write = share if tasks else perplexity
    return Column(key, title, help, write, number(after), number(before), spreads=True)


def _average(tasks: Mapping[str, float], all_of: list[str]) -> float | None:
    """None where a task is missing: means over different tasks are not comparable."""
    if any(name not in tasks for name in all_of):
        return None
    return statistics.fmean(tasks[name] for name in all_of)


def _names(found: Iterable[Mapping[str, float] | None]) -> list[str]:
    return list(dict.fromkeys(name for one in found for name in one or ()))
