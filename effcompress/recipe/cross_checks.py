"""What no schema can say: keys that exclude, need or contradict each other."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from effcompress.errors import RecipeError, did_you_mean
from effcompress.recipe.plugin_checks import cuts_all_at_start
from effcompress.recipe.source_map import Document, Key, dotted
from effcompress.spec import (
    DomainSpec,
    LoopSpec,
    ModelSpec,
    PruneSpec,
    Recipe,
    RecoverSpec,
    SparsifySpec,
    TasksSpec,
    TrainSpec,
)
from effcompress.spec.tasks import CARRIED, CARRIER

MODEL_SOURCES = ("hub", "folder", "gguf", "wheel")
DOMAIN_SOURCES = ("jsonl", "txt", "parquet", "hub", "stdlib")
TARGETS = ("params", "keep", "shape")
BUDGETS = ("tokens", "stages")


def check_version(document: Document) -> None:
    """Refuse a recipe for other versions, before anything else in it is found strange."""
    wanted = document.values.get("effcompress")
    if not isinstance(wanted, str):
        return
    here = version("effcompress")
    try:
        fits = SpecifierSet(wanted).contains(here, prereleases=True)
    except InvalidSpecifier as error:
        problem = f"effcompress: '{wanted}' is no version specifier"
        raise _error(document, ("effcompress",), problem, "E.g. effcompress: '>=0.1'.") from error
    if not fits:
        raise _error(
            document,
            ("effcompress",),
            f"the recipe wants effcompress {wanted}, this is {here}",
            f"pip install 'effcompress{wanted}'",
        )


def check_sense(recipe: Recipe, document: Document) -> None:
    """Raises RecipeError for the first contradiction, at the line of the key that should change."""
    _check_model(recipe.model, document)
    for name, domain in recipe.data.domains.items():
        _check_domain(domain, ("data", "domains", name), document)
    if recipe.prune is None and recipe.sparsify is None and recipe.loop is None:
        problem = "the recipe neither prunes nor trains, nor makes zeros"
        raise _error(document, (), problem, "Add `prune:`, `sparsify:` or `train:`.")
    if recipe.recover is not None:
        _check_recover(recipe, recipe.recover, document)
    if recipe.train is not None:
        _check_train(recipe.train, document)
    if recipe.prune is not None:
        _check_prune(recipe, recipe.prune, document)
    if recipe.sparsify is not None:
        _check_sparsify(recipe.sparsify, recipe, document)
    if recipe.evaluate.tasks is not None:
        _check_tasks(recipe.evaluate.tasks, document)


def _check_model(model: ModelSpec, document: Document) -> None:
    at = ("model",)
    alone = not any(getattr(model, source) for source in MODEL_SOURCES)
    sources = (*MODEL_SOURCES, "random") if alone else MODEL_SOURCES
    _exactly_one(model, sources, at, document, "E.g. `model: {hub: org/name}`.")
    _needs(model, at, "wheel", "member", document, "the path of the .gguf file inside the wheel")
    if alone:
        example = "{model_type: llama, hidden_size: 64, ...}, or name a source beside it"
        _needs(model, at, "random", "shape", document, example)
    _only_with(model, at, "member", ("wheel",), document)
    _only_with(model, at, "revision", ("hub",), document)
    _only_with(model, at, "sha256", ("wheel", "gguf"), document)
    _check_wheel(model.wheel, at, document, "some-model==1.0")


def _check_wheel(wheel: str | None, at: Key, document: Document, example: str) -> None:
    if wheel and not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", wheel):
        problem = f"{dotted(at)}.wheel is '{wheel}', but must be name==version"
        raise _error(document, (*at, "wheel"), problem, f"E.g. wheel: {example}")


def _check_tasks(tasks: TasksSpec, document: Document) -> None:
    at = ("evaluate", "tasks")
    _check_wheel(tasks.wheel, at, document, CARRIER)
    _only_with(tasks, at, "sha256", ("wheel",), document)
    for index, name in enumerate(tasks.names):
        key = (*at, "names", index)
        if name in tasks.names[:index]:
            problem = f"{dotted((*at, 'names'))} has '{name}' twice"
            raise _error(document, key, problem, "Keep one of them.")
        if tasks.wheel and name not in CARRIED:
            problem = f"{dotted(key)}: the wheel carries no data of '{name}'"
            raise _error(document, key, problem, did_you_mean(name, CARRIED))


def _check_domain(domain: DomainSpec, at: Key, document: Document) -> None:
    fix = f"E.g. `{at[-1]}: {{jsonl: text.jsonl}}`."
    _exactly_one(domain, DOMAIN_SOURCES, at, document, fix)
    for key in ("config", "revision", "validation_split"):
        _only_with(domain, at, key, ("hub",), document)
    _only_with(domain, at, "validation", ("jsonl", "txt", "parquet"), document)
    _only_with(domain, at, "prompt", ("jsonl", "parquet", "hub"), document)
    if not (domain.holdout or domain.validation or domain.validation_split):
        problem = f"{dotted(at)} holds no text out, so nothing could be evaluated"
        raise _error(document, (*at, "holdout"), problem, "E.g. `holdout: 5%`.")


def _check_prune(recipe: Recipe, prune: PruneSpec, document: Document) -> None:
    at = ("prune",)
    fix = "E.g. `target: {keep: 85%}`, `target: {params: 469M}`."
    _exactly_one(prune.target, TARGETS, (*at, "target"), document, fix)
    seen: dict[str, int] = {}
    for index, space in enumerate(prune.space):
        if space.name in seen:
            problem = f"prune.space names '{space.name}' twice"
            fix = f"Keep this one or prune.space.{seen[space.name]}."
            raise _error(document, (*at, "space", index), problem, fix)
        seen[space.name] = index
    _check_measure(recipe, prune, document)
    if recipe.train is not None:
        _check_times(prune, recipe.train, document)


def _check_recover(recipe: Recipe, recover: RecoverSpec, document: Document) -> None:
    at = ("recover",)
    if recipe.train is not None:
        problem = "the recipe has train and recover: pruning is a part of training, or before it"
        raise _error(document, at, problem, "Remove one of the two.")
    _check_loop(recover, at, document)
    if recipe.prune is None and recipe.sparsify is None:
        problem = "recover trains what was pruned, but nothing is"
        raise _error(document, at, problem, "Add `prune:`, or write `train:`.")
    if recipe.sparsify is not None and recover.method == "lora":
        problem = "low-rank updates, once merged, would fill the zeros of sparsify"
        raise _error(document, (*at, "method"), problem, "Write `method: full` or `distill`.")
    if recipe.prune is not None and not cuts_all_at_start(recipe):
        problem = "recover trains what was cut before, but prune.schedule cuts later"
        fix = "Write `schedule: {name: once, at: 0}` under prune, or `train:` in place of recover."
        raise _error(document, ("prune", "schedule"), problem, fix)
    if recover.lora is not None and recover.method != "lora":
        problem = f"recover.lora means nothing to method {recover.method}"
        raise _error(document, (*at, "lora"), problem, "Write `method: lora`, or remove it.")
    if recover.distill is not None and recover.method == "full":
        problem = "recover.distill means nothing to method full"
        raise _error(document, (*at, "distill"), problem, "Write `method: distill`, or remove it.")


def _check_times(prune: PruneSpec, train: TrainSpec, document: Document) -> None:
    """Tokens that a schedule names lie within the training, and in order."""
    knobs = prune.schedule.knobs
    stages = train.stages
    total = stages.warmup + stages.pruning if stages else train.tokens or 0
    what = "the pruning stage" if stages else "training"
    for key in ("at", "start", "end"):
        if (knobs.get(key) or 0) > total:
            problem = f"prune.schedule.{key} is {knobs[key]:,} tokens, {what} ends at {total:,}"
            raise _error(document, ("prune", "schedule", key), problem, "Name fewer tokens.")
    start, end = knobs.get("start"), knobs.get("end")
    start = _begin(train) if start is None else start
    if end is not None and end <= start:
        problem = f"prune.schedule ends at {end:,} tokens and starts at {start:,}"
        raise _error(document, ("prune", "schedule", "end"), problem, "The end comes later.")


def _begin(train: TrainSpec) -> int:
    """Tokens at which the pruning stage begins."""
    return train.stages.warmup if train.stages else 0


def _check_measure(recipe: Recipe, prune: PruneSpec, document: Document) -> None:
    train = recipe.train
    measures = {"grad", "hess", "mask_grad"} & set(prune.criterion.needs)
    reads = [r.name for r in prune.repair if {"gram", "mean"}.intersection(r.needs)]
    moments = "hess" in measures and prune.hessian and "second_moment" in prune.hessian.needs
    if moments and (train is None or prune.measure.source != "training"):
        assert prune.hessian is not None
        problem = f"prune.hessian '{prune.hessian.name}' reads the optimizer of the training"
        fix = "Write `hessian: fisher_diag`, or `measure: {source: training}` and `train:`."
        raise _error(document, ("prune", "hessian"), problem, fix)
    if prune.measure.source != "training":
        return
    fix = "Write `measure: {source: calibration}` under prune."
    for bound in (prune.criterion, prune.selector):
        if bound and bound.plugin.reads_forward:
            problem = f"prune.measure: '{bound.name}' measures on calibration text, not on training"
            raise _error(document, ("prune", "measure", "source"), problem, fix)
    if not (measures or reads):
        return
    name = prune.criterion.name if measures else reads[0]
    if train is None:
        problem = f"prune.measure: '{name}' would measure on the training, but nothing is trained"
        raise _error(document, ("prune", "measure", "source"), problem, fix)
    if cuts_all_at_start(recipe):
        schedule = prune.schedule.name
        problem = (
            f"prune.schedule '{schedule}' cuts at step 0, where '{name}' has measured nothing yet"
        )
        raise _error(document, ("prune", "schedule"), problem, fix)


def _check_sparsify(sparsify: SparsifySpec, recipe: Recipe, document: Document) -> None:
    at = ("sparsify",)
    fix = "E.g. `sparsity: 50%` or `pattern: 2:4`."
    _exactly_one(sparsify, ("sparsity", "pattern"), at, document, fix)
    name = sparsify.method.name
    if sparsify.true_sequential and not {"input_norm", "gram"} & set(sparsify.method.needs):
        problem = f"sparsify.true_sequential: '{name}' looks at no inputs"
        raise _error(document, (*at, "true_sequential"), problem, "Remove it.")
    if found := sparsify.method.companion(sparsity=sparsify.share, pattern=sparsify.n_of_m):
        problem, fix = found
        raise _error(document, (*at, "method"), f"sparsify.method: {problem}", fix)
    if recipe.prune is not None and not cuts_all_at_start(recipe):
        problem = "sparsify: zeros are made before training, but pruning goes on after that"
        fix = "Write `schedule: {name: once, at: 0}` under prune, or drop one of the sections."
        raise _error(document, ("prune", "schedule"), problem, fix)


def _check_train(train: TrainSpec, document: Document) -> None:
    fix = "E.g. `tokens: 2M`, or `stages: {warmup: 10k, pruning: 1M, continued: 1M}`."
    _exactly_one(train, BUDGETS, ("train",), document, fix)
    _check_loop(train, ("train",), document)


def _check_loop(loop: LoopSpec, at: Key, document: Document) -> None:
    micro, rate, name = loop.micro_batch_size, loop.learning_rate, dotted(at)
    if micro is not None and loop.batch_size % micro:
        fits = [n for n in range(1, loop.batch_size + 1) if loop.batch_size % n == 0]
        nearest = min(fits, key=lambda n: abs(n - micro))
        raise _error(
            document,
            (*at, "micro_batch_size"),
            f"{name}.micro_batch_size {micro} does not divide {name}.batch_size {loop.batch_size}",
            f"Did you mean {nearest}?",
        )
    if rate.schedule == "trapezoidal" and rate.warmup + rate.decay > 1:
        key = (*at, "learning_rate", "decay")
        problem = f"{name}.learning_rate: warmup and decay together take more than the training"
        raise _error(document, key, problem, "Their sum must be at most 1.")


def _exactly_one(
    section: Any, names: Iterable[str], at: Key, document: Document, example: str
) -> None:
    given = [name for name in names if getattr(section, name)]
    if len(given) == 1:
        return
    listed = ", ".join(names)
    if not given:
        words = {"target": "is empty", "train": "has no budget", "sparsify": "names no share"}
        lacks = words.get(str(at[-1]), "names no source")
        problem = f"{dotted(at)} {lacks}; it takes exactly one of {listed}"
        raise _error(document, at, problem, example)
    problem = f"{dotted(at)} has {' and '.join(given)}; it takes exactly one of {listed}"
    first, *rest = sorted(given, key=lambda name: _line(document, (*at, name)))
    files = {document.mark((*at, name)).file for name in given}
    fix = f"Remove {' or '.join(given)}."
    if len(files) > 1:
        # A key that came by an include can only be taken back by giving it no value.
        fix = f"To drop the included one, write `{first}: null`."
    raise _error(document, (*at, rest[-1]), problem, fix)


def _line(document: Document, key: Key) -> tuple[bool, int]:
    mark = document.mark(key)
    return mark.file is None, mark.line


def _needs(section: Any, at: Key, key: str, needed: str, document: Document, example: str) -> None:
    if getattr(section, key) and not getattr(section, needed):
        full = dotted((*at, key))
        problem = f"{full} needs {dotted((*at, needed))}"
        raise _error(document, (*at, key), problem, f"Add `{needed}:` {example}.")


def _only_with(
    section: Any, at: Key, key: str, sources: tuple[str, ...], document: Document
) -> None:
    if getattr(section, key) and not any(getattr(section, source) for source in sources):
        problem = f"{dotted((*at, key))} means something only with {' or '.join(sources)}"
        raise _error(document, (*at, key), problem, f"Remove `{key}:`.")


def _error(document: Document, key: Key, what: str, fix: str) -> RecipeError:
    return RecipeError(what, where=document.mark(key).where, fix=fix)
