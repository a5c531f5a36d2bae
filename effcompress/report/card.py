"""The model card: what the model is, how good, where from, and what not to expect of it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from effcompress.record import readable
from effcompress.record.kind_labels import of
from effcompress.report import words
from effcompress.report.gather import Record, gather
from effcompress.report.render import render, replace
from effcompress.report.words import Row


def write_card(folder: Path, *, into: Path | None = None, base_model: str | None = None) -> Path:
    """Writes the model card as ``README.md`` into ``into`` (default: the run's own folder)."""
    path = (into or folder) / "README.md"
    replace(path, card(folder, base_model=base_model))
    return path


def card(folder: Path, *, base_model: str | None = None) -> str:
    """Returns the text of the model card. ``base_model`` is a hub id, where the source has one."""
    record = gather(folder)
    run, evaluation = record.run, record.after or record.before
    name = base_model or hub(record.recipe)
    tags = ["effcompress", "pruned", "text-generation"]
    tags += ["sparse"] if record.sparsified else []
    if record.tokens and record.cuts and not words.method(record.recipe, "recover"):
        tags.append("pruning-aware-training")
    versions = f"effcompress {run.effcompress}, torch {run.torch}, " if run else ""
    versions += f"transformers {run.transformers}" if run else ""
    return render(
        "card.md.jinja",
        base_model=json.dumps(name) if name else "",  # YAML reads JSON too
        tags=tags,
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
        load=words.load(record, "path/to/this/folder"),
        container=words.container(record),
        proof=words.proof(record),
        numbers=[*_numbers(record)],
        size=f"Size: {words.target(record)}. {words.padding(record)}".strip(),
        protocol=words.protocol(evaluation) if evaluation else "",
        same_protocol=words.same_protocol(record),
        seed=str(run.seed) if run else "?",
        versions=versions or "not recorded",
        device=run.device if run else "not recorded",
        started=(run and run.started) or "?",
        data=words.data(record),
        warnings=[*dict.fromkeys(record.warnings)],
    )


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
