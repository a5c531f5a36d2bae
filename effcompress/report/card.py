"""The model card: what the model is, how good, where from, and what not to expect of it."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path

from effcompress.record.kind_labels import of
from effcompress.report import numbers, sparsity, words
from effcompress.report.gather import Record, gather
from effcompress.report.page import replace

LIMITS = """\
- A research artefact. It has been tested on the texts named above and on nothing else.
- Pruning and this training were done on plain text: if the source model was aligned or tuned to
  follow instructions, this one has **not** been aligned again.
- It has the gaps and the biases of the source model, and pruning may have made them worse in ways
  that perplexity does not show."""


def write_card(folder: Path, *, into: Path | None = None, base_model: str | None = None) -> Path:
    """Write the model card of a run as ``README.md`` into the folder ``into`` (that of the model;
    default: the run's own).
    """
    path = (into or folder) / "README.md"
    replace(path, card(folder, base_model=base_model))
    return path


def card(folder: Path, *, base_model: str | None = None) -> str:
    """The text of the model card. ``base_model`` is a hub id, where the source has one."""
    record = gather(folder)
    parts = [
        _front(record, base_model or hub(record.recipe)),
        f"# {record.name}\n\n{words.verdict(record)}",
        _what(record),
        f"## How to load it\n\n```python\n{words.load(record, 'path/to/this/folder')}\n```\n\n"
        f"{words.container(record)} {words.proof(record)}",
        _numbers(record),
        _measured(record),
        _provenance(record),
        f"## Limits\n\n{LIMITS}",
    ]
    if said := words.status(record):
        parts.insert(2, f"> **{said}**")
    return "\n\n".join(part for part in parts if part) + "\n"


def hub(recipe: str) -> str | None:
    """The hub id whose weights the recipe starts from, if it names one; from scratch there is none,
    whatever the architecture was taken from.
    """
    found = re.search(r"^model:\n((?:[ ]+.*\n?)*)", recipe, re.MULTILINE)
    keys = dict(
        re.findall(r"^[ ]+(hub|random):[ ]*([^\s#]+)", found[1], re.MULTILINE) if found else ()
    )
    name = keys.get("hub", "null").strip("\"'")
    return None if name in ("null", "~") or keys.get("random") == "true" else name


def _front(record: Record, base_model: str | None) -> str:
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if base_model:
        lines += [f"base_model: {json.dumps(base_model)}"]
    tags = ["effcompress", "pruned", "text-generation"]
    if record.sparsified:
        tags.append("sparse")
    if record.tokens and record.cuts and not words.method(record.recipe, "recover"):
        tags.append("pruning-aware-training")
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _what(record: Record) -> str:
    name = record.run.model if record.run else "a model whose name was not recorded"
    source = escape(name, quote=False)
    gone = ""
    if record.cuts:
        shares = record.cuts[-1].share_removed
        listed = [f"{numbers.percent(s)} of the {of(k).plural}" for k, s in shares.items()]
        gone = f" Removed: {words.join(listed)}, in {len(record.cuts):,} cuts." if listed else ""
    after = "after" if words.method(record.recipe, "recover") else "while and after"
    if zeros := words.zeroed(record):
        assert record.sparsified is not None
        gone += f" {zeros}, by {sparsity.how(record.sparsified)}."
    trained = (
        f" It was trained on {record.tokens:,} tokens {after} it was pruned."
        if record.tokens and record.cuts
        else f" It was trained on {record.tokens:,} tokens."
        if record.tokens
        else " It was not trained afterwards."
    )
    lines = [
        f"- {key if section == 'prune' else f'{section}.{key}'}: `{value}`"
        for section in words.METHOD
        for key, value in words.method(record.recipe, section).items()
    ]
    method = "\n\nMethod, as the recipe puts it:\n\n" + "\n".join(lines) if lines else ""
    return f"## What it is\n\nMade from {source}.{gone}{trained}{method}"


def _numbers(record: Record) -> str:
    before, after = record.params_before, record.params_after
    if before is None or after is None:
        return ""
    change = numbers.percent(after / before - 1, sign=True)
    rows = [f"| parameters | {before:,} | {after:,} | {change} |"]
    if record.sparsified:
        rows.append(f"| of them zero, in linear layers | | {record.sparsified.zeroed:,} | |")
    for name, old, new in words.both(record):
        now = "not measured" if new is None else numbers.decimal(new)
        worse = "" if new is None or not old else numbers.percent(new / old - 1, sign=True)
        rows.append(f"| perplexity, {_cell(name)} | {numbers.decimal(old)} | {now} | {worse} |")
    for row in words.tasks(record):
        now = row.after or "not measured"
        change = words.change(row) if row.change else ""
        rows.append(f"| right answers in %, {_cell(row.name)} | {row.before} | {now} | {change} |")
    head = "| | before | after | change |\n|---|---:|---:|---:|\n"
    size = f"Size: {words.target(record)}. {words.padding(record)}".strip()
    return "## Numbers\n\n" + head + "\n".join(rows) + f"\n\n{size}"


def _measured(record: Record) -> str:
    evaluation = record.after or record.before
    if evaluation is None:
        return ""
    text = words.protocol(evaluation)
    if not words.same_protocol(record):
        text += " **Before and after used different protocols and must not be compared.**"
    return f"## How it was measured\n\n{text}"


def _provenance(record: Record) -> str:
    run = record.run
    lines = [f"- Recipe: {record.name}, seed {run.seed if run else '?'}"]
    if run is not None:
        versions = f"effcompress {run.effcompress}, torch {run.torch}"
        lines.append(f"- Versions: {versions}, transformers {run.transformers}")
        lines.append(f"- Device: {run.device}, started {run.started or '?'}")
    for name, data in (run.data if run else {}).items():
        amount = f"{data.documents:,} documents, {data.tokens:,} tokens"
        lines.append(f"- Data, {name}: {amount}, hash `{data.hash or ''}`")
    lines += [f"- Warning: {escape(text, quote=False)}" for text in dict.fromkeys(record.warnings)]
    return "## Where it comes from\n\n" + "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
