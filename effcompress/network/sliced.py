"""The shape of a model with a rotated and sliced residual stream, by arithmetic alone: no torch."""

from bisect import bisect_right
from dataclasses import dataclass

from effcompress import groups
from effcompress.errors import CoverageError
from effcompress.model.families.rotated import refusal, rotated, stream, untied
from effcompress.model.lineage import STREAM
from effcompress.selection.candidates import narrowest
from effcompress.spec import PruneSpec, RotateSpec
from effcompress.types import AxisMap, Config, Fields, GroupSet, Stream, axis_kind


@dataclass(frozen=True)
class SlicedShape:
    """What a recipe makes of a model: ``config`` with its stream, ``axes`` of the sliced model, and
    the width of its stream.
    """

    config: Fields
    axes: AxisMap
    width: int

    @property
    def stream(self) -> Stream:
        """How the sliced model is put together."""
        return self.config[STREAM]


def sliced_shape(prune: PruneSpec, config: Config, axes: AxisMap) -> SlicedShape:
    """Returns the sliced model of a recipe whose ``prune`` rotates, with the width that the target
    names, or the largest whose size is not above it.

    Raises CoverageError for models whose function a rotation would change, and for targets that no
    width has.
    """
    assert prune.rotate is not None
    config = _rotated_config(prune.rotate, config, axes)
    family = rotated(axes.family, config)
    outer, space = axes.widths["hidden"], _space(prune, axes)
    step, narrow = space.multiple, narrowest(space)

    def at(width: int) -> AxisMap:
        widths = {**axes.widths, "hidden": width, "outer": outer}
        return groups.from_widths(family, config, widths, axes.depth)

    shape = prune.target.shape
    if shape is not None:
        width = _named(shape.get("hidden"), len(shape), space)
        return SlicedShape(config, at(width), width)
    asked = prune.target.params or round((prune.target.keep or 0.0) * axes.count())
    whole = at(outer)
    # Every width adds parameters: the number of those that are not too large is a place.
    steps = range(narrow, outer + 1, step)
    fit = bisect_right(steps, asked, key=lambda width: whole.count({"hidden": width}))
    if not fit:
        least = whole.count({"hidden": narrow})
        lower = " or lower `minimum` under prune.space" if space.minimum > 1 else ""
        raise CoverageError(
            f"prune.target: {asked:,} parameters, and the narrowest stream leaves {least:,}",
            fix=f"Name at least {least:,}{lower}.",
        )
    return SlicedShape(config, at(steps[fit - 1]), steps[fit - 1])


def _rotated_config(rotate: RotateSpec, config: Config, axes: AxisMap) -> Fields:
    """Returns the configuration with its stream. Raises CoverageError where there can be none."""
    family, config = axes.family, axes.family.complete(config)
    why = refusal(family, config)
    if axes.depth.absent:
        why = f"{sorted(axes.depth.absent)[0].replace('.', ' of layer ')} is gone"
    if why:
        raise CoverageError(
            f"prune.rotate: a rotation would change what '{family.name}' computes: {why}",
            fix="Take prune.rotate out, and name a criterion.",
        )
    tied = bool(config.get("tie_word_embeddings"))
    one_width = family.residual(config).one_width
    if tied and one_width and rotate.tie == "split":
        raise CoverageError(
            f"prune.rotate.tie: split, but the class of '{family.name}' wants its last layer to be "
            "as wide as its embedding",
            fix="Write `tie: keep`.",
        )
    mapped = one_width or (tied and rotate.tie == "keep")
    made = stream(family, config, axes.widths["hidden"], mapped=mapped)
    return {**(config if mapped else untied(config)), STREAM: made}


def _space(prune: PruneSpec, axes: AxisMap) -> GroupSet:
    """Returns the channels with their limits. Raises CoverageError for another space."""
    sets = groups.find(axes, prune.space)
    if [axis_kind(s.name) for s in sets] != ["hidden"]:
        raise CoverageError(
            "prune.rotate slices the residual stream, and nothing else",
            fix="Write `space: [hidden]`; cut other kinds in a run of their own.",
        )
    return sets[0]


def _named(width: int | None, kinds: int, space: GroupSet) -> int:
    """Returns the width of a shape. Raises CoverageError where it is none of the stream."""
    outer, step, narrow = space.size, space.multiple, narrowest(space)
    if width is None or kinds > 1:
        raise CoverageError(
            "prune.target.shape: with prune.rotate it names the width of the stream, `hidden`",
            fix=f"E.g. `shape: {{hidden: {outer * 4 // 5 // step * step}}}`.",
        )
    if not narrow <= width <= outer or width % step:
        steps = f", in steps of {step}" if step > 1 else ""
        raise CoverageError(
            f"prune.target.shape: a stream of {width} channels, but there are {outer}",
            fix=f"Name {narrow} to {outer // step * step}{steps}.",
        )
    return width
