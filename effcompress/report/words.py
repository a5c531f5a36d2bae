"""Sentences about a record, shared by the page and the card."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any

from effcompress.answer import Table
from effcompress.record import readable
from effcompress.record.events import (
    Allocation,
    Evaluation,
    Latency,
    Sparsify,
    TaskMean,
    Tasks,
    TaskScore,
)
from effcompress.record.kind_labels import of
from effcompress.record.sentences import cost
from effcompress.report.gather import RESOLVED, Record

METHOD = {
    "prune": (
        "target",
        "space",
        "criterion",
        "rotate",
        "hessian",
        "measure",
        "selector",
        "allocation",
        "workload",
        "schedule",
        "repair",
        "refit",
    ),
    "recover": ("method", "tokens", "lora", "distill"),
    "sparsify": ("method", "sparsity", "pattern", "sequences", "true_sequential", "skip_layers"),
}
"""Section of a recipe -> its keys that describe the method."""
ARROW = "\u2192"


def status(record: Record) -> str | None:
    """Returns the banner of a run that failed, was stopped or is unfinished; else None."""
    if record.status == "success":
        return None
    reason = (record.end and record.end.reason) or ""
    until = "What follows is what it recorded until then."
    if record.status == "failed":
        return f"This run failed: {(reason or 'no reason was recorded').rstrip('.')}. {until}"
    if record.status == "stopped":
        first, *_ = reason.partition("\n")
        return f"This run was stopped {first}. {until}"
    at = f" at step {record.steps[-1].step:,}" if record.steps else ""
    total = record.run and record.run.total_tokens
    share = f" ({readable.percent(record.tokens / total)} of the tokens)" if total else ""
    left = record.seconds_left
    left = "" if left is None else f", about {readable.clock_time(left)} left"
    doing = f" When this page was made: {record.phase}{left}." if record.phase else ""
    return f"This run is not finished: its record ends{at}{share}.{doing} No number below is final."


def resume(record: Record, folder: str) -> tuple[str, str] | None:
    """Returns how a run that did not succeed is continued: words, and the command; None for others,
    and where the recipe is not there. ``folder``: the run, seen from where the command is typed.
    """
    if record.status == "success" or not record.recipe:
        return None
    quoted = shlex.quote(folder)
    place = PurePosixPath(folder)
    where = f"the folder that holds {place.parent if len(place.parts) > 1 else folder}/"
    recipe = shlex.quote(f"{folder}/{RESOLVED}")
    command = f"effcompress run {recipe} --output {quoted} --resume"
    again = "Once its cause is mended, this" if record.status == "failed" else "This"
    return f"{again} continues it, typed in {where}:", command


def verdict(record: Record) -> str:
    """Returns the result in a few sentences: sizes, perplexity, tasks, proof."""
    parts: list[str] = []
    before, after = record.params_before, record.params_after
    if before and after:
        sizes = f"{readable.count(before)} {ARROW} {readable.count(after)} parameters"
        if zeros := zeroed(record):
            parts.append(f"{zeros}; {readable.count(after)} parameters.")
        elif after < before:
            parts.append(f"{readable.percent(1 - after / before)} smaller: {sizes}.")
        else:
            parts.append(f"Nothing was removed: {readable.count(after)} parameters.")
    if said := padding(record):
        parts.append(said)
    changes = {"rose": [], "fell": []}
    for name, old, new in both(record):
        if old and new is not None:
            changes["rose" if new > old else "fell"].append(
                f"by {readable.percent(abs(new / old - 1))} on {name}"
            )
    moves = [f"{verb} {join(amounts)}" for verb, amounts in changes.items() if amounts]
    if moves:
        parts.append(f"Perplexity {', and '.join(moves)}.")
    parts += [
        f"Right answers ({row.name}): {row.before} {ARROW} {row.after} %."
        for row in tasks(record)[:1]
        if row.before and row.after
    ]
    if record.proof and record.proof.holds:
        parts.append(f"The saved model loads in {loader(record)}, which was proven.")
    elif record.proof:
        parts.append("The saved model did not pass its reload proof.")
    return " ".join(parts) or "Nothing has been recorded yet."


def zeroed(record: Record) -> str:
    """Returns ``Parameters removed: 0, weights zeroed: 53.1M (...)``; empty without zeros."""
    before, after, made = record.params_before, record.params_after, record.sparsified
    if not (before and after and made):
        return ""
    gone = readable.count(before - after)
    return (
        f"Parameters removed: {gone}, weights zeroed: {readable.count(made.zeroed)} "
        f"({fractions(made, after)})"
    )


def fractions(made: Sparsify, params: int) -> str:
    """Returns ``50.0 % of linear layers, 39.5 % of all``."""
    layers = readable.percent(made.zeroed / max(1, made.weights))
    return f"{layers} of linear layers, {readable.percent(made.zeroed / params)} of all"


def how(made: Sparsify) -> str:
    """Returns ``magnitude, 2:4`` or ``magnitude, 50.0 %``."""
    return f"{made.method}, {made.pattern or readable.percent(made.sparsity)}"


def loader(record: Record) -> str:
    """Returns the library, and the class if the model brings one, that loads the saved model."""
    own = record.export is not None and record.export.form == "exact"
    return "transformers with the class that it brings" if own else "plain transformers"


def padding(record: Record) -> str:
    """Returns a sentence about the zeros that pad the saved file; empty without padding."""
    if record.export is None or not record.params_after:
        return ""
    zeros = record.export.parameters - record.params_after
    if zeros <= 0:
        return ""
    return (
        f"The saved file holds {readable.count(record.export.parameters)} parameters: "
        f"{readable.count(zeros)} of them are zeros that fill up what is narrower or gone."
    )


def data(record: Record) -> list[tuple[str, str, str]]:
    """Returns the domains that the run read: name, amounts in words, hash of the text."""
    return [
        (name, f"{one.documents:,} documents, {one.tokens:,} tokens", one.hash or "")
        for name, one in (record.run.data if record.run else {}).items()
    ]


@dataclass(frozen=True)
class Row:
    """One line of a table; ``change`` is empty where something was measured once only."""

    name: str
    before: str
    after: str
    change: str


def perplexities(record: Record) -> list[Row]:
    """Returns a row for each domain; ``after`` is empty where it was not measured."""
    found = []
    for name, before, after in both(record):
        now = "" if after is None else readable.decimal(after)
        change = "before only" if after is None else ""
        if after is not None and before:
            change = readable.percent(after / before - 1, sign=True)
        found.append(Row(name, readable.decimal(before), now, change))
    return found


def both(record: Record) -> list[tuple[str, float, float | None]]:
    """Returns (domain, perplexity before, after); after is None until it is measured."""
    if record.before is None:
        return []
    later = record.after.domains if record.after else {}
    return [
        (name, score.perplexity, later[name].perplexity if name in later else None)
        for name, score in record.before.domains.items()
    ]


def alike(record: Record) -> tuple[str, str] | None:
    """Returns in percent how often the result's most likely next token is the source model's, mean
    over the domains, and a sentence with the domains and the KL divergence; None where they were
    not compared.
    """
    found = record.after.domains if record.after else {}
    held = {n: d for n, d in found.items() if d.agreement is not None and d.divergence is not None}
    if not held:
        return None
    mean = sum(d.agreement or 0.0 for d in held.values()) / len(held)
    far = sum(d.divergence or 0.0 for d in held.values()) / len(held)
    each = join([f"{name} {100 * (d.agreement or 0.0):.1f}" for name, d in held.items()])
    return f"{100 * mean:.1f}", f"{each}; KL {readable.decimal(far)} nats per token"


def at_sizes(record: Record) -> list[tuple[str, int, Mapping[str, float]]]:
    """Returns (name, parameters, domain -> perplexity) of the source model, of every model at a
    size that the run passed, and of the result, as far as they are measured.
    """
    found: list[tuple[str, int, Mapping[str, float]]] = []
    for name, one in (("dense", record.before), ("final", record.after)):
        if one is not None:
            scores = {domain: score.perplexity for domain, score in one.domains.items()}
            found.append((name, one.params, scores))
    return [*found[:1], *((s.name, s.params, s.perplexity) for s in record.sizes), *found[1:]]


def sizes(record: Record) -> Table | None:
    """The models of a run at several sizes; None where there is one alone."""
    if not record.sizes:
        return None
    events = {event.name: event for event in record.sizes}
    every = at_sizes(record)
    domains = [*dict.fromkeys(domain for _, _, scores in every for domain in scores)]
    rows = []
    for name, params, scores in every:
        event = events.get(name)
        values = (readable.decimal(scores[d]) if d in scores else "-" for d in domains)
        when = [readable.count(event.tokens), event.folder] if event is not None else ["-", ""]
        if event is not None and event.continued:
            when[0] += f" + {readable.count(event.continued)}"
        rows.append((name, f"{params:,}", *values, *when))
    title = (
        "Perplexity per token, by domain. Tokens: those of the run when it passed the size, and, "
        "behind the plus, those that the model was trained on after that."
    )
    return Table(title, ("size", "parameters", *domains, "tokens", "folder"), tuple(rows))


def tasks(record: Record) -> list[Row]:
    """Returns tasks before and after, the mean first; ``change`` is in points."""
    old, new = record.before, record.after
    return [
        replace(row, change=f"{row.change} points" if row.change else "measured once")
        for row in task_rows(old and old.tasks, new and new.tasks)
    ]


def task_rows(before: Tasks | None, after: Tasks | None) -> list[Row]:
    """Returns accuracies of both evaluations in percent, the mean first, then task by task."""
    old, new = _scores(before), _scores(after)
    found = []
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name), new.get(name)
        one = a or new[name]
        title = f"{name} ({one.metric})" if isinstance(one, TaskScore) and one.metric else name
        was, now = (readable.with_error(x.value, x.stderr) if x else "" for x in (a, b))
        found.append(Row(title, was, now, readable.points(b.value - a.value) if a and b else ""))
    return found


def _scores(tasks: Tasks | None) -> dict[str, TaskMean | TaskScore]:
    if tasks is None:
        return {}
    return ({f"mean of {tasks.mean.of}": tasks.mean} if tasks.mean else {}) | dict(tasks.scores)


def join(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def target(record: Record) -> str:
    """Returns the target size and by how much the run missed it."""
    if record.target is None and (made := record.allocation) is not None:
        if (seen := record.latency) is not None and seen.asked_speed_up is not None:
            return f"chosen for {seen.asked_speed_up:g} times the speed"
        return f"chosen for {cost(made.asked, made.unit)}"
    if record.target is None or record.params_after is None:
        return "no target size"
    miss = record.params_after / record.target - 1
    where = f"target {readable.count(record.target)}"
    if abs(miss) <= 0.005:
        return f"{where}, met (off by {abs(miss) * 100:.2f} %)"
    over = record.end and record.status != "stopped"
    return f"{where}, missed by {readable.percent(abs(miss))}" if over else where


def latency(event: Latency) -> str:
    """Returns what was asked and predicted, and the speed-up."""
    asked, predicted = (f"{value * 1e3:.4g} ms" for value in (event.asked, event.predicted))
    return f"asked {asked}, predicted {predicted}; x{event.speed_up:.2f} as fast"


def measured(event: Latency) -> str:
    """Returns how times were measured."""
    low, high = (f"{value * 1e3:.4g}" for value in (event.low, event.high))
    return (
        f"median of {event.rounds} rounds ({low} to {high} ms) in turns with a model of the source "
        f"model's shape, on {event.threads} threads"
    )


def allocation(event: Allocation) -> str:
    """Returns the method, what the choice costs, and how whole models were compared."""
    sizes = [cost(v, event.unit) for v in (event.before, event.asked, event.predicted)]
    text = f"{event.method}, errors of {event.errors}: {sizes[0]} before, asked {sizes[1]}, "
    text += f"predicted {sizes[2]}"
    if event.aimed is not None:
        text += f" (aimed at {cost(event.aimed, event.unit)} after a model was timed)"
    if event.loss is not None:
        text += f"; KL to the source model {event.loss:.4f} nats per token"
    if event.comparisons:
        text += f", {event.comparisons:,} comparisons"
    return f"{text}; {readable.duration(event.seconds)}"


def protocol(evaluation: Evaluation) -> str:
    """Returns how perplexity was measured, and tasks if there are any."""
    said = dict(evaluation.protocol)
    amount = [
        f"{name} {score.sequences:,} sequences ({score.tokens:,} tokens)"
        for name, score in evaluation.domains.items()
    ]
    window, stride = said.pop("window", None), said.pop("stride", None)
    text = (
        "Perplexity is the exponential of the mean negative log-likelihood per token of held-out "
        f"text: {join(amount)}"
    )
    if window:
        apart = "that do not overlap" if stride == window else f"every {stride} tokens"
        text += f", in windows of {window} tokens {apart}"
    text += ". "
    text += _settings(said)
    if evaluation.tasks:
        said = dict(evaluation.tasks.protocol)
        limit = said.pop("limit", None)
        text += (
            "Tasks were solved by likelihood of the given answers, "
            f"{f'the first {limit} examples of each' if limit else 'all examples'}; accuracy in "
            f"percent with its standard error. {_settings(said)}"
        )
    return text.rstrip()


def _settings(protocol: Mapping[str, Any]) -> str:
    said = [f"{key.replace('_', ' ')}: {_value(value)}" for key, value in protocol.items()]
    return f"Settings: {'; '.join(said)}. " if said else ""


def same_protocol(record: Record) -> bool:
    """Whether both evaluations used the same protocol, text and tasks."""
    if record.before is None or record.after is None:
        return True
    first, second = (
        (
            e.protocol,
            e.tasks and e.tasks.protocol,
            {name: (s.tokens, s.sequences) for name, s in e.domains.items()},
        )
        for e in (record.before, record.after)
    )
    return first == second


def load(record: Record, path: str) -> str:
    """Returns three lines of Python that load the model from ``path``."""
    own = ", trust_remote_code=True" if record.export and record.export.form == "exact" else ""
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f'model = AutoModelForCausalLM.from_pretrained("{path}"{own})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{path}"{own})'
    )


def container(record: Record) -> str:
    """Returns the class that the model is saved as, and why it is that one."""
    if record.export is None:
        return "No model has been saved yet."
    saved, size = record.export, f"{readable.size(record.export.bytes)} on disk"
    why = f": {saved.why.rstrip('.')}." if saved.why else ""
    if saved.form == "exact":
        return (
            f"It is saved with its shapes as they are, {size}; a small class lies in the folder, "
            f"so plain transformers needs `trust_remote_code=True`.{why and f' Why{why}'}"
        )
    return (
        f"It is saved as a stock {saved.container.capitalize()} model of transformers, {size}; no "
        f"extra code is needed to load it.{why and f' Why this class{why}'}"
    )


def proof(record: Record) -> str:
    """Returns the result of the reload proof."""
    if record.proof is None:
        if record.export is None:
            return "No model has been saved yet."
        return "The saved model has not been reloaded yet."
    tokens = "the same tokens" if record.proof.tokens_equal else "different tokens"
    seconds = record.proof.seconds
    took = f" and compared it in {readable.duration(seconds)}" if seconds else ""
    cache = "with and without cache" if record.proof.cache_equal else "not the same with a cache"
    return (
        f"A fresh process loaded it{took}: {tokens}, {cache}; "
        f"largest difference of a logit {readable.power(record.proof.max_logit_difference)}."
    )


def quantised(record: Record) -> list[str]:
    """Returns a sentence for every quantised file: its type, size and perplexity."""
    newest = {one.output: one for one in record.exports if one.after}
    found = []
    for one in newest.values():
        changes = []
        for name, after in one.after.items():
            before = one.before[name].perplexity if name in one.before else None
            change = readable.percent(after.perplexity / before - 1, sign=True) if before else ""
            was = f"{readable.decimal(before)} {ARROW} " if before else ""
            moved = f" ({change})" if change else ""
            changes.append(f"{was}{readable.decimal(after.perplexity)}{moved} on {name}")
        size = readable.size(one.bytes)
        found.append(f"{one.output}: {one.numbers}, {size}; perplexity {join(changes)}")
    return found


def method(recipe: str, name: str = "prune") -> dict[str, str]:
    """Returns the keys of a recipe's section that describe the method, with their values."""
    section = _section(recipe.splitlines(), name)
    found: dict[str, str] = {}
    for key in METHOD[name]:
        # `taylor2`, `keep: 0.85` or `ffn, attention` out of the lines below the key.
        parts = [line.strip().removeprefix("- ") for line in _section(section, key)]
        text = ", ".join(parts).replace(":,", ":").strip().strip("{}\"'")
        if text not in ("", "null", "[]"):
            found[key] = text
    return found


def _section(lines: list[str], key: str) -> list[str]:
    """Returns the lines below a key, without their common indent. The recipe stays text here: YAML
    is read in ``recipe/``, and a report must not fail because of a file that it only quotes.
    """
    for i, line in enumerate(lines):
        match = re.match(rf"{re.escape(key)}:\s*(.*)$", line)
        if not match:
            continue
        body = [_uncommented(match[1])] if _uncommented(match[1]) else []
        below = takewhile(lambda x: not x.strip() or re.match(r"\s|- ", x), lines[i + 1 :])
        inside = [text for text in map(_uncommented, below) if text.strip()]
        depth = min((len(x) - len(x.lstrip()) for x in inside), default=0)
        return body + [x[depth:] for x in inside]
    return []


def _uncommented(line: str) -> str:
    return re.sub(r"(^|\s)#.*$", "", line).rstrip()


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_value(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(_value(v) for v in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def shapes(record: Record) -> Table | None:
    """The shapes that a search tried, the best first; None where none was searched for."""
    if (found := record.search) is None:
        return None
    kinds = [*found.chosen]
    tried = sorted(found.tried, key=lambda shape: shape.loss)
    active = any(shape.active for shape in tried)
    rows = [
        (
            *(str(shape.units[kind]) for kind in kinds),
            *((readable.exact_count(shape.active),) if active else ()),
            readable.exact_count(shape.params),
            f"{shape.loss:.4f}",
            "taken" if shape.units == found.chosen else "",
        )
        for shape in tried
    ]
    title = (
        f"The largest shapes of the grid that are not above the target; loss in nats per token of "
        f"the masked model on {found.sequences} calibration sequences."
    )
    sizes = ("active", "parameters") if active else ("parameters",)
    columns = (*(of(kind).short for kind in kinds), *sizes, "loss", "")
    return Table(title, columns, tuple(rows))
