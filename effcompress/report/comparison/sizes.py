"""Groups of methods that ended at the same size: ranks are within a group."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from effcompress.report.comparison.facts import Facts, Method

SAME_SIZE = 0.005
"""Relative difference of parameters that count as equal."""
APART = 0.05
"""A method that is alone, but this near to others, is compared with them."""


@dataclass(frozen=True)
class Size:
    """``params`` are what its methods were asked for, or what most of them have. Where they are
    ``zeroed``, these are the weights that are not zero.
    """

    params: float
    labels: tuple[str, ...]
    zeroed: bool = False

    @property
    def words(self) -> str:
        """``113,000,000 parameters``."""
        what = "weights that are not zero" if self.zeroed else "parameters"
        return f"{self.params:,.0f} {what}"


def effective(facts: Facts) -> int:
    """Weights that are not zero: what a size is counted in."""
    return facts.params - facts.zeroed


def _wanted(method: Method) -> float | None:
    """Target parameters; without a target (or where weights were zeroed), those of the result."""
    targets = [a.target for a in method.attempts if a.target]
    if targets and not any(f.zeroed for f in method.done):
        return float(targets[0])
    return statistics.fmean(map(effective, method.done)) if method.done else None


def sizes(methods: Sequence[Method]) -> list[Size]:
    """Returns the sizes, largest first; last those of methods that zero weights and remove none of
    them: their models are no smaller, so they are ranked apart. Methods of unknown size (they
    failed before) belong to the largest group.
    """
    zero = [m for m in methods if any(f.zeroed for f in m.done)]
    removed = [m for m in methods if m not in zero]
    return [*_sizes(removed, zeroed=False), *_sizes(zero, zeroed=True)]


def _sizes(methods: Sequence[Method], *, zeroed: bool) -> list[Size]:
    wanted = {m.label: w for m in methods if (w := _wanted(m)) is not None}
    groups: list[list[str]] = []
    for label in sorted(wanted, key=lambda n: -wanted[n]):
        if groups and wanted[groups[-1][0]] / wanted[label] - 1 <= 2 * SAME_SIZE:
            groups[-1].append(label)
        else:
            groups.append([label])
    groups = _joined(groups, wanted)
    found = [Size(_reference([wanted[n] for n in group]), tuple(group), zeroed) for group in groups]
    unknown = tuple(m.label for m in methods if m.label not in wanted)
    if unknown and not found:
        return [Size(0.0, unknown, zeroed)]
    if unknown:
        largest = max(range(len(found)), key=lambda k: len(found[k].labels))
        found[largest] = replace(found[largest], labels=(*found[largest].labels, *unknown))
    return found


def _joined(groups: list[list[str]], wanted: dict[str, float]) -> list[list[str]]:
    """Joins a method that is alone with the nearest group within ``APART``."""
    done: list[list[str]] = []
    for group in groups:
        near = done and wanted[done[-1][-1]] / wanted[group[0]] - 1 <= APART
        if near and 1 in (len(done[-1]), len(group)):
            done[-1] += group
        else:
            done.append(list(group))
    return done


def _reference(values: Sequence[float]) -> float:
    """The most common one; if all differ, the middle."""
    common = max(values, key=lambda v: (values.count(v), -values.index(v)))
    return common if values.count(common) > 1 else statistics.median_low(values)
