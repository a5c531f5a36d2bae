"""Checks that the recipe's text alone decides and no schema can express: keys that exclude, need or
contradict each other.

Each function below is a part of one table. A row says when a recipe is refused, which key the error
points at, what is wrong and what to type instead. No plugin is known by name here: a schedule is
asked by its own static check, and played on made-up sizes where it matters whether everything goes
at once. Checks that need the model's axes are in ``estimate/``, those that need this machine in
``runner/preflight.py``.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from importlib.metadata import version
from typing import Any, NamedTuple

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from effcompress.errors import RecipeError, did_you_mean
from effcompress.injectable import BACKWARD
from effcompress.recipe.source_map import Document, Key, dotted
from effcompress.registry import AUTO, REGISTRY, Plugin
from effcompress.spec import (
    CARRIED,
    CARRIER,
    DomainSpec,
    LoopSpec,
    PruneSpec,
    Recipe,
    TargetSpec,
    prompt_parts,
)
from effcompress.types import DEPTH

REPLICATE = "`distributed: {mode: replicate}`"
START, TARGET, GROUP = 1_000_000, 500_000, 1_000
"""Made-up sizes on which a schedule is played: parameters before and after, and of a mini-group."""
ROUNDS = 10_000
"""Cuts without training after which a schedule that asks for more is taken at its word."""


class Row(NamedTuple):
    """One check. ``refused``: whether this recipe fails it; ``key``: the key to change; ``what`` is
    wrong; ``fix``: what to type instead.
    """

    refused: object
    key: Key
    what: str
    fix: str


Rows = Iterator[Row]


def check_recipe(recipe: Recipe, document: Document) -> None:
    """Raises RecipeError for the first row that refuses the recipe, at the line of its key."""
    for check in CHECKS:
        for row in check(recipe, document):
            if row.refused:
                where = document.mark(row.key).where
                raise RecipeError(row.what, where=where, fix=row.fix)


def check_version(document: Document) -> None:
    """Raises RecipeError when the recipe asks for other versions of effcompress. Called before the
    schema is applied, because a newer recipe may have keys that this version does not know.
    """
    wanted = document.values.get("effcompress")
    if not isinstance(wanted, str):
        return
    here, where = version("effcompress"), document.mark(("effcompress",)).where
    try:
        fits = SpecifierSet(wanted).contains(here, prereleases=True)
    except InvalidSpecifier as error:
        what = f"effcompress: '{wanted}' is no version specifier"
        raise RecipeError(what, where=where, fix="E.g. effcompress: '>=0.1'.") from error
    if not fits:
        what = f"the recipe wants effcompress {wanted}, this is {here}"
        raise RecipeError(what, where=where, fix=f"pip install 'effcompress{wanted}'")


def _sources(recipe: Recipe, document: Document) -> Rows:
    model, at = recipe.model, ("model",)
    sources = ("hub", "folder", "gguf", "wheel")
    alone = not any(getattr(model, source) for source in sources)
    sources = (*sources, "random") if alone else sources
    yield from _exactly_one(model, sources, at, document, "E.g. `model: {hub: org/name}`.")
    yield _needs(model, at, "wheel", "member", "the path of the .gguf file inside the wheel")
    example = "{model_type: llama, hidden_size: 64, ...}, or name a source beside it"
    if alone:
        yield _needs(model, at, "random", "shape", example)
    yield _only_with(model, at, "member", ("wheel",))
    yield _only_with(model, at, "revision", ("hub",))
    yield _only_with(model, at, "sha256", ("wheel", "gguf"))
    yield _wheel(model.wheel, at, "some-model==1.0")
    for name, domain in recipe.data.domains.items():
        yield from _domain(domain, ("data", "domains", name), document)


def _domain(domain: DomainSpec, at: Key, document: Document) -> Rows:
    fix = f"E.g. `{at[-1]}: {{jsonl: text.jsonl}}`."
    sources = ("jsonl", "txt", "parquet", "hub", "stdlib")
    yield from _exactly_one(domain, sources, at, document, fix)
    for key in ("config", "revision", "validation_split"):
        yield _only_with(domain, at, key, ("hub",))
    yield _only_with(domain, at, "validation", ("jsonl", "txt", "parquet"))
    for key in ("prompt", "chat"):
        yield _only_with(domain, at, key, ("jsonl", "parquet", "hub"))
    what = f"{dotted(at)} has `chat`, whose template writes the prompts, and `prompt`"
    both = domain.chat is not None and domain.prompt is not None
    yield Row(both, (*at, "prompt"), what, "Remove one of the two.")
    try:
        list(prompt_parts(domain.prompt or ""))
    except ValueError as error:
        what = f"{dotted(at)}.prompt: {error}"
        yield Row(True, (*at, "prompt"), what, "Write `{field}`, and {{ or }} for a brace of text.")
    what = f"{dotted(at)} holds no text out, so nothing could be evaluated"
    held_out = domain.holdout or domain.validation or domain.validation_split
    yield Row(not held_out, (*at, "holdout"), what, "E.g. `holdout: 5%`.")


def _sections(recipe: Recipe, _: Document) -> Rows:
    what = "data.documents.pack: false is for training alone: pruning would measure the padding"
    padded = not recipe.data.documents.pack and (recipe.prune or recipe.sparsify)
    fix = "Prune first, and train the folder of that run in a run of its own."
    yield Row(padded, ("data", "documents", "pack"), what, fix)
    what = "the recipe neither prunes nor trains, nor makes zeros"
    nothing = recipe.prune is None and recipe.sparsify is None and recipe.loop is None
    yield Row(nothing, (), what, "Add `prune:`, `sparsify:` or `train:`.")


def _mixture(recipe: Recipe, _: Document) -> Rows:
    """Weights that follow losses: each domain has one to be compared with."""
    spec, at, domains = recipe.data.mixture, ("data", "mixture"), recipe.data.domains
    if spec is None:
        return
    what = "data.mixture changes weights in training, but nothing is trained"
    yield Row(recipe.loop is None, at, what, "Add `train:` or `recover:`, or remove it.")
    what = "data.mixture: there is one domain, so there is nothing to weigh"
    yield Row(len(domains) < 2, at, what, "Name another domain, or remove `mixture:`.")
    scaled = spec.reference == "scaling"
    what = "data.mixture.reference is scaling, but no model is named"
    fix = "Add `scaling: [{params: 7B, losses: {...}}, ...]`, three models or more."
    yield Row(scaled and not spec.scaling, (*at, "reference"), what, fix)
    what = "data.mixture.scaling means something only with `reference: scaling`"
    yield Row(spec.scaling and not scaled, (*at, "scaling"), what, "Write it, or remove `scaling`.")
    sizes = len({model.params for model in spec.scaling})
    what = f"data.mixture.scaling has models of {sizes} sizes; the law has three unknowns"
    yield Row(scaled and sizes < 3, (*at, "scaling"), what, "Name models of three sizes or more.")
    tables: dict[Key, Mapping[str, float]] = {
        (*at, "scaling", k, "losses"): model.losses for k, model in enumerate(spec.scaling)
    }
    if not isinstance(spec.reference, str):
        tables[*at, "reference"] = spec.reference
    for key, losses in tables.items():
        for name in losses:
            what = f"{dotted(key)}: no domain is called '{name}'"
            yield Row(name not in domains, (*key, name), what, did_you_mean(name, domains))
        missing = next((name for name in domains if name not in losses), "")
        what = f"{dotted(key)} has no loss of the domain '{missing}'"
        yield Row(missing, key, what, f"Add `{missing}:` and its loss in nats per token.")


def _recover(recipe: Recipe, _: Document) -> Rows:
    recover, at = recipe.recover, ("recover",)
    if recover is None:
        return
    what = "the recipe has train and recover: pruning is a part of training, or before it"
    yield Row(recipe.train, at, what, "Remove one of the two.")
    yield from _loop(recover, at)
    nothing = recipe.prune is None and recipe.sparsify is None
    what = "recover trains what was pruned, but nothing is"
    yield Row(nothing, at, what, "Add `prune:`, or write `train:`.")
    fills = recipe.sparsify and recover.method == "lora"
    what = "low-rank updates, once merged, would fill the zeros of sparsify"
    yield Row(fills, (*at, "method"), what, "Write `method: full` or `distill`.")
    what = "recover trains what was cut before, but prune.schedule cuts later"
    yield _at_once(recipe, what, "or `train:` in place of recover.")
    for section, methods in (("lora", ("lora",)), ("distill", ("distill", "lora"))):
        unread = getattr(recover, section) and recover.method not in methods
        what = f"recover.{section} means nothing to method {recover.method}"
        yield Row(unread, (*at, section), what, f"Write `method: {section}`, or remove it.")


def _train(recipe: Recipe, document: Document) -> Rows:
    train, at = recipe.train, ("train",)
    if train is None:
        return
    fix = "E.g. `tokens: 2M`, or `stages: {warmup: 10k, pruning: 1M, continued: 1M}`."
    yield from _exactly_one(train, ("tokens", "stages"), at, document, fix)
    yield from _loop(train, at)
    lost = {space.name for space in recipe.prune.space} if recipe.prune else set[str]()
    changing = train.distill and train.distill.hidden_weight and lost & {"hidden", "layer"}
    what = "train.distill.hidden_weight: channels or layers go while hidden states are compared"
    fix = "Remove it, or train behind the cut, with `recover:` in place of train."
    yield Row(changing, (*at, "distill", "hidden_weight"), what, fix)
    if train.continued is None:
        return
    given = {key: value for key, value in vars(train.continued).items() if value is not None}
    here = (*at, "continued")
    what = "train.continued: there is no continued stage"
    fix = "E.g. `stages: {pruning: 1M, continued: 1M}`."
    yield Row(not train.stages or not train.stages.continued, here, what, fix)
    yield from _loop(replace(train, **given), here)


def _loop(loop: LoopSpec, at: Key) -> Rows:
    name, size, rate = dotted(at), loop.batch_size, loop.learning_rate
    micro = loop.micro_batch_size or size
    small = [n for n in range(1, math.isqrt(size) + 1) if size % n == 0]
    nearest = min([*small, *(size // n for n in small)], key=lambda n: abs(n - micro))
    what = f"{name}.micro_batch_size {micro} does not divide {name}.batch_size {size}"
    yield Row(size % micro, (*at, "micro_batch_size"), what, f"Did you mean {nearest}?")
    over = rate.schedule == "trapezoidal" and rate.warmup + rate.decay > 1
    what = f"{name}.learning_rate: warmup and decay together take more than the training"
    yield Row(over, (*at, "learning_rate", "decay"), what, "Their sum must be at most 1.")


def _prune(recipe: Recipe, document: Document) -> Rows:
    prune, at = recipe.prune, ("prune",)
    if prune is None:
        return
    fix = "E.g. `target: {keep: 85%}`, `target: {params: 469M}`."
    targets = tuple(f.name for f in fields(TargetSpec))
    yield from _exactly_one(prune.target, targets, (*at, "target"), document, fix)
    names = [space.name for space in prune.space]
    for index, name in enumerate(names):
        first, key = names.index(name), (*at, "space", index)
        fix = f"Keep this one or prune.space.{first}."
        yield Row(first < index, key, f"prune.space names '{name}' twice", fix)
    if prune.rotate is not None or prune.criterion is None:
        yield from _rotate(recipe, prune)
        return
    yield from _allocation(recipe, prune, document)
    yield from _measure(recipe, prune)
    yield from _gates(recipe, prune)
    yield from _refit(prune)
    yield from _search(recipe, prune)
    if recipe.train is not None:
        yield from _times(recipe, prune)


def _allocation(recipe: Recipe, prune: PruneSpec, document: Document) -> Rows:
    """Targets of time and memory, and the choice of levels in place of a selector."""
    at, target = ("prune", "allocation"), prune.target
    asked = next((k for k in ("speedup", "milliseconds", "memory") if getattr(target, k)), "")
    what, there = (
        f"prune.target.{asked} is reached by a choice of widths",
        ("prune", "target", asked),
    )
    names = ", ".join(p.name for p in REGISTRY.all("allocation")) or "..."
    fix = f"Add `allocation:` under prune, one of {names}."
    yield Row(asked and prune.allocation is None, there, f"{what}, and none is named", fix)
    what, fix = f"prune.target.{asked} does not say of which input", "E.g. `workload: "
    fix += "{phase: prefill, batch: 1, length: 512}` under prune."
    yield Row(asked and prune.workload is None, there, what, fix)
    what = "prune.workload means something only with a target of speedup, milliseconds or memory"
    yield Row(prune.workload and not asked, ("prune", "workload"), what, "Remove `workload:`.")
    scaled = recipe.data.mixture is not None and recipe.data.mixture.reference == "scaling"
    what = f"data.mixture.reference: scaling needs a size, and prune.target.{asked} names none"
    key = ("data", "mixture", "reference")
    yield Row(asked and scaled, key, what, "Write `reference: source`, or `target: {params: ...}`.")
    if prune.allocation is None:
        return
    what = "prune.allocation chooses in place of a selector, and there is one"
    written = ("prune", "selector") in document.marks
    yield Row(written, ("prune", "selector"), what, "Remove one of the two.")
    what = "prune.allocation chooses widths, and prune.target.shape names them"
    yield Row(target.shape, (*at, "name"), what, "Name another target, or remove `allocation`.")
    what = "prune.allocation is a choice of one cut, and prune.gates choose by themselves"
    yield Row(prune.gates, ("prune", "gates"), what, "Remove one of the two.")
    what = "prune.allocation chooses widths, and so does prune.search"
    yield Row(prune.search, ("prune", "search"), what, "Remove one of the two.")
    yield from _ranged(prune, "allocation")
    what = "prune.allocation decides before training, but prune.schedule cuts later"
    yield _at_once(recipe, what, "or use a selector.")
    first = prune.schedule.due(
        **{"step": 0, "tokens": 0, "start_params": START, "params": START, "groups_cut": 0},
        **{"target_params": TARGET, "removed": {}, "left": {}, "positions": {}, **_stage(recipe)},
    )
    what = f"prune.schedule '{prune.schedule.name}' cuts in rounds; prune.allocation cuts once"
    several = first is not None and (first.again or first.params != TARGET)
    yield Row(several, ("prune", "schedule"), what, "Write `schedule: {name: once, at: 0}`.")
    what = "prune.allocation measures on calibration text, not on training"
    trains = prune.measure.source != "calibration"
    fix = "Write `measure: {source: calibration}` under prune."
    yield Row(trains, ("prune", "measure", "source"), what, fix)
    what = "prune.measure.propagate scores layers in their order; levels are chosen for all at once"
    yield Row(prune.measure.propagate, ("prune", "measure", "propagate"), what, "Remove it.")


def _ranged(prune: PruneSpec, section: str) -> Rows:
    """What is cut at once has no part of the model that is gone before."""
    for index, space in enumerate(prune.space):
        what = f"prune.space: '{space.name}' has `after` or `until`, and prune.{section} cuts "
        ranged = space.knobs.get("after", 0.0) > 0 or space.knobs.get("until", 1.0) < 1
        fix = "Remove `after` and `until`."
        yield Row(ranged, ("prune", "space", index), f"{what}everything at once", fix)


def _rotate(recipe: Recipe, prune: PruneSpec) -> Rows:
    """A rotation takes the place of everything that ranks, and slices at once."""
    at, rotate = ("prune",), prune.rotate
    first = next((p.name for p in REGISTRY.all("rotation")), "...")
    what = "prune has no criterion to rank by"
    fix = f"E.g. `criterion: taylor`, or `rotate: {first}` with `space: [hidden]`."
    yield Row(rotate is None, at, what, fix)
    unread = ("criterion", "gates", "hessian", "selector", "repair", "search")
    for key in (*unread, "allocation", "workload"):
        what = f"prune.{key} means nothing with prune.rotate, which ranks directions of the stream"
        yield Row(getattr(prune, key), (*at, key), what, "Remove one of the two.")
    biased = prune.refit and "mean" in prune.refit.needs
    what = "prune.refit: with prune.rotate there is no bias that it could change"
    fix = "Use a refit that takes no `mean`, or remove it."
    yield Row(biased, (*at, "refit"), what, fix)
    what = "prune.refit_at: with prune.rotate, blocks are refitted as they are sliced"
    yield Row(prune.refit_at != "target", (*at, "refit_at"), what, "Remove the line.")
    other = [space.name for space in prune.space] != ["hidden"]
    what = "prune.rotate slices the residual stream, and nothing else"
    fix = "Write `space: [hidden]`, and cut other kinds in a run of their own."
    yield Row(other, (*at, "space"), what, fix)
    yield from _ranged(prune, "rotate")
    for key in ("active_params", "speedup", "milliseconds", "memory"):
        what = f"prune.rotate slices to a size, and prune.target.{key} is none"
        asked = getattr(prune.target, key)
        yield Row(asked, (*at, "target", key), what, "Write `target: {params: ...}`.")
    what = "prune.rotate measures on calibration text, not on training"
    fix = "Write `measure: {source: calibration}` under prune."
    yield Row(prune.measure.source != "calibration", (*at, "measure", "source"), what, fix)
    yield Row(prune.measure.propagate, (*at, "measure", "propagate"), _SEQUENTIAL, "Remove it.")
    what = "prune.measure.precision: prune.rotate computes in the precision of the weights"
    other = prune.measure.precision != "fp32"
    yield Row(other, (*at, "measure", "precision"), what, "Remove it.")
    yield _at_once(
        recipe, "prune.rotate slices at once, but prune.schedule cuts later", "or no rotate."
    )
    section, distill = "recover" if recipe.recover else "train", recipe.teacher
    key = f"{section}.distill.hidden_weight"
    what = f"{key} compares hidden states, which a rotation gives other bases"
    hidden = bool(distill and distill.hidden_weight)
    yield Row(hidden, (section, "distill", "hidden_weight"), what, "Remove it.")


_SEQUENTIAL = "prune.measure.propagate: with prune.rotate every layer reads sliced ones anyway"


def _measure(recipe: Recipe, prune: PruneSpec) -> Rows:
    """Does what the plugins ask for exist where the recipe measures it?"""
    untrained, training = recipe.train is None, prune.measure.source == "training"
    constant = next((r.name for r in prune.repair if "output_mean" in r.needs), None)
    what = f"prune.repair: '{constant}' takes the mean of what experts return, which is measured "
    what += "on calibration text, with all layers as they are"
    fix = "Write `measure: {source: calibration}` under prune, without `propagate`."
    apart = constant and (training or prune.measure.propagate)
    yield Row(apart, ("prune", "measure"), what, fix)
    what = "prune.measure.precision is that of passes over calibration text, and none is read"
    fix = "Write `precision: bf16` under train, or `source: calibration` beside it."
    unread = training and prune.refit is None and prune.measure.precision != "fp32"
    yield Row(unread, ("prune", "measure", "precision"), what, fix)
    measures = {"grad", "hess", "mask_grad"} & set(prune.saliency.needs)
    if "hess" in measures and prune.hessian and "second_moment" in prune.hessian.needs:
        what = f"prune.hessian '{prune.hessian.name}' reads the optimizer of the training"
        fix = "Write `hessian: fisher_diag`, or `measure: {source: training}` and `train:`."
        yield Row(untrained or not training, ("prune", "hessian"), what, fix)
    if not training:
        return
    source = ("prune", "measure", "source")
    fix = "Write `measure: {source: calibration}` under prune."
    for bound in (prune.saliency, prune.selector):
        if bound is not None:
            what = f"prune.measure: '{bound.name}' measures on calibration text, not on training"
            yield Row(bound.plugin.reads_forward, source, what, fix)
    reads = [r.name for r in prune.repair if {"gram", "mean"}.intersection(r.needs)]
    for name in [prune.saliency.name] if measures else reads[:1]:
        what = f"prune.measure: '{name}' would measure on the training, but nothing is trained"
        yield Row(untrained, source, what, fix)
        what = f"prune.schedule '{prune.schedule.name}' cuts at step 0, where '{name}' has "
        what += "measured nothing yet"
        yield Row(cuts_all_at_start(recipe), ("prune", "schedule"), what, fix)


def _gates(recipe: Recipe, prune: PruneSpec) -> Rows:
    """Learned gates are trained, decide alone, and end in one cut when they have been trained."""
    name, learned = prune.saliency.name, [c.name for c in REGISTRY.all("criterion") if _learned(c)]
    there = (next((p.name for p in REGISTRY.all(kind)), "...") for kind in ("gate", "constraint"))
    fix = "Add `gates: {{gate: {}, constraint: {}}}` under prune.".format(*there)
    what = f"prune.criterion: '{name}' ranks by learned gates, and there are none"
    wants = _learned(prune.saliency.plugin)
    yield Row(wants and prune.gates is None, ("prune", "criterion"), what, fix)
    if prune.gates is None:
        return
    fix = f"Use {' or '.join(learned)}, or remove `gates`."
    what = f"prune.gates: '{name}' does not rank by learned gates"
    yield Row(not wants, ("prune", "criterion"), what, fix)
    what, fix = "prune.gates are learned in training, and nothing is trained", "Add `train:`."
    yield Row(recipe.train is None, ("prune", "gates"), what, fix)
    what = "prune.gates: the cut model computes what the masked one did; no repair is needed"
    yield Row(prune.repair, ("prune", "repair"), what, "Remove `repair`.")
    stage = _stage(recipe)
    place: dict[str, Any] = {
        **{"step": 1, "start_params": START, "params": START, "target_params": TARGET},
        **{"groups_cut": 0, "removed": {}, "left": {}, "positions": {}, **stage},
    }
    end = max(stage["prune_until"], 1)
    first = prune.schedule.due(**{**place, "step": 0}, tokens=stage["prune_from"])
    last = prune.schedule.due(**place, tokens=end)
    whole = last is not None and last.params == TARGET and not last.again
    what = f"prune.schedule '{prune.schedule.name}' does not cut everything at once when the gates "
    what += "have been learned"
    yield Row(first or not whole, ("prune", "schedule"), what, "Write `schedule: at_end`.")


def _refit(prune: PruneSpec) -> Rows:
    """A knob is chosen on sequences that the fit has not seen: that takes two."""
    if prune.refit is None:
        at, what = ("prune", "refit_at"), "prune.refit_at says when, and there is no prune.refit"
        yield Row(prune.refit_at != "target", at, what, "Add a `refit`, or remove this line.")
        return
    open_ = ", ".join(name for name, value in prune.refit.knobs.items() if value == AUTO)
    at = ("prune", "measure", "refit_sequences")
    what = "prune.measure.refit_sequences: one sequence cannot be fitted and held out, and "
    what += f"prune.refit has {open_}: {AUTO}"
    fix = f"Write at least 2, or a number for {open_}."
    yield Row(open_ and prune.measure.refit_sequences < 2, at, what, fix)


def _search(recipe: Recipe, prune: PruneSpec) -> Rows:
    """A shape is searched for where its size is named, and cut to at once."""
    at = ("prune", "target", "active_params")
    what = "prune.target.active_params is reached by a search for a shape"
    fix = "Add `search: {}` under prune, or name `params`."
    yield Row(prune.target.active_params and prune.search is None, at, what, fix)
    if prune.search is None:
        return
    what = "prune.search looks for a shape, and prune.target names one"
    fix = "Write `target: {params: ...}`, or remove `search`."
    yield Row(prune.target.shape, ("prune", "target", "shape"), what, fix)
    what = "prune.search tries shapes on calibration text, and none is read"
    fix = "Write `measure: {source: calibration}` under prune."
    yield Row(prune.measure.source != "calibration", ("prune", "measure", "source"), what, fix)
    what = "prune.search: one saliency ranks the units of all shapes, but prune.schedule cuts later"
    yield _at_once(recipe, what, "or remove `search`.")


def _learned(criterion: Plugin) -> bool:
    return "logit" in criterion.needs


def _times(recipe: Recipe, prune: PruneSpec) -> Rows:
    """Tokens that a schedule names lie within the training, and in order."""
    knobs, at, stage = prune.schedule.knobs, ("prune", "schedule"), _stage(recipe)
    begin, total = stage["prune_from"], stage["prune_until"]
    ends = "the pruning stage" if recipe.train and recipe.train.stages else "training"
    for key in ("at", "start", "end"):
        tokens = knobs.get(key) or 0
        what = f"prune.schedule.{key} is {tokens:,} tokens, {ends} ends at {total:,}"
        yield Row(tokens > total, (*at, key), what, "Name fewer tokens.")
    start, end = knobs.get("start"), knobs.get("end")
    start = begin if start is None else start
    if end is not None:
        what = f"prune.schedule ends at {end:,} tokens and starts at {start:,}"
        yield Row(end <= start, (*at, "end"), what, "The end comes later.")


def _sparsify(recipe: Recipe, document: Document) -> Rows:
    spec, at = recipe.sparsify, ("sparsify",)
    if spec is None:
        return
    fix = "E.g. `sparsity: 50%` or `pattern: 2:4`."
    yield from _exactly_one(spec, ("sparsity", "pattern"), at, document, fix)
    blind = not {"input_norm", "gram"} & set(spec.method.needs)
    for name in ("true_sequential", "compat"):
        what = f"sparsify.{name}: '{spec.method.name}' looks at no inputs"
        yield Row(blind and bool(getattr(spec, name)), (*at, name), what, "Remove it.")
    what = f"sparsify.precision: '{spec.method.name}' reads no calibration text"
    unread = blind and spec.precision != "fp32"
    yield Row(unread, (*at, "precision"), what, "Remove it.")
    said = spec.method.refusal(sparsity=spec.fraction, pattern=spec.n_of_m)
    what, fix = said or ("", "")
    yield Row(said, (*at, "method"), f"sparsify.method: {what}", fix)
    what = "sparsify: zeros are made before training, but pruning goes on after that"
    yield _at_once(recipe, what, "or drop one of the sections.")


def _sizes(recipe: Recipe, _: Document) -> Rows:
    """Models at sizes that the run passes: it has to have sizes, and to come by them."""
    spec, prune, at = recipe.export, recipe.prune, ("export", "at")
    what = "export.continued trains the models of export.at, and no size is named there"
    yield Row(spec.continued and not spec.at, ("export", "continued"), what, "E.g. `at: [1.1B]`.")
    if spec.at is None:
        return
    what = "export.at names sizes that pruning passes, and nothing is pruned"
    yield Row(prune is None, at, what, "Add `prune:`, or remove `at`.")
    for index, size in enumerate(spec.at):
        what = f"export.at names {size:,} twice"
        yield Row(size in spec.at[:index], (*at, index), what, "Keep one of them.")
    dry, key = recipe.data.when_dry == "stop", ("export", "continued")
    what = "export.continued reads on in the text behind the run's, where data.when_dry may stop it"
    yield Row(spec.continued and dry, key, what, "Write `when_dry: repeat`, or remove it.")
    what = "export.continued trains, but the recipe has no training"
    fix = "Add `train:` or `recover:`, or remove it."
    yield Row(spec.continued and recipe.loop is None, key, what, fix)
    if prune is None:
        return
    for name, why in _WITHOUT_SIZES.items():
        what = f"export.at: {why.format(name)}"
        fix = "Write `target: {params: ...}` or `keep`, or a recipe for each model."
        yield Row(getattr(prune.target, name), at, what, fix)
    what = "export.at: prune.gates are learned for the size at the end, and cut to it at once"
    yield Row(prune.gates, at, what, "Write a recipe for each size.")


_TIMED = "prune.target.{} is met by many sizes, and which one is measured in the run"
_WITHOUT_SIZES = {
    "shape": "prune.target.{} names widths, which no other size of the run would have",
    "active_params": "prune.target.{} counts parameters that a token meets, and `at` counts all",
    **dict.fromkeys(("speedup", "milliseconds", "memory"), _TIMED),
}
"""Target -> why sizes cannot be read from it."""


def _tasks(recipe: Recipe, _: Document) -> Rows:
    tasks, at = recipe.evaluate.tasks, ("evaluate", "tasks")
    if tasks is None:
        return
    yield _wheel(tasks.wheel, at, CARRIER)
    yield _only_with(tasks, at, "sha256", ("wheel",))
    for index, name in enumerate(tasks.names):
        key, twice = (*at, "names", index), name in tasks.names[:index]
        yield Row(twice, key, f"evaluate.tasks.names has '{name}' twice", "Keep one of them.")
        what = f"{dotted(key)}: the wheel carries no data of '{name}'"
        yield Row(tasks.wheel and name not in CARRIED, key, what, did_you_mean(name, CARRIED))


def _sharded(recipe: Recipe, _: Document) -> Rows:
    """What needs the whole model in one process is not available under FSDP2."""
    how, loop = recipe.distributed, recipe.loop
    half = how.gather == "bf16" and loop is not None and loop.precision != "bf16"
    what = "distributed.gather bf16: layers compute in fp32 here, and would compute in bf16"
    section = "train" if recipe.recover is None else "recover"
    fix = f"Write `precision: bf16` under {section}, or `gather: fp32`."
    yield Row(half, ("distributed", "gather"), what, fix)
    if how.mode != "shard":
        knobs = {"replicas": 1, "gather": "fp32", "accumulate": "sharded"}
        for name in (name for name, usual in knobs.items() if getattr(how, name) != usual):
            what = f"distributed.{name} is a knob of mode: shard"
            yield Row(True, ("distributed", name), what, f"Write `mode: shard`, or drop {name}.")
        return
    lora = how.replicas > 1 and recipe.recover is not None and recipe.recover.method == "lora"
    what = (
        "distributed.replicas: peft takes a model with replicas for tensor parallel, and low-rank"
    )
    fix = "Write `replicas: 1`, or `method: full` under recover."
    yield Row(lora, ("distributed", "replicas"), f"{what} updates would have wrong shapes", fix)
    shard, whole = "distributed.mode shard:", "needs the whole model in each process"
    prune = recipe.prune
    replicate = f"Write {REPLICATE}."
    for key in ("search", "allocation"):
        what = f"{shard} prune.{key} {whole}"
        yield Row(prune and getattr(prune, key), ("prune", key), what, replicate)


def _scheduled(recipe: Recipe, _: Document) -> Rows:
    found = recipe.prune and recipe.prune.schedule.refusal(**_stage(recipe))
    what, fix = found or ("", "")
    yield Row(found, ("prune", "schedule"), f"prune.schedule: {what}", fix)


def _propagated(recipe: Recipe, _: Document) -> Rows:
    """What keeps layers from being measured on what pruned layers hand on."""
    prune = recipe.prune
    if prune is None or not prune.measure.propagate or prune.rotate:
        return
    propagate, needs, name = "prune.measure.propagate:", prune.saliency.needs, prune.saliency.name
    absent = prune.measure.source != "calibration"
    what = f"{propagate} layers hand on calibration text, and none is read"
    fix = "Write `source: calibration` beside it."
    yield Row(absent, ("prune", "measure", "propagate"), what, fix)
    every = REGISTRY.all("criterion")
    readers = [p.name for p in every if p.reads_inputs or p.reads_experts]
    readers = [name for name in readers if not REGISTRY.get("criterion", name).cumulative]
    plugin = prune.saliency.plugin
    reads = (plugin.reads_inputs or plugin.reads_experts) and not plugin.cumulative
    other = BACKWARD.intersection(needs) or not reads
    what = f"{propagate} '{name}' does not score by what layers read alone"
    fix = f"Remove `propagate`, or use one of {', '.join(readers)}."
    yield Row(other, ("prune", "criterion"), what, fix)
    for index, space in enumerate(prune.space):
        outside = space.name == "hidden" or space.name in DEPTH
        what = f"{propagate} what goes of '{space.name}' does not lie within a layer"
        yield Row(outside, ("prune", "space", index), what, "Remove `propagate`, or this space.")


CHECKS: tuple[Callable[[Recipe, Document], Rows], ...] = (
    _sources,
    _sections,
    _mixture,
    _recover,
    _train,
    _prune,
    _sparsify,
    _sizes,
    _tasks,
    _sharded,
    _scheduled,
    _propagated,
)
"""In this order: the first mistake is reported alone."""


def _stage(recipe: Recipe) -> dict[str, int]:
    """The tokens that a schedule's static check may ask for."""
    train, stages = recipe.train, recipe.train.stages if recipe.train else None
    total = recipe.recover.tokens if recipe.recover else (train.tokens or 0) if train else 0
    begin, end = 0, total
    if stages:
        begin, end = stages.warmup, stages.warmup + stages.pruning
        total = end + stages.continued
    return {
        "tokens_per_step": train.batch_size * recipe.data.sequence_length if train else 0,
        "total_tokens": total,
        "prune_from": begin,
        "prune_until": end,
    }


def cuts_all_at_start(recipe: Recipe) -> bool:
    """Whether the schedule reaches its target before the first optimizer step.

    Raises PluginError when the schedule fails or answers with something else than ``Due``.
    """
    prune = recipe.prune
    assert prune is not None
    place: dict[str, Any] = {
        **{"step": 0, "tokens": 0, "start_params": START, "target_params": TARGET},
        **{"removed": {}, "left": {}, "positions": {}, **_stage(recipe)},
    }
    params = START
    for cut in range(ROUNDS):
        due = prune.schedule.due(**place, params=params, groups_cut=cut)
        if due is None:
            return False
        left = params - GROUP * (due.groups or 0) if due.params is None else due.params
        if left <= TARGET:
            return True
        if not due.again or left >= params:
            return False
        params = left
    return True


def _at_once(recipe: Recipe, what: str, instead: str) -> Row:
    later = recipe.prune and not cuts_all_at_start(recipe)
    fix = f"Write `schedule: {{name: once, at: 0}}` under prune, {instead}"
    return Row(later, ("prune", "schedule"), what, fix)


def _wheel(wheel: str | None, at: Key, example: str) -> Row:
    wrong = wheel and not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", wheel)
    what = f"{dotted(at)}.wheel is '{wheel}', but must be name==version"
    return Row(wrong, (*at, "wheel"), what, f"E.g. wheel: {example}")


def _needs(section: object, at: Key, key: str, needed: str, example: str) -> Row:
    alone = getattr(section, key) and not getattr(section, needed)
    what = f"{dotted((*at, key))} needs {dotted((*at, needed))}"
    return Row(alone, (*at, key), what, f"Add `{needed}:` {example}.")


def _only_with(section: object, at: Key, key: str, sources: tuple[str, ...]) -> Row:
    alone = getattr(section, key) and not any(getattr(section, source) for source in sources)
    what = f"{dotted((*at, key))} means something only with {' or '.join(sources)}"
    return Row(alone, (*at, key), what, f"Remove `{key}:`.")


def _exactly_one(
    section: object, names: Iterable[str], at: Key, document: Document, example: str
) -> Rows:
    given = [name for name in names if getattr(section, name)]
    listed = ", ".join(names)
    words = {"target": "is empty", "train": "has no budget", "sparsify": "names no fraction"}
    lacks = words.get(str(at[-1]), "names no source")
    yield Row(not given, at, f"{dotted(at)} {lacks}; it takes exactly one of {listed}", example)
    if len(given) < 2:
        return
    marks = {name: document.mark((*at, name)) for name in given}
    # What `--set` gives comes last.
    first, *_, last = sorted(given, key=lambda n: (marks[n].file is None, marks[n].line))
    fix = f"Remove {' or '.join(given)}."
    if len({mark.file for mark in marks.values()}) > 1:
        # A key that came by an include can only be taken back by giving it no value.
        fix = f"To drop the included one, write `{first}: null`."
    what = f"{dotted(at)} has {' and '.join(given)}; it takes exactly one of {listed}"
    yield Row(True, (*at, last), what, fix)
