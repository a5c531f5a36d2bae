"""The report of a run: one HTML file that needs nothing else, its pictures and their points."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from effcompress.record import readable
from effcompress.record.sentences import times, workload
from effcompress.report import words
from effcompress.report.charts import alone
from effcompress.report.gather import Record, gather
from effcompress.report.pictures import Picture, pictures
from effcompress.report.render import render, replace
from effcompress.report.speed import speed, told
from effcompress.report.words import Row

CARDS = 5
"""Cards beside each other, at most."""


@dataclass(frozen=True)
class Card:
    """A card at the top: a number or ``rows`` of them; ``tone`` is ``good``, ``bad`` or nothing."""

    title: str
    after: str = ""
    small: str = ""
    tone: str = ""
    before: str = ""
    rows: Sequence[Row] = ()


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
    # Without what is above `runs/`: a report is passed on.
    parts = folder.resolve().parts
    shown = "/".join(parts[-2:]) if parts[-2:-1] == ("runs",) else parts[-1]
    replace(
        folder / "report.html", page(record, drawn, model or shown, words.resume(record, shown))
    )
    return folder / "report.html"


def page(
    record: Record, drawn: Mapping[str, Picture], model: str, resume: tuple[str, str] | None = None
) -> str:
    """Returns the HTML of the page. ``model``: path that the model is loaded from; ``resume``:
    words and the command that continue the run, where it did not succeed.
    """
    run = record.run
    same = words.same_protocol(record)
    evaluation = record.after or record.before
    protocol = words.protocol(evaluation) if evaluation else ""
    if record.before and record.after and same:
        protocol += " The same protocol was used before and after."
    warnings = [*dict.fromkeys(record.warnings)]
    if not same:
        said = "The evaluations before and after used different protocols: do not compare."
        warnings.insert(0, said)
    cards = [*_cards(record)]
    small = [card for card in cards if not card.rows]
    started = ((run and run.started) or "").replace("T", " ")[:16]
    return render(
        "report.html.jinja",
        name=record.name,
        status=record.status,
        banner=words.status(record) or "",
        subtitle=" · ".join(filter(None, (run.model, run.device, started))) if run else "",
        verdict=words.verdict(record).replace(" %", "\u00a0%"),
        cards=small,
        # At most five beside each other, and rows of about the same length.
        beside=-(-len(small) // -(-len(small) // CARDS)) if small else 1,
        tables=[card for card in cards if card.rows],
        resume=resume,
        warnings=warnings,
        pictures={name: picture.svg for name, picture in drawn.items()},
        tasks=words.tasks(record),
        shapes=words.shapes(record),
        sizes=words.sizes(record),
        generations=[
            (
                f"{title}, {readable.count(one.params)} parameters",
                said.prompt,
                said.text.removeprefix(said.prompt),
            )
            for title, one in (("Before", record.before), ("After", record.after))
            if one and (said := one.generation)
        ],
        protocol=protocol,
        load=words.load(record, model) if record.export else "",
        container=words.container(record),
        proof=words.proof(record),
        details=[(name, said) for name, said in _details(record) if said],
        recipe=record.recipe,
        version=run.effcompress if run else "",
    )


def _answers(record: Record) -> Iterator[Card]:
    if alike := words.alike(record):
        yield Card("Same next token as the source model, %", *alike)
    for row in words.tasks(record)[:1]:
        small = f"{row.name}; {row.change}"
        yield Card("Answers right, %", row.after, small, before=row.before)


def _cards(record: Record) -> Iterator[Card]:
    before, after = record.params_before, record.params_after
    if before and after:
        small = f"{readable.percent(after / before - 1, sign=True)}; {words.target(record)}"
        yield Card("Parameters", readable.count(after), small, before=readable.count(before))
    if after and (made := record.sparsified):
        small = f"{words.fractions(made, after)}; {words.how(made)}"
        yield Card("Weights zeroed", readable.count(made.zeroed), small)
    if (seen := record.latency) is not None:
        was, now = (f"{value * 1e3:.4g} ms" for value in (seen.dense, seen.measured))
        yield Card(f"Time of {workload(seen)}", now, words.latency(seen), before=was)
    if rows := words.perplexities(record):
        yield Card("Perplexity", rows=rows)
    yield from _answers(record)
    wall = record.end and record.end.seconds
    if record.tokens:
        number = record.steps[-1].step if record.steps else 0
        last = f"{number:,} step{'' if number == 1 else 's'}"
        time = f"{last}, {readable.duration(wall)} in all" if wall else last
        yield Card("Trained on", f"{readable.count(record.tokens)} tokens", time)
    elif wall:
        yield Card("Wall time", readable.duration(wall), "without training")
    if found := speed(record):
        rates = readable.count(found.before), readable.count(found.after)
        yield Card("Tokens per second", rates[1], told(found), before=rates[0])
    said, tone = "Not proven", ""
    if record.proof:
        said, tone = ("Proven", "good") if record.proof.holds else ("Failed", "bad")
    yield Card(f"Loads in {words.loader(record)}", said, words.proof(record), tone)


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
    for name, amount, digest in words.data(record):
        yield f"Data: {name}", f"{amount}, hash {digest}"
    if (cut := record.absorbed) is not None:
        losses = (cut.loss_open, cut.loss_masked, cut.loss_cut)
        said = " / ".join(f"{loss:.3f}" for loss in losses)
        yield "Loss with gates open / under gates / of the cut model", said
        yield "Gates kept below 0.1", f"{cut.low:,} of {cut.kept:,}"
    if (chosen := record.allocation) is not None:
        yield "Widths chosen by", words.allocation(chosen)
    if (seen := record.latency) is not None:
        yield "Times", f"{times(seen)}; {words.measured(seen)}"
    yield from _sliced(record)
    yield from _quantised(record)
    if (made := record.sparsified) is not None:
        peak = f", {readable.size(made.memory_bytes)} at the peak" if made.memory_bytes else ""
        yield "Making zeros took", f"{readable.duration(made.seconds)}{peak}"
    if record.commit_difference is not None:
        difference = readable.power(record.commit_difference)
        yield "Shortening the tensors", f"changed no logit by more than {difference}"


def _quantised(record: Record) -> Iterator[tuple[str, str]]:
    for text in words.quantised(record):
        name, _, said = text.partition(": ")
        yield f"Quantised: {name}", said


def _sliced(record: Record) -> Iterator[tuple[str, str]]:
    if (turned := record.rotated) is None:
        return
    yield "Residual stream", f"{turned.channels} {words.ARROW} {turned.width} channels"
    least = min((place.energy for place in turned.places), default=1.0)
    yield "Energy that stays, at least", readable.percent(least)
    kept = "kept, between two small matrices" if turned.tied else "two matrices"
    yield "Embedding and output matrix", kept
    yield "Slicing took", readable.duration(turned.seconds)
    yield (
        "Slices for projections",
        (f"changed no logit by more than {readable.power(turned.max_logit_difference)}"),
    )
