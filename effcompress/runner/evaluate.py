"""``effcompress eval``: the evaluation of a run again, or of a recipe's source model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from effcompress import recipe
from effcompress.errors import SourceError
from effcompress.log import make_view
from effcompress.recipe import LoadedRecipe
from effcompress.runner.folder import RESOLVED
from effcompress.runner.sheet import Answer, Sheet
from effcompress.spec import ModelSpec


def evaluate(target: LoadedRecipe | Path, *, offline: bool = False) -> Answer:
    """Perplexity per domain and one continuation, by the protocol of the recipe.

    ``target`` is a recipe (its source model is measured) or the folder of a run (its result).
    Raises SourceError when the folder holds no run.
    """
    if isinstance(target, Path):
        resolved = target / RESOLVED
        if not resolved.is_file() or not (target / "config.json").is_file():
            raise SourceError(
                "this folder holds no finished run",
                where=str(target),
                fix="Name a recipe or a run.",
            )
        loaded = recipe.load(resolved)
        spec = ModelSpec(folder=target)
    else:
        loaded, spec = target, target.recipe.model
    return _measure(loaded, spec, offline)


def _measure(loaded: LoadedRecipe, spec: ModelSpec, offline: bool) -> Answer:
    # Late: the imports of torch and transformers take seconds that a wrong path should not cost.
    from effcompress.model.load import load as load_model
    from effcompress.runner.measurement import evaluate as measure
    from effcompress.runner.state import device_of
    from effcompress.runner.text import corpus_of

    one = loaded.recipe
    view = make_view(interactive=False)
    try:
        model = load_model(spec, seed=one.seed, offline=offline, progress=view.note)
        corpus = corpus_of(
            one,
            model.tokenizer,
            offline=offline,
            say=view.note,
            notice=view.note,
            training=False,
        )
        module = model.module.to(device_of(one))
        found: dict[str, Any] = measure(module, model.tokenizer, corpus, one.evaluate)
    finally:
        view.close()
    params = sum(p.numel() for p in model.module.parameters())
    rows = tuple(
        (domain, f"{v['perplexity']:.3f}", f"{v['loss']:.4f}", f"{v['tokens']:,}")
        for domain, v in found["domains"].items()
    )
    title = f"{model.source}: {params:,} parameters"
    sheet = Sheet(title, ("domain", "perplexity", "nats per token", "tokens"), rows)
    notes = (
        ", ".join(f"{key} {value}" for key, value in found["protocol"].items()),
        f"{found['generation']['prompt']}{found['generation']['text']}",
    )
    facts = {"model": model.source, "params": params, **found}
    return Answer(facts | {"spec": dataclasses.asdict(spec)}, (sheet,), notes)
