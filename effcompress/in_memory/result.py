"""What a script is told: the mini-groups of a model as a table, and the result of a cut."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from effcompress.in_memory.session import Session, Size
from effcompress.report.charts import alone
from effcompress.report.pictures import left_picture, shape_pictures
from effcompress.types import AxisMap, Config, Cut, GroupSet, Plan, axis_kind


@dataclass(frozen=True)
class MiniGroups:
    """The mini-groups along one axis: ``units`` of them, each with so many ``params`` (in the model
    as it is now); at least ``minimum`` stay. ``layer`` is None for channels of the residual stream.
    """

    name: str
    kind: str
    layer: int | None
    units: int
    params: int
    minimum: int


@dataclass(frozen=True)
class Groups(Sequence[MiniGroups]):
    """All that a space may cut of a model, set by set; shown as a table by kinds."""

    params: int
    """Parameters of the model."""
    sets: tuple[MiniGroups, ...]
    found: tuple[GroupSet, ...] = field(repr=False)
    axes: AxisMap = field(repr=False)
    config: Config = field(repr=False)

    def __len__(self) -> int:
        return len(self.sets)

    def __getitem__(self, place: Any) -> Any:
        """A set by its place, or by its name (``ffn.3``)."""
        if isinstance(place, str):
            return next(s for s in self.sets if s.name == place)
        return self.sets[place]

    def __iter__(self) -> Iterator[MiniGroups]:
        return iter(self.sets)

    @property
    def kinds(self) -> dict[str, tuple[MiniGroups, ...]]:
        """Kind -> its sets, in layer order."""
        kinds = dict.fromkeys(s.kind for s in self.sets)
        return {kind: tuple(s for s in self.sets if s.kind == kind) for kind in kinds}

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Yields kind, sets, units and parameters of a unit, as texts."""
        for kind, sets in self.kinds.items():
            units, each = ({getattr(s, name) for s in sets} for name in ("units", "params"))
            yield kind, str(len(sets)), _span(units), _span(each)

    def __str__(self) -> str:
        lines = [_HEAD, *self.rows()]
        widths = [max(len(line[k]) for line in lines) for k in range(len(_HEAD))]
        shown = ("  ".join(c.ljust(w) for c, w in zip(x, widths, strict=True)) for x in lines)
        return "\n".join([f"{self.params:,} parameters", *(line.rstrip() for line in shown)])

    def _repr_html_(self) -> str:
        return f"<p>{self.params:,} parameters</p>{_table(_HEAD, self.rows())}"


_HEAD = ("kind", "sets", "units of each", "parameters of one")


@dataclass(frozen=True)
class PruneResult:
    """What was cut: the model ``before`` (with the zero biases that a repair added) and ``after``,
    and the ``plan`` (set -> units that went, by their number before the first cut).
    """

    before: Size
    after: Size
    plan: Plan
    cuts: tuple[Cut, ...] = ()
    """Every cut by itself, with the saliency of what went."""
    warnings: tuple[str, ...] = ()

    @property
    def kept(self) -> dict[str, list[int]]:
        """Set of the plan -> the units that are left, by their number before the first cut."""
        return {
            name: [u for u in range(self.before.widths[name]) if u not in {*gone}]
            for name, gone in self.plan.items()
        }

    @property
    def removed(self) -> dict[str, int]:
        """Kind -> units that went, of all its sets."""
        found: dict[str, int] = {}
        for name, units in self.plan.items():
            found[axis_kind(name)] = found.get(axis_kind(name), 0) + len(units)
        return found

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Yields what a table shows: a field, its value before and after."""
        yield "parameters", f"{self.before.params:,}", f"{self.after.params:,}"
        for name in dict.fromkeys((*self.before.shape, *self.after.shape)):
            had, has = (_value(size.shape.get(name, "")) for size in (self.before, self.after))
            yield name, had, has

    def __str__(self) -> str:
        change = self.after.params / self.before.params - 1
        gone = ", ".join(f"{kind} {n}" for kind, n in self.removed.items()) or "nothing"
        return (
            f"{self.before.params:,} -> {self.after.params:,} parameters ({change:+.1%}); "
            f"went: {gone}"
        )

    def pictures(self) -> dict[str, str]:
        """Returns name -> text of an SVG file, drawn as in the report of a run: what is left of
        every kind that lost something (``left``), and its units layer by layer (``shape_ffn``).
        """
        sizes, had, has = (self.before, self.after), self.before.widths, self.after.widths
        params = sizes[0].params, sizes[1].params
        drawn = {"left": left_picture(self.removed, had, has, params)}
        drawn |= dict(shape_pictures(self.removed, had, has))
        return {name: alone(svg) for name, svg in drawn.items()}

    def _repr_html_(self) -> str:
        return _table(("", "before", "after"), self.rows()) + "".join(self.pictures().values())


def result_of(session: Session, before: Size, plan: Plan | None = None) -> PruneResult:
    """Returns what a session has done since ``before``; ``plan``: what went, if not by cuts."""
    whole: Plan = {name: [*units] for name, units in (plan or {}).items()}
    for cut in session.log.cuts:
        for name, units in cut.plan.items():
            whole[name] = sorted([*whole.get(name, []), *units])
    log = session.log
    return PruneResult(before, session.size, whole, tuple(log.cuts), tuple(log.warnings))


def _span(values: set[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _table(head: Sequence[str], rows: Any) -> str:
    def line(cells: Mapping[int, str] | Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"
