"""``effcompress eval``: evaluates the result of a run, or a recipe's source model."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from effcompress import data
from effcompress.answer import Answer, Table
from effcompress.estimate.positions import require_positions
from effcompress.model.source import config_of, prompt_length
from effcompress.recipe import LoadedRecipe
from effcompress.record import events
from effcompress.record.events import Evaluation, Generation, Tasks, TaskScore
from effcompress.record.log import make_view
from effcompress.record.readable import with_error
from effcompress.runner.folder import opened
from effcompress.runner.preflight import require_harness, require_here, require_packages


def evaluate(
    target: LoadedRecipe | Path, *, overrides: Sequence[str] = (), offline: bool = False
) -> Answer:
    """Measures perplexity per domain, one continuation and the recipe's tasks, by its protocol.

    ``target`` is a recipe (its source model is evaluated) or the folder of a run (its result, with
    ``overrides`` applied to the recipe of the run; with ``evaluate.agreement`` beside its source
    model). Raises SourceError when the folder holds no
    run or its text cannot be used, RecipeError for tasks without the harness and for text or a
    continuation longer than a table of positions.
    """
    loaded, spec = opened(target, overrides)
    require_harness(loaded.recipe.evaluate.tasks)
    own = spec == loaded.recipe.model
    beside = own or loaded.recipe.evaluate.agreement
    require_packages(loaded, "data", *(["model"] if beside else []))
    data.preview(loaded.recipe.data)
    compared = loaded.recipe.evaluate.agreement and not own
    if offline and (own or compared):
        require_here(loaded)
    lines: list[str] = []
    if (config := config_of(spec)) is not None:
        prompt = prompt_length(spec, loaded.recipe.evaluate.prompt)
        lines = require_positions(loaded, config, prompt)
    # Imported here: torch and transformers take seconds, which a wrong path should not cost.
    from effcompress.isolation import require_isolation
    from effcompress.model.load import load as load_model
    from effcompress.runner.evaluation import evaluate as measure
    from effcompress.runner.start import corpus_of
    from effcompress.runner.state import device_of

    one = loaded.recipe
    with closing(make_view(interactive=False)) as view:
        say = view.note
        model = load_model(spec, seed=one.seed, offline=offline, progress=say)
        how: Any = {"offline": offline, "say": say}
        corpus = corpus_of(one, model.tokenizer, notice=say, training=False, **how)
        module = model.module.to(device_of(one))
        if corpus.isolated:
            require_isolation(module)
        params = sum(p.numel() for p in module.parameters())
        if compared:
            dense = load_model(one.model, seed=one.seed, offline=offline, progress=say)
            how["source"] = dense.module.to(device_of(one))
        of = (module, model.tokenizer, corpus, one.evaluate)
        found = measure(*of, when="after", params=params, **how)
    title = f"{model.source}: {params:,} parameters"
    sheets = (_perplexities(title, found), *([_accuracies(found.tasks)] if found.tasks else []))
    values = events.plain(found)
    facts = {"model": model.source, **{key: values[key] for key in values if key != "when"}}
    return Answer(facts | {"spec": dataclasses.asdict(spec)}, sheets, (*lines, *_notes(found)))


def _perplexities(title: str, found: Evaluation) -> Table:
    columns = ["domain", "perplexity", "nats per token", "tokens"]
    compared = any(d.agreement is not None for d in found.domains.values())
    columns += ["same token %", "KL to source"] if compared else []
    rows = []
    for domain, d in found.domains.items():
        row = [domain, f"{d.perplexity:.3f}", f"{d.loss:.4f}", f"{d.tokens:,}"]
        if d.agreement is not None and d.divergence is not None:
            row += [f"{100 * d.agreement:.1f}", f"{d.divergence:.4f}"]
        rows.append(tuple(row))
    return Table(title, tuple(columns), tuple(rows))


def _accuracies(solved: Tasks) -> Table:
    """A star marks the number that counts into the mean."""
    rows = []
    for name, score in solved.scores.items():
        both = [_metric(score, metric) for metric in ("acc", "acc_norm")]
        amount = f"{score.examples:,}/{score.of:,}"
        rows.append((name, *both, amount, score.split, score.version))
    if mean := solved.mean:
        value = with_error(mean.value, mean.stderr, width=4)
        rows.append((f"mean of {mean.of}", f"{value}*", "", "", "", ""))
    columns = ("task", "acc %", "acc_norm %", "examples", "split", "ver.")
    return Table(f"Tasks, {solved.protocol['harness']}", columns, tuple(rows))


def _metric(score: TaskScore, metric: str) -> str:
    value = score.metrics.get(metric)
    if value is None:
        return ""
    error = with_error(value, score.metrics.get(f"{metric}_stderr"), width=4)
    return error + ("*" if metric == score.metric else " ")


def _notes(found: Evaluation) -> list[str]:
    notes = [_said(found.protocol)]
    if solved := found.tasks:
        notes.append(f"tasks: {_said(solved.protocol)}")
        notes.append("* is the number that the mean takes; after \u00b1 stands one standard error")
        if cut := solved.protocol["shortened"]:
            notes.append(f"{cut} requests were too long and lost their beginning")
    words = found.generation or Generation()
    return [*notes, f"{words.prompt}{words.text}"]


def _said(protocol: Mapping[str, Any]) -> str:
    said = {key: "none" if value is None else value for key, value in protocol.items()}
    return ", ".join(f"{key} {value}" for key, value in said.items())
