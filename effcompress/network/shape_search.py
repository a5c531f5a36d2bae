"""Enumerates the shapes of a grid that are not above a size, without torch (arXiv:2407.14679,
as NVIDIA ModelOpt searches).
"""

import bisect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from effcompress.errors import CoverageError, did_you_mean
from effcompress.network.active import active_params, active_terms
from effcompress.network.shapes import wanted, widths_of
from effcompress.spec import PruneSpec, SearchSpec
from effcompress.types import DEPTH, AxisMap, Config, GroupSet

MOST = 20_000
"""Combinations of all kinds but one, above which a grid is refused."""
STEPS = 8
"""Without a step in the grid, a kind's is the largest power of 2 that fits so often into all."""


@dataclass(frozen=True)
class SizedShape:
    """Units left of each kind, in every layer (``layer``: layers left in all), and the parameters
    of that model.
    """

    units: Mapping[str, int]
    params: int
    active: int = 0
    """Parameters that a token meets; 0 where the target does not ask for them."""

    @property
    def counted(self) -> int:
        """What the target limits."""
        return self.active or self.params


def shapes_of(
    prune: PruneSpec, axes: AxisMap, sets: Sequence[GroupSet], config: Config
) -> list[SizedShape]:
    """Returns the shapes that a recipe's search tries, the largest first; none where every shape of
    the grid is above its target.

    Raises CoverageError as ``largest_shapes``.
    """
    assert prune.search is not None
    limit, counts = limit_of(prune, axes, sets), prune.target.active_params is not None
    return largest_shapes(axes, sets, prune.search, limit, config if counts else None)


def limit_of(prune: PruneSpec, axes: AxisMap, sets: Sequence[GroupSet]) -> int:
    """Returns the parameters that a searched shape may have, or those that a token may meet."""
    limit = prune.target.active_params or wanted(prune.target, axes, sets)
    assert limit is not None, "a search needs a target of parameters"
    return limit


def largest_shapes(
    axes: AxisMap,
    sets: Sequence[GroupSet],
    search: SearchSpec,
    limit: int,
    config: Config | None = None,
) -> list[SizedShape]:
    """Returns the ``search.top`` largest shapes of at most ``limit`` parameters, largest first;
    none where every shape of the grid is larger. With a ``config``, of parameters that a token
    meets; of shapes with equally many the larger ones come first.

    Raises CoverageError for a kind of the grid that nothing cuts, and for a grid that is too fine.
    """
    choices = {kind: _choices(kind, sets, search) for kind in dict.fromkeys(s.kind for s in sets)}
    for kind in search.grid or {}:
        if kind not in choices:
            raise CoverageError(
                f"prune.search.grid names '{kind}', which nothing under prune.space cuts",
                fix=did_you_mean(kind, choices),
            )
    if (many := math.prod(map(len, choices.values())) // max(map(len, choices.values()))) > MOST:
        raise CoverageError(
            f"prune.search.grid: {many:,} combinations are too many to be priced",
            fix="Write larger steps, e.g. `grid: {hidden: 64, ffn: 128}`.",
        )
    found = sorted(
        _below(_Model(axes, sets, config), choices, search.top, limit),
        key=lambda shape: (-shape.counted, -shape.params, *shape.units.values()),
    )
    return found[: search.top]


def smallest_shape(
    axes: AxisMap, sets: Sequence[GroupSet], search: SearchSpec, config: Config | None = None
) -> SizedShape:
    """Returns the smallest shape of the grid."""
    kinds = dict.fromkeys(s.kind for s in sets)
    units = {kind: min(_choices(kind, sets, search)) for kind in kinds}
    return _Model(axes, sets, config).sized(units)


def _choices(kind: str, sets: Sequence[GroupSet], search: SearchSpec) -> list[int]:
    """The units of one kind that may be left, ascending: all there are, and the multiples of its
    step below that the limits of the search and of the space allow.
    """
    held = [s for s in sets if s.kind == kind]
    deep = kind in DEPTH
    most = len(held) if deep else min(s.size for s in held)
    fraction = search.max_depth if deep else search.max_width
    # Not below the limit by a rounding error: 0.6 * 5 is 3.0000000000000004 less an ulp or more.
    least = math.ceil(most * (1 - fraction) - 1e-9)
    least = max(least, 1, *(s.floor if deep else s.minimum for s in held))
    step = _step(kind, most, search)
    allowed = [
        units
        for units in range(-(-least // step) * step, most, step)
        if all((s.size - units) % s.round_to == 0 for s in held if not deep)
    ]
    return [*allowed, most]


def _step(kind: str, most: int, search: SearchSpec) -> int:
    return (search.grid or {}).get(kind) or 1 << max(0, (most // STEPS).bit_length() - 1)


Terms = Mapping[tuple[str, ...], int]
"""Parameters as a polynomial: the kinds whose units are multiplied -> the factor."""


@dataclass(frozen=True)
class _Model:
    """What is sized. ``config``: that of a model whose active parameters are limited."""

    axes: AxisMap
    sets: Sequence[GroupSet]
    config: Config | None

    def sized(self, units: Mapping[str, int]) -> SizedShape:
        """Returns a shape with its size."""
        wide = widths_of(units, self.sets)
        met = 0 if self.config is None else active_params(self.axes, self.config, wide)
        return SizedShape(units, self.axes.count(wide), met)

    def terms(self, depth: Mapping[str, int], *, active: bool) -> Terms:
        """Returns the parameters at this depth as a polynomial in the units of the other kinds,
        which is priced in microseconds where a walk over the axes takes a millisecond.
        """
        axes = self.axes
        wide = {**axes.widths, **widths_of(depth, self.sets)}
        kinds = {s.name: s.kind for s in self.sets if s.kind not in DEPTH}
        found: dict[tuple[str, ...], int] = {}
        for param in axes.shapes:
            whole = axes.terms(param)
            met = active_terms(axes, self.config, param) if active and self.config else whole
            for names, factor in met:
                fixed = factor * math.prod(wide[name] for name in names if name not in kinds)
                cut = tuple(sorted(kinds[name] for name in names if name in kinds))
                found[cut] = found.get(cut, 0) + fixed
        return found


def _below(
    model: _Model, choices: Mapping[str, list[int]], top: int, limit: int
) -> Iterator[SizedShape]:
    """Yields, for every combination of the other kinds, the ``top`` largest shapes not above the
    limit along the kind of most choices: size ascends along it, so they are found by bisection.
    """
    deep = [kind for kind in choices if kind in DEPTH]
    wide = sorted((kind for kind in choices if kind not in DEPTH), key=lambda k: len(choices[k]))
    if not wide:
        depths = itertools.product(*(choices[kind] for kind in deep))
        sized = (model.sized(dict(zip(deep, chosen, strict=True))) for chosen in depths)
        yield from (shape for shape in sized if shape.counted <= limit)
        return
    *others, longest = wide
    for depth in itertools.product(*(choices[kind] for kind in deep)):
        known = dict(zip(deep, depth, strict=True))
        counted = model.terms(known, active=True)
        whole = model.terms(known, active=False)
        for chosen in itertools.product(*(choices[kind] for kind in others)):
            known |= zip(others, chosen, strict=True)
            size = partial(_size, counted, known, longest)
            end = bisect.bisect_right(choices[longest], limit, key=size)
            for units in choices[longest][max(0, end - top) : end]:
                shape = {**known, longest: units}
                ordered = {kind: shape[kind] for kind in choices}
                met = size(units) if model.config is not None else 0
                yield SizedShape(ordered, _size(whole, known, longest, units), met)


def _size(terms: Terms, known: Mapping[str, int], kind: str, units: int) -> int:
    def value(name: str) -> int:
        return units if name == kind else known[name]

    return sum(factor * math.prod(map(value, kinds)) for kinds, factor in terms.items())
