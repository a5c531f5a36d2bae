"""Declarations of rotated models: the same architecture with a residual stream that is narrower
than the embedding and has a basis of its own in front of every block (``modeling_pruned.Rotated``).

Two axes take the place of ``hidden``: ``hidden`` is the stream within the layers, ``outer`` is what
the last layer writes, and what lies outside the layers where the embedding is the output matrix.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from effcompress.model.lineage import STREAM
from effcompress.types import Axis, Config, Family, Fields, Stream, Widths

SHORTCUTS = ("attention_shortcut", "mlp_shortcut")
"""Modules of the residual additions behind the two blocks of a layer."""
SHORTCUT = "shortcut"
"""The one of layers whose blocks read the same stream."""
INPUT_MAP = "input_map"
"""From the embedding into the stream, in the first layer."""
_LAST, _INNER = "in the last layer", "in the other layers"


def refusal(family: Family, config: Config) -> str:
    """Returns why a rotation of the stream would change the function; empty where it would not."""
    if config.get(STREAM):
        return "its stream is rotated already"
    if family.traced or not family.sublayers:
        return "it was traced, and which modules read and write the stream is not declared"
    if family.norms_behind(config):
        return "norms lie between the blocks and the stream, and their gains do not commute with it"
    if "hidden" in family.fixed:
        return f"its stream stays as it is: {family.unreached.get('hidden', 'so it is declared')}"
    if family.residual_scale(config) != 1:
        return "what a block adds is multiplied by a number before it comes to the stream"
    if not family.residual(config).alone:
        return "its layers return more than the stream"
    if said := _of_blocks(family):
        return said
    if family.router:
        return (
            "its experts return as many channels as they read, but the last layer reads the sliced "
            "stream and writes the whole one"
        )
    if family.centred and (bare := _without_bias(family, config)):
        return f"the biases of its norms have no place in {bare}, which has none"
    return ""


def _of_blocks(family: Family) -> str:
    """Returns what is in the way of a rotation in the blocks of a layer."""
    if len(family.sublayers) != len(SHORTCUTS):
        return "more than one module mixes tokens in its layers"
    if any(part.instead for part in family.sublayers.values()):
        return "its layers are not all of one kind"
    if any(not part.through for part in family.sublayers.values()):
        return "both blocks of a layer read the same norm, and each needs one of its own"
    return ""


def stream(family: Family, config: Config, channels: int, *, mapped: bool) -> Stream:
    """Returns how the modules of a rotated model are put together, as JSON values."""
    residual = family.residual(config)
    norms = [part.through[0] for part in family.sublayers.values()]
    shortcuts = (SHORTCUT, SHORTCUT) if residual.parallel else SHORTCUTS
    runs = (residual.attention, residual.mlp)
    return Stream(
        layers=family.layers,
        blocks=[(n, s, list(run)) for n, s, run in zip(norms, shortcuts, runs, strict=True)],
        parallel=residual.parallel,
        final_norm=family.final_norm.removesuffix(".weight"),
        channels=channels,
        centred=family.centred,
        mapped=mapped,
        head=_head(family, config),
    )


def rotated(family: Family, config: Config) -> Family:
    """Returns the declaration of a rotated model; ``config`` has its stream."""
    held: Stream = config[STREAM]
    last = family.read(config, "num_hidden_layers") - 1
    axes = (*_kept(family, held), *_added(family, held))
    flags = dict(family.flags)
    for when in dict.fromkeys(axis.when for axis in axes):
        stated, _, where = when.partition(" & ")
        if where:
            flags[when] = _flag(family, stated, where == _LAST, last)

    def resize(config: Config, widths: Widths) -> Fields:
        return family.resize(config, {**widths, "hidden": held["channels"]})

    return replace(
        family,
        axes=axes,
        flags=flags,
        units={**family.units, "outer": family.units["hidden"]},
        fixed=(*family.fixed, "outer"),
        resize=resize,
        norms=tuple(gain for gain in family.norms if gain not in _of_stream(family)),
        centred=False,
        fed_by={},
        no_depth=lambda _: "the stream has a basis of its own in front of every block",
    )


def _of_stream(family: Family) -> set[str]:
    """Gains of the norms over the residual stream; others are within a block."""
    within = {axis.param for axis in family.axes if axis.name != "hidden"}
    return {*family.norms} - within


def _kept(family: Family, held: Stream) -> Iterator[Axis]:
    """Yields the axes of the parameters that a rotated model still has. Gains and biases of norms
    are in the linear layers behind them.
    """
    norms = {gain.removesuffix(".weight") for gain in _of_stream(family)}
    for axis in family.axes:
        if axis.param.rpartition(".")[0] in norms:
            continue
        if axis.name != "hidden":
            yield axis
        elif "{i}" not in axis.param:
            outer = held["mapped"] or axis.param.startswith(f"{held['head']}.")
            yield replace(axis, name="outer" if outer else "hidden")
        elif writes(family, axis) and (held["parallel"] or _in_mlp(family, axis.param)):
            yield from _by_layer(axis)
        else:
            yield axis


def _added(family: Family, held: Stream) -> Iterator[Axis]:
    """Yields the axes of shortcuts, of maps and of the output matrix's bias."""
    shortcuts = list(dict.fromkeys(shortcut for _, shortcut, _ in held["blocks"]))
    for name in shortcuts:
        param = f"{family.layer}.{name}.weight"
        out = Axis(param, 0, "hidden")
        yield from _by_layer(out) if name == shortcuts[-1] else (out,)
        yield Axis(param, 1, "hidden")
    if held["mapped"]:
        first = f"{family.layers}.0.{INPUT_MAP}.weight"
        yield from (Axis(first, 0, "hidden"), Axis(first, 1, "outer"))
        last = f"{held['final_norm']}.map"
        yield from (Axis(f"{last}.weight", dim, "outer") for dim in (0, 1))
        if held["centred"]:
            yield Axis(f"{last}.bias", 0, "outer")
    elif held["centred"]:
        rows = next(a for a in family.axes if a.param == f"{held['head']}.weight" and a.dim == 0)
        yield replace(rows, param=f"{held['head']}.bias")


def writes(family: Family, axis: Axis) -> bool:
    """Returns whether the hidden channels on ``axis``, of a parameter within a layer, are what a
    block adds to the stream (else what it reads).
    """
    if axis.param.endswith(".bias"):
        return True
    return axis.dim == 1 - family.inputs


def _in_mlp(family: Family, param: str) -> bool:
    inside = param.removeprefix(f"{family.layer}.")
    modules = family.sublayers["mlp_block"].modules
    return any(inside.startswith(f"{module}.") for module in modules)


def _by_layer(axis: Axis) -> Iterator[Axis]:
    """Yields an axis of all layers but the last, and of the last, which writes all channels."""
    stated = axis.when
    yield replace(axis, when=f"{stated} & {_INNER}")
    yield replace(axis, when=f"{stated} & {_LAST}", name="outer")


def _flag(
    family: Family, stated: str, wants_last: bool, last: int
) -> Callable[[Config, int], bool]:
    def holds(config: Config, layer: int) -> bool:
        return (layer == last) is wants_last and family.holds(stated, config, layer)

    return holds


def _head(family: Family, config: Config) -> str:
    """Returns the module that reads the last norm: the output matrix, or what is in front of it."""
    for axis in family.axes:
        module = axis.param.removesuffix(".weight")
        if "project_out" in module and family.holds(axis.when, config, 0):
            return module
    return "lm_head"


def _without_bias(family: Family, config: Config) -> str:
    """Returns a linear layer that reads the stream and has no bias; empty if all have one, or the
    norms have none.
    """
    layers = range(family.read(config, "num_hidden_layers"))
    biased = {axis.param for axis in family.axes if family.holds(axis.when, config, 0)}
    if not any(f"{gain.removesuffix('weight')}bias" in biased for gain in family.norms):
        return ""
    for axis in family.axes:
        reads = axis.name == "hidden" and "{i}" in axis.param and axis.param.endswith(".weight")
        norm = axis.param in family.norms
        if reads and not norm and not writes(family, axis) and len(layers):
            module = axis.param.removesuffix(".weight")
            if f"{module}.bias" not in biased:
                return module.rpartition(".")[2]
    return ""


def untied(config: Config) -> dict[str, Any]:
    """Returns the configuration with an output matrix of its own."""
    return {**config, "tie_word_embeddings": False}
