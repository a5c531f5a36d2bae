"""Whether the form that a recipe names for its export can hold what pruning leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from effcompress.errors import RecipeError
from effcompress.estimate.feasibility import SizedModel
from effcompress.model.lineage import STREAM
from effcompress.model.multimodal import left_out, sees_by_layer
from effcompress.model.source import outer_config
from effcompress.network.shapes import apart, widest
from effcompress.recipe import LoadedRecipe
from effcompress.types import DEPTH, Config, Family, Widths, axis_kind

_LATE = "the run then fails behind its last checkpoint (`effcompress export RUN --as {}` uses that)"


def require_form(loaded: LoadedRecipe, found: SizedModel) -> list[str]:
    """Returns warnings where the result may not fit the form that ``export.form`` names, and says
    where ``auto`` pads. Raises RecipeError where it cannot fit.
    """
    form = loaded.recipe.export.form
    if loaded.recipe.export.multimodal == "whole":
        _require_whole(loaded, found, form)
    said = _require_gguf(loaded, found) if loaded.recipe.export.gguf is not None else []
    return [*said, *_folder(loaded, found, form)]


def _require_gguf(loaded: LoadedRecipe, found: SizedModel) -> list[str]:
    """Returns warnings where llama.cpp may not take the result. Raises RecipeError where it cannot
    compute the model.
    """
    from effcompress.model.gguf import offered

    family, shape = found.axes.family, _target_shape(loaded)
    cut = {s.kind for s in found.sets}
    why = offered.why_not(found.config)
    if not why and "layer" in cut:
        why = offered.needs_depth(found.config)
    by_layer = found.config.get("model_type") in offered.BY_LAYER
    differ = () if by_layer or why else dict(_differences(found, shape))
    if rigid := [kind for kind in differ if kind in family.rigid]:
        why = f"layers may differ in '{rigid[0]}', and no zeros can fill that up"
    sizes = _final(found, shape)
    if not why and sizes is not None and not by_layer:
        resized = {**found.config, **family.resize(found.config, sizes)}
        why = refusal("padded", family, found.config, sizes) or offered.why_not_sizes(resized)
    if why:
        raise RecipeError(
            f"export.gguf: {why}",
            where=loaded.where("export.gguf"),
            fix="Remove `gguf`: the folder can be had in any case.",
        )
    said = [f"export: {more}"] if (more := offered.said_of(found.config)) else []
    if "layer" in cut and (window := offered.window_of(found.config)):
        said.append(
            "export: llama.cpp tells layers with a window by their numbers; where layers go, the "
            f"gguf file states a context of {window} tokens, the window"
        )
    if differ:
        said.append(
            "export: layers may differ in the end; the gguf file is then padded with zeros to the "
            "widest layer"
        )
    heads_or_stream = cut & {"hidden", "attention", "query"}
    if sizes is None and heads_or_stream and offered.needs_square(found.config):
        said.append(
            f"export: llama.cpp takes {found.config['model_type']} models whose heads fill the "
            "hidden size alone; where they do not in the end, the run fails behind its last "
            "checkpoint (state `target: {shape: ...}` to know before)"
        )
    return said


def _folder(loaded: LoadedRecipe, found: SizedModel, form: str) -> list[str]:
    """As ``require_form``, of the folder alone."""
    if STREAM in found.config:
        _require_exact(loaded, form)
        return []
    shape = _target_shape(loaded)
    differ = dict(_differences(found, shape))
    rigid = [kind for kind in differ if kind in found.axes.family.rigid]
    surely = [kind for kind, sure in differ.items() if sure]
    why, instead = "", "exact"
    if form == "uniform" and surely:
        why, instead = f"layers differ in '{surely[0]}'", "padded"
    if form == "padded" and rigid:
        differ_in = "differ" if rigid[0] in surely else "may differ"
        why = f"layers {differ_in} in '{rigid[0]}', and no zeros can fill that up"
    if form in ("uniform", "padded") and not why and (sizes := _final(found, shape)) is not None:
        why = refusal(form, found.axes.family, found.config, sizes)
    if why:
        raise RecipeError(
            f"export.form: {form} cannot hold the result: {why}",
            where=loaded.where("export.form"),
            fix=f"Write `form: {instead}`"
            + (" or `scope: lockstep` under prune.space." if rigid else "."),
        )
    if form == "auto" and differ:
        return [
            "export: layers may differ in the end; the folder is then padded with zeros to the "
            "widest layer, and larger than the target (export.form: exact keeps the shapes)"
        ]
    if form == "uniform" and differ:
        late = _LATE.format("padded")
        return [f"export: layers may differ in the end, which form: uniform cannot hold; {late}"]
    if form in ("uniform", "padded") and (kinds := _open(form, found, shape)):
        return [
            f"export: the stock class does not take every size of {kinds}, which form: {form} then "
            f"cannot hold; {_LATE.format('exact')}"
        ]
    return []


@dataclass(frozen=True)
class Made:
    """Whether the result can be written in a form (None: that depends on what is cut), and why not
    or on what it depends.
    """

    possible: bool | None
    why: str = ""


def made_as(loaded: LoadedRecipe, found: SizedModel, form: str) -> Made:
    """Returns whether the result can be written as ``uniform``, ``padded`` or ``exact``."""
    if form == "exact":
        whole = loaded.recipe.export.multimodal == "whole"
        return Made(not whole, "its class takes text models of stock classes alone" * whole)
    if STREAM in found.config:
        return Made(False, "no stock class changes the basis of its stream in every layer")
    shape = _target_shape(loaded)
    differ = dict(_differences(found, shape))
    if form == "padded":
        differ = {kind: sure for kind, sure in differ.items() if kind in found.axes.family.rigid}
    for kind, sure in sorted(differ.items(), key=lambda one: not one[1]):
        return Made(False if sure else None, f"layers {'' if sure else 'may '}differ in '{kind}'")
    if (sizes := _final(found, shape)) is not None:
        why = refusal(form, found.axes.family, found.config, sizes)
        return Made(not why, why)
    if kinds := _open(form, found, shape):
        return Made(None, f"the stock class does not take every size of {kinds}")
    return Made(True)


def _require_whole(loaded: LoadedRecipe, found: SizedModel, form: str) -> None:
    """Raises RecipeError where the pruned text model cannot be put back into the source."""
    outer, kinds = outer_config(loaded.recipe.model), {s.kind for s in found.sets}
    fix, why = "Write `multimodal: text`, which exports the text model by itself.", ""
    if outer is None:
        why, fix = "the source is no multimodal model", "Remove `multimodal: whole`."
    elif form == "exact":
        why = "its class takes text models of stock classes alone"
        fix = "Write `form: padded`, or `multimodal: text`."
    elif "hidden" in kinds or STREAM in found.config:
        why = "its other parts write into the hidden channels, which would change"
        fix = "Leave `hidden` out of prune.space, or write `multimodal: text`."
    elif "layer" in kinds and sees_by_layer(outer):
        why = "its layers take what its other parts see by their numbers, which would change"
        fix = "Leave `layer` out of prune.space, or write `multimodal: text`."
    elif name := left_out(outer, found.config):
        why = (
            f"its class in transformers does not read {name} of the text model, and so computes "
            "other logits"
        )
    elif outer.get("quantization_config"):
        why = "its weights are quantised, and those of the text model would not be"
    if why:
        key = "export.multimodal"
        where = loaded.where(key)
        raise RecipeError(f"{key}: whole cannot be written: {why}", where=where, fix=fix)


def _require_exact(loaded: LoadedRecipe, form: str) -> None:
    """Raises RecipeError for a form of a stock class: none of them has shortcuts."""
    if form in ("uniform", "padded"):
        raise RecipeError(
            f"export.form: {form} cannot hold the result: no stock class changes the basis of its "
            "stream in every layer",
            where=loaded.where("export.form"),
            fix="Write `form: exact`.",
        )


def _target_shape(loaded: LoadedRecipe) -> Widths:
    """Units per axis kind that the target states, without layers and blocks."""
    prune = loaded.recipe.prune
    stated = (prune.target.shape if prune is not None else None) or {}
    return {kind: units for kind, units in stated.items() if kind not in DEPTH}


def _differences(found: SizedModel, shape: Widths) -> Iterator[tuple[str, bool]]:
    """Yields axis kinds whose widths may differ between layers in the end, and whether they
    certainly do.
    """
    axes, cut = found.axes, {s.name: s for s in found.sets}
    own = apart(axes, found.config)
    some_go = any(s.kind == "layer" for s in found.sets)
    for kind in dict.fromkeys(map(axis_kind, axes.widths)):
        names = axes.axes(kind)
        asked = [cut[name] for name in names if name in cut]
        alike = [name for name in names if name not in own]
        ends = {shape.get(kind) if name in cut else axes.widths[name] for name in alike}
        if kind == "layer" or len(names) < 2:
            continue
        if more := [s for s in asked if s.name in own]:
            # The stock class has them as they are, whatever becomes of the others.
            free = (
                any(s.scope != "lockstep" for s in more) or len({s.kind for s in cut.values()}) > 1
            )
            left = {shape.get(kind) == own[s.name] for s in more}
            if kind not in shape or False in left:
                yield kind, (kind in shape or not free) and not some_go
            continue
        if kind in DEPTH:
            differs, sure = bool(asked), False
        elif asked and kind not in shape:
            now = {axes.widths[name] for name in alike}
            free = any(s.scope != "lockstep" for s in asked) or len(asked) < len(alike)
            differs, sure = free or len(now) > 1, not free
        else:
            differs = sure = len(ends) > 1
        if differs:
            yield kind, sure and not some_go
    for name in axes.depth.absent:
        yield axis_kind(name), not some_go


def _final(found: SizedModel, shape: Widths) -> Widths | None:
    """Widths per axis kind in the end; None where the target does not say them."""
    own = apart(found.axes, found.config)
    return {**widest(found.axes, own), **shape} if _said(found, shape) else None


def _said(found: SizedModel, shape: Widths) -> bool:
    """Whether the target says the widths of all kinds that are cut."""
    return {s.kind for s in found.sets if s.kind not in DEPTH} <= shape.keys()


def require_taken(
    loaded: LoadedRecipe, found: SizedModel, refused: Callable[[Widths], Mapping[str, str]]
) -> list[str]:
    """Returns warnings as ``require_form`` does, and raises as it does, of an architecture whose
    stock class is known by trial alone. ``refused``: axis kinds that it does not take, and why, at
    the widths that the target states, or with a unit less.
    """
    form, shape = loaded.recipe.export.form, _target_shape(loaded)
    reasons = refused(shape if _said(found, shape) else {})
    if not reasons:
        return []
    if _said(found, shape):
        raise RecipeError(
            f"export.form: {form} cannot hold the result: {next(iter(reasons.values()))}",
            where=loaded.where("export.form"),
            fix="Write `form: exact`.",
        )
    kinds, why = ", ".join(reasons), next(iter(reasons.values()))
    return [
        f"export: the stock class does not take every size of {kinds}, which form: {form} then "
        f"cannot hold ({why}); {_LATE.format('exact')}"
    ]


def refusal(form: str, family: Family, config: Config, widths: Widths) -> str:
    """Why no stock class takes these widths per axis kind; empty where one does, or that is not
    known without transformers.
    """
    if config.get("novices"):
        return "constants take the place of experts, which no stock class knows"
    misfits = _misfits(family, config, widths)
    if misfits and form == "padded":
        grown = _padded(family, config, widths)
        if [kind for kind in family.rigid if grown.get(kind) != widths.get(kind)]:
            return next(iter(misfits.values()))
        misfits = _misfits(family, config, grown)
    if misfits:
        return next(iter(misfits.values()))
    if not family.whole_heads(config):
        return ""
    hidden, heads = widths["hidden"], widths["attention"] * widths.get("query", 1)
    if not family.centred:
        said = f"hidden {hidden} is no multiple of {heads} heads"
        return said if form == "uniform" and hidden % heads else ""
    head = family.positions_per_unit["head"](config)
    fits = hidden == heads * head
    if form == "padded":
        fits = hidden % head == 0 and hidden >= heads * head
    return "" if fits else f"hidden {hidden} does not divide into {heads} heads of {head}"


def _misfits(family: Family, config: Config, widths: Widths) -> dict[str, str]:
    """Returns the kinds whose widths kernels or the class itself refuse -> why."""
    found = {
        kind: f"{kind} {widths[kind]} is no multiple of {multiple}, as kernels want it"
        for kind, multiple in family.multiples.items()
        if widths.get(kind, 0) % multiple
    }
    for kind, width in family.derived.items():
        if kind in widths and widths[kind] != (wanted := width(config, widths)):
            found[kind] = f"{kind} {widths[kind]} are left, and the stock class derives {wanted}"
    return found


def _padded(family: Family, config: Config, widths: Widths) -> Widths:
    """Returns the widths that the stock class has after padding."""
    return {**widths, **family.pad(config, widths)} if family.pad else widths


def _open(form: str, found: SizedModel, shape: Widths) -> str:
    """Kinds that are cut to sizes not known yet, of which a stock class refuses some."""
    family, kinds = found.axes.family, list[str]()
    cut = {s.kind: s for s in found.sets if s.kind not in shape}
    if family.whole_heads(found.config) and (form == "uniform" or family.centred):
        kinds += [kind for kind in ("hidden", "attention", "query") if kind in cut]
    wide = {**widest(found.axes), **shape}
    less = {**wide, **{k: max(1, wide[k] - s.multiple) for k, s in cut.items() if k in wide}}
    if form == "padded":
        grown = _padded(family, found.config, less)
        return ", ".join(dict.fromkeys([*kinds, *_misfits(family, found.config, grown)]))
    for kind, multiple in family.multiples.items():
        if kind in cut and (cut[kind].multiple % multiple or cut[kind].size % multiple):
            kinds.append(kind)
    others = _misfits(family, found.config, less)
    kinds += [kind for kind in others if kind not in cut or kind in family.derived]
    return ", ".join(dict.fromkeys(kinds))
