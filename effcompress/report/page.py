"""The report of a run: one HTML file that needs nothing else, its pictures and their points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from effcompress.record.events import Evaluation
from effcompress.report import numbers, words
from effcompress.report.charts import alone
from effcompress.report.gather import Record, gather
from effcompress.report.pictures import Picture, pictures
from effcompress.report.render import render, replace
from effcompress.report.solved import Row
from effcompress.report.sparsity import cost, fractions, how
from effcompress.report.speed import speed, told


@dataclass(frozen=True)
class Card:
    """One of the cards at the top: a number (``before`` and ``after``) or ``rows`` of them;
    ``tone`` is ``good``, ``bad`` or nothing.
    """

    title: str
    after: str = ""
    small: str = ""
    tone: str = ""
    before: str = ""
    rows: Sequence[Row] = ()


@dataclass(frozen=True)
class Generation:
    """The prompt and how one model continued it."""

    title: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Page:
    """What ``report.html.jinja`` shows; what is empty is left out."""

    name: str
    status: str
    banner: str
    subtitle: str
    verdict: str
    cards: Sequence[Card]
    warnings: Sequence[str]
    pictures: Mapping[str, str]
    tasks: Sequence[Row]
    generations: Sequence[Generation]
    protocol: str
    load: str
    container: str
    proof: str
    details: Sequence[tuple[str, str]]
    recipe: str
    version: str


def write(folder: Path, *, model: str | None = None) -> Path:
    """Writes ``report.html``, ``pictures/*.svg`` and their points (``pictures/*.csv``) of a run
    folder; returns the page's path.

    ``model`` is the path that the page tells people to load the model from; default: the run folder
    (``runs/<name>``), because that is where the model is saved.
    Only the record is read: the page can be made again years later, without the model.
    """
    record = gather(folder)
    drawn = pictures(record)
    (folder / "pictures").mkdir(exist_ok=True)
    for name, picture in drawn.items():
        replace(folder / "pictures" / f"{name}.svg", alone(picture.svg))
        if picture.table:
            replace(folder / "pictures" / f"{name}.csv", picture.table)
    replace(folder / "report.html", page(record, drawn, model or _shown(folder)))
    return folder / "report.html"


def _shown(folder: Path) -> str:
    """The folder without what is above ``runs/``: a report is passed on."""
    parts = folder.resolve().parts
    return "/".join(parts[-2:]) if parts[-2:-1] == ("runs",) else parts[-1]


def page(record: Record, drawn: Mapping[str, Picture], model: str) -> str:
    """Returns the HTML of the page."""
    run = record.run
    evaluation = record.after or record.before
    view = Page(
        name=record.name,
        status=record.status,
        banner=words.status(record) or "",
        subtitle=_subtitle(record),
        verdict=words.verdict(record).replace(" %", "\u00a0%"),
        cards=[*_cards(record)],
        warnings=_warnings(record),
        pictures={name: picture.svg for name, picture in drawn.items()},
        tasks=words.tasks(record),
        generations=[
            _generation(title, one)
            for title, one in (("Before", record.before), ("After", record.after))
            if one and one.generation
        ],
        protocol=_protocol(record, evaluation) if evaluation else "",
        load=words.load(record, model) if record.export else "",
        container=words.container(record),
        proof=words.proof(record),
        details=[(name, said) for name, said in _details(record) if said],
        recipe=record.recipe,
        version=run.effcompress if run else "",
    )
    return render("report.html.jinja", page=view)


def _subtitle(record: Record) -> str:
    run = record.run
    if run is None:
        return ""
    started = (run.started or "").replace("T", " ")[:16]
    return " · ".join(part for part in (run.model, run.device, started) if part)


def _cards(record: Record) -> Iterator[Card]:
    before, after = record.params_before, record.params_after
    if before and after:
        small = f"{numbers.percent(after / before - 1, sign=True)}; {words.target(record)}"
        yield Card("Parameters", numbers.count(after), small, before=numbers.count(before))
    if after and (made := record.sparsified):
        small = f"{fractions(made, after)}; {how(made)}"
        yield Card("Weights zeroed", numbers.count(made.zeroed), small)
    if rows := words.perplexities(record):
        yield Card("Perplexity", rows=rows)
    for row in words.tasks(record)[:1]:
        small = f"{row.name}; {row.change}"
        yield Card("Answers right, %", row.after, small, before=row.before)
    wall = record.end and record.end.seconds
    if record.tokens:
        number = record.steps[-1].step if record.steps else 0
        last = f"{number:,} step{'' if number == 1 else 's'}"
        time = f"{last}, {numbers.duration(wall)} in all" if wall else last
        yield Card("Trained on", f"{numbers.count(record.tokens)} tokens", time)
    elif wall:
        yield Card("Wall time", numbers.duration(wall), "without training")
    if found := speed(record):
        rates = numbers.count(found.before), numbers.count(found.after)
        yield Card("Tokens per second", rates[1], told(found), before=rates[0])
    said, tone = "Not proven", ""
    if record.proof:
        said, tone = ("Proven", "good") if record.proof.holds else ("Failed", "bad")
    yield Card(f"Loads in {words.loader(record)}", said, words.proof(record), tone)


def _warnings(record: Record) -> list[str]:
    said = [*dict.fromkeys(record.warnings)]
    if not words.same_protocol(record):
        said.insert(0, "The evaluations before and after used different protocols: do not compare.")
    return said


def _generation(title: str, evaluation: Evaluation) -> Generation:
    words = evaluation.generation
    prompt, text = (words.prompt, words.text) if words else ("", "")
    return Generation(
        f"{title}, {numbers.count(evaluation.params)} parameters",
        prompt,
        text.removeprefix(prompt),
    )


def _protocol(record: Record, evaluation: Evaluation) -> str:
    both = record.before and record.after and words.same_protocol(record)
    extra = " The same protocol was used before and after." if both else ""
    return words.protocol(evaluation) + extra


def _details(record: Record) -> Iterator[tuple[str, str]]:
    if (run := record.run) is not None:
        yield "Seed", str(run.seed)
        yield "effcompress", run.effcompress
        yield "torch", run.torch
        yield "transformers", run.transformers
        yield "Device", f"{run.device}, {run.threads or '?'} threads"
    for section in words.METHOD:
        for key, value in words.method(record.recipe, section).items():
            yield f"{section.capitalize()}: {key.replace('_', ' ')}", value
    for data in words.data(record):
        yield f"Data: {data.name}", f"{data.amount}, hash {data.hash}"
    if record.sparsified is not None:
        yield "Making zeros took", cost(record.sparsified)
    if record.commit_difference is not None:
        difference = numbers.power(record.commit_difference)
        yield "Shortening the tensors", f"changed no logit by more than {difference}"
