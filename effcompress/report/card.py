"""The model card: what the model is, how good, where from, and what not to expect of it.

Its front matter is what the Hugging Face Hub reads: https://huggingface.co/docs/hub/model-cards
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from effcompress.record import readable
from effcompress.record.events import Exported, SourceFacts
from effcompress.record.kind_labels import of
from effcompress.report import words
from effcompress.report.gather import Record, gather, replaced
from effcompress.report.render import render, replace
from effcompress.report.words import Row

PATH = "path/to/this/folder"
"""What a card that lies in a folder loads the model from."""
RELATION = "finetune"
"""The hub knows adapter, finetune, merge and quantized; pruned weights are nearest to this one."""


def write_card(folder: Path, *, into: Path | None = None, base_model: str | None = None) -> Path:
    """Writes the model card as ``README.md`` into ``into`` (default: the run's own folder)."""
    path = (into or folder) / "README.md"
    replace(path, card(folder, base_model=base_model))
    return path


def card(
    folder: Path,
    *,
    base_model: str | None = None,
    at: str = PATH,
    exported: Exported | None = None,
) -> str:
    """Returns the text of the model card. ``base_model`` is a hub id, where the source has one
    and the record does not say it; ``at`` is what the model is loaded from. ``exported``: the card
    of that later export in place of the run's own.
    """
    record = gather(folder)
    if exported is not None:
        record = replaced(record, exported)
    run, evaluation = record.run, record.after or record.before
    versions = f"effcompress {run.effcompress}, torch {run.torch}, " if run else ""
    versions += f"transformers {run.transformers}" if run else ""
    return render(
        "card.md.jinja",
        front=_front(record, base_model),
        name=record.name,
        banner=words.status(record) or "",
        verdict=words.verdict(record),
        source=run.model if run else "a model whose name was not recorded",
        made=_made(record),
        method=[
            (key if section == "prune" else f"{section}.{key}", value)
            for section in words.METHOD
            for key, value in words.method(record.recipe, section).items()
        ],
        load=words.load(record, at),
        container=words.container(record),
        proof=words.proof(record),
        numbers=[*_numbers(record)],
        size=f"Size: {words.target(record)}. {words.padding(record)}".strip(),
        quantised=words.quantised(record),
        protocol=words.protocol(evaluation) if evaluation else "",
        same_protocol=words.same_protocol(record),
        seed=str(run.seed) if run else "?",
        versions=versions or "not recorded",
        device=run.device if run else "not recorded",
        started=(run and run.started) or "?",
        data=words.data(record),
        warnings=[*dict.fromkeys(record.warnings)],
    )


def _front(record: Record, base_model: str | None) -> str:
    """Returns the front matter as YAML: license, languages and base model as far as the source
    states them, hub ids of the texts, and the figures of the last evaluation.
    """
    from huggingface_hub import ModelCardData

    run = record.run
    facts = (run and run.facts) or SourceFacts()
    name = base_model or facts.base_model or hub(record.recipe)
    tags = ["effcompress", "pruned", "text-generation"]
    tags += ["sparse"] if record.sparsified else []
    tags += ["custom_code"] if record.export and record.export.form == "exact" else []
    if record.tokens and record.cuts and not words.method(record.recipe, "recover"):
        tags.append("pruning-aware-training")
    texts = [one.hub for one in (run.data.values() if run else ()) if one.hub]
    results = [*_results(record)]
    more: dict[str, Any] = {"base_model_relation": RELATION} if name else {}
    if results:
        more |= {"model_name": record.name, "eval_results": results}
    made = ModelCardData(
        base_model=name,
        datasets=[*dict.fromkeys(texts)] or None,
        language=[*facts.languages] or None,
        library_name="transformers",
        license=facts.license,
        license_name=facts.license_name,
        license_link=facts.license_link,
        pipeline_tag="text-generation",
        tags=tags,
        **more,
    )
    return made.to_yaml()


def _results(record: Record) -> Iterator[Any]:
    """Yields the perplexity of every domain and the accuracy of every task after the run, as the
    hub lists results of evaluations.
    """
    from huggingface_hub import EvalResult

    if (found := record.after) is None:
        return
    run_data = record.run.data if record.run else {}
    for name, score in found.domains.items():
        if not math.isfinite(score.perplexity):
            continue
        data = run_data.get(name)
        yield EvalResult(
            task_type="text-generation",
            dataset_type=(data and data.hub) or name,
            dataset_name=f"{name}, held out",
            metric_type="perplexity",
            metric_name="perplexity per token",
            metric_value=round(score.perplexity, 4),
        )
    for name, solved in (found.tasks.scores if found.tasks else {}).items():
        yield EvalResult(
            task_type="text-generation",
            dataset_type=name,
            dataset_name=name,
            dataset_split=solved.split or None,
            metric_type="accuracy",
            metric_name=solved.metric,
            metric_value=round(solved.value, 4),
        )


def is_own_card(folder: Path) -> bool:
    """Whether the card in a run's folder says what the record says, so that it can be made again;
    else it was edited, or an earlier version wrote it.
    """
    path = folder / "README.md"
    return path.is_file() and path.read_text("utf-8", errors="replace") == card(folder)


def hub(recipe: str) -> str | None:
    """Returns the hub id that the recipe starts from; None for random weights, or without one."""
    found = re.search(r"^model:\n((?:[ ]+.*\n?)*)", recipe, re.MULTILINE)
    keys = dict(
        re.findall(r"^[ ]+(hub|random):[ ]*([^\s#]+)", found[1], re.MULTILINE) if found else ()
    )
    name = keys.get("hub", "null").strip("\"'")
    return None if name in ("null", "~") or keys.get("random") == "true" else name


def _made(record: Record) -> str:
    """What was removed, zeroed and trained, in sentences with a space before each."""
    said = ""
    if record.cuts:
        fractions = record.cuts[-1].share_removed
        listed = [f"{readable.percent(s)} of the {of(k).plural}" for k, s in fractions.items()]
        said = f" Removed: {words.join(listed)}, in {len(record.cuts):,} cuts." if listed else ""
    if (zeros := words.zeroed(record)) and record.sparsified:
        said += f" {zeros}, by {words.how(record.sparsified)}."
    if not record.tokens:
        return f"{said} It was not trained afterwards."
    after = "after" if words.method(record.recipe, "recover") else "while and after"
    when = f" {after} it was pruned" if record.cuts else ""
    return f"{said} It was trained on {record.tokens:,} tokens{when}."


def _numbers(record: Record) -> Iterator[Row]:
    before, after = record.params_before, record.params_after
    if before is None or after is None:
        return
    change = readable.percent(after / before - 1, sign=True)
    yield Row("parameters", f"{before:,}", f"{after:,}", change)
    if record.sparsified:
        yield Row("of them zero, in linear layers", "", f"{record.sparsified.zeroed:,}", "")
    for row in words.perplexities(record):
        now = row.after or "not measured"
        change = row.change if row.after else ""
        yield Row(f"perplexity, {row.name}", row.before, now, change)
    for row in words.tasks(record):
        both = row.before and row.after
        now = row.after or "not measured"
        yield Row(f"right answers in %, {row.name}", row.before, now, row.change if both else "")
