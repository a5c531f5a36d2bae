"""The page: one file that needs nothing else, for somebody with ten seconds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path

from effcompress.record.events import Evaluation, Generation
from effcompress.report import numbers, words
from effcompress.report.gather import Record, gather
from effcompress.report.pictures import Picture, alone, pictures
from effcompress.report.solved import Row
from effcompress.report.sparsity import cost, fractions, how
from effcompress.report.speed import speed, told
from effcompress.report.style import PAGE


def write(folder: Path, *, model: str | None = None) -> Path:
    """Write ``report.html``, ``pictures/*.svg`` and their points (``pictures/*.csv``) of a run
    folder; the page's path comes back.

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
    """The folder as people name it. Never the whole path: a report travels."""
    parts = folder.resolve().parts
    return "/".join(parts[-2:]) if parts[-2:-1] == ("runs",) else parts[-1]


def replace(path: Path, text: str) -> None:
    """Write a file so that no reader ever sees half of it."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        file.write(text)
    Path(file.name).chmod(0o644)  # temporary files are private; a report is for others to read
    Path(file.name).replace(path)


def page(record: Record, drawn: dict[str, Picture], model: str) -> str:
    """The HTML of the page."""
    sections = [
        _banner(record),
        f"<header><h1>{escape(record.name)}</h1>{_subtitle(record)}</header>",
        f'<p class="lead">{escape(words.verdict(record)).replace(" %", "&nbsp;%")}</p>',
        f'<div class="cards">{"".join(_cards(record))}</div>',
        _warnings(record),
        _figures(drawn),
        _tasks(record),
        _generations(record),
        _protocol(record),
        _loading(record, model),
        _details(record),
        _recipe(record),
        f"<footer>Made by effcompress {escape(record.run.effcompress if record.run else '')} from "
        "the record of the run.</footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(record.name)}: effcompress report</title><style>{PAGE}</style></head>\n"
        f"<body><main>{chr(10).join(s for s in sections if s)}</main></body></html>\n"
    )


def _banner(record: Record) -> str:
    said = words.status(record)
    return f'<div class="banner {record.status}"><p>{escape(said)}</p></div>' if said else ""


def _subtitle(record: Record) -> str:
    run = record.run
    started = ((run and run.started) or "").replace("T", " ")[:16]
    parts = [part for part in (run.model, run.device, started) if part] if run else []
    return f'<p class="sub">{escape(" · ".join(parts))}</p>'


def _card(title: str, big: str, small: str = "", tone: str = "") -> str:
    return (
        f'<div class="card"><h3>{escape(title)}</h3><p class="big {tone}">{big}</p>'
        f'<p class="small">{escape(small)}</p></div>'
    )


def _arrow(before: str, after: str) -> str:
    return f'{escape(before)} <span class="to">{words.ARROW}</span> {escape(after)}'


def _two(row: Row) -> str:
    return _arrow(row.before, row.after) if row.change else escape(row.before or row.after)


def _cards(record: Record) -> Iterator[str]:
    before, after = record.params_before, record.params_after
    if before and after:
        change = numbers.percent(after / before - 1, sign=True)
        big = _arrow(numbers.count(before), numbers.count(after))
        yield _card("Parameters", big, f"{change}; {words.target(record)}")
    if after and (made := record.sparsified):
        small = f"{fractions(made, after)}; {how(made)}"
        yield _card("Weights zeroed", numbers.count(made.zeroed), small)
    if rows := "".join(_perplexities(record)):
        title = "<h3>Perplexity</h3>"
        yield f'<div class="card tall">{title}<table class="rows">{rows}</table></div>'
    for row in words.tasks(record)[:1]:
        yield _card("Answers right, %", _two(row), f"{row.name}; {words.change(row)}")
    wall = record.end and record.end.seconds
    if record.tokens:
        number = record.steps[-1].step if record.steps else 0
        last = f"{number:,} step{'' if number == 1 else 's'}"
        time = f"{last}, {numbers.duration(wall)} in all" if wall else last
        yield _card("Trained on", f"{numbers.count(record.tokens)} tokens", time)
    elif wall:
        yield _card("Wall time", numbers.duration(wall), "without training")
    if found := speed(record):
        big = _arrow(numbers.count(found.before), numbers.count(found.after))
        yield _card("Tokens per second", big, told(found))
    if record.proof:
        big, tone = ("Proven", "good") if record.proof.holds else ("Failed", "bad")
        yield _card(f"Loads in {words.loader(record)}", big, words.proof(record), tone)
    else:
        yield _card(f"Loads in {words.loader(record)}", "Not proven", words.proof(record))


def _perplexities(record: Record) -> Iterator[str]:
    for name, before, after in words.both(record):
        if after is None:
            yield (
                f"<tr><td>{escape(name)}</td><td>{numbers.decimal(before)}</td>"
                '<td class="change">before only</td></tr>'
            )
            continue
        change = numbers.percent(after / before - 1, sign=True) if before else ""
        yield (
            f"<tr><td>{escape(name)}</td><td>{numbers.decimal(before)} {words.ARROW} "
            f'<span class="now">{numbers.decimal(after)}</span></td>'
            f'<td class="change">{change}</td></tr>'
        )


def _warnings(record: Record) -> str:
    said = list(dict.fromkeys(record.warnings))
    if not words.same_protocol(record):
        said.insert(0, "The evaluations before and after used different protocols: do not compare.")
    if not said:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in said)
    return f'<h2>Warnings</h2><div class="banner"><ul>{items}</ul></div>'


def _figures(drawn: dict[str, Picture]) -> str:
    if not drawn:
        return ""
    figures = "".join(f'<figure id="{name}">{one.svg}</figure>' for name, one in drawn.items())
    return f'<h2>What happened</h2><div class="grid">{figures}</div>'


def _tasks(record: Record) -> str:
    body = "".join(
        f"<tr><th>{escape(row.name)}</th><td>{_two(row)}</td>"
        f'<td class="change">{escape(words.change(row))}</td></tr>'
        for row in words.tasks(record)
    )
    card = f'<div class="card"><table class="rows">{body}</table></div>'
    return f"<h2>Tasks: answers right, in percent</h2>{card}" if body else ""


def _generations(record: Record) -> str:
    cards = [
        _said(title, evaluation)
        for title, evaluation in (("Before", record.before), ("After", record.after))
        if evaluation and evaluation.generation
    ]
    return f'<h2>In its own words</h2><div class="two">{"".join(cards)}</div>' if cards else ""


def _said(title: str, evaluation: Evaluation) -> str:
    words_of = evaluation.generation or Generation()
    text = words_of.text.removeprefix(words_of.prompt)
    heading = f"{title}, {numbers.count(evaluation.params)} parameters"
    return (
        f'<div class="card"><h3>{heading}</h3><p class="said"><span class="prompt">'
        f"{escape(words_of.prompt)}</span>{escape(text)}</p></div>"
    )


def _protocol(record: Record) -> str:
    evaluation = record.after or record.before
    if evaluation is None:
        return ""
    extra = (
        " The same protocol was used before and after."
        if (record.before and record.after and words.same_protocol(record))
        else ""
    )
    return (
        f'<h2>How it was measured</h2><p class="words">'
        f"{escape(words.protocol(evaluation) + extra)}</p>"
    )


def _loading(record: Record, model: str) -> str:
    if record.export is None:
        return ""
    return (
        f"<h2>How to load it</h2><pre>{escape(words.load(record, model))}</pre>"
        f'<p class="words">The model lies in the folder of this page. '
        f"{escape(words.container(record))} {escape(words.proof(record))}</p>"
    )


def _details(record: Record) -> str:
    run = record.run
    facts = (
        [
            ("Seed", str(run.seed)),
            ("effcompress", run.effcompress),
            ("torch", run.torch),
            ("transformers", run.transformers),
            ("Device", f"{run.device}, {run.threads or '?'} threads"),
        ]
        if run
        else []
    )
    rows = [
        *facts,
        *(
            (f"{section.capitalize()}: {key.replace('_', ' ')}", value)
            for section in words.METHOD
            for key, value in words.method(record.recipe, section).items()
        ),
    ]
    for name, data in (run.data if run else {}).items():
        amount = f"{data.documents:,} documents, {data.tokens:,} tokens"
        rows.append((f"Data: {name}", f"{amount}, hash {data.hash or ''}"))
    if record.sparsified is not None:
        rows.append(("Making zeros took", cost(record.sparsified)))
    if record.commit_difference is not None:
        difference = numbers.power(record.commit_difference)
        rows.append(("Shortening the tensors", f"changed no logit by more than {difference}"))
    body = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows if v)
    return f'<h2>The run</h2><div class="card"><table class="rows">{body}</table></div>'


def _recipe(record: Record) -> str:
    if not record.recipe:
        return ""
    return (
        "<details><summary>The recipe, with every default filled in</summary>"
        f"<pre>{escape(record.recipe)}</pre></details>"
    )
