"""The page of a comparison: one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from effcompress.report import numbers
from effcompress.report.comparison.columns import QUALITY
from effcompress.report.comparison.rows import Comparison, Row
from effcompress.report.comparison.spread import BEST, TIED
from effcompress.report.comparison.tables import grid, written
from effcompress.report.style import PAGE

STYLE = """.wide{overflow-x:auto}.compared{border-collapse:collapse;width:100%;
font-variant-numeric:tabular-nums;font-size:14px}
.compared th,.compared td{padding:6px 0 6px 13px;text-align:right;white-space:nowrap;
border-bottom:1px solid var(--rule)}
.compared th{color:var(--soft);font-weight:600;font-size:13px;vertical-align:bottom;
white-space:normal}
.compared th:first-child,.compared td:first-child{text-align:left;padding-left:0}
.compared .size td{color:var(--soft);font-size:13px;padding-top:16px;text-align:left}
.compared .why{text-align:left;white-space:normal;color:var(--bad)}
.compared .best td{font-weight:680}.compared .dense td{font-style:italic}
.compared sup{color:var(--bad);font-weight:600;font-style:normal}
.tag{font-size:12px;color:var(--good);font-weight:600;margin-left:6px}
.facts th{white-space:nowrap;padding-right:24px}
.whole{grid-column:1/-1}.notes{list-style:none;padding:0;margin:16px 0 0;font-size:15px}
.notes li{padding-left:26px;text-indent:-26px;margin:0 0 4px}
.notes b{display:inline-block;width:26px;text-indent:0;color:var(--bad)}"""
WIDE = ("parameters", "operations")
"""Pictures that take the whole width."""


def page(comparison: Comparison, drawn: dict[str, str]) -> str:
    """The HTML of the page."""
    claims = "".join(f'<p class="lead">{escape(claim)}</p>' for claim in comparison.claims)
    sections = [
        f"<header><h1>{escape(comparison.name)}</h1>"
        f'<p class="sub">{escape(_subtitle(comparison))}</p></header>',
        claims,
        _failures(comparison),
        f"<h2>The same for all</h2>{_conditions(comparison)}",
        f"<h2>Results</h2>{_table(comparison)}{_notes(comparison)}{_legend(comparison)}",
        _figures(drawn),
        f"<h2>The methods</h2>{_methods(comparison)}",
        "<footer>Made by effcompress from the records of the runs.</footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(comparison.name)}: effcompress comparison</title>"
        f"<style>{PAGE}{STYLE}</style></head>\n"
        f"<body><main>{chr(10).join(s for s in sections if s)}</main></body></html>\n"
    )


def _subtitle(comparison: Comparison) -> str:
    methods = [row for row in comparison.rows if row.size is not None]
    runs = sum(len(row.attempts) for row in methods)
    return f"{_many(len(methods), 'method')} in {_many(runs, 'run')}, beside the dense model"


def _many(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _failures(comparison: Comparison) -> str:
    failed = [row for row in comparison.rows if row.reason]
    if not failed:
        return ""
    items = "".join(f"<li>{escape(row.label)}: {escape(row.reason)}</li>" for row in failed)
    return f'<div class="banner failed"><p>Without a result:</p><ul>{items}</ul></div>'


def _conditions(comparison: Comparison) -> str:
    rows = "".join(
        f"<tr><th>{escape(title)}</th><td>{escape(words)}</td></tr>"
        for title, words in comparison.conditions
    )
    return f'<div class="card"><table class="rows facts">{rows}</table></div>'


def _table(comparison: Comparison) -> str:
    table = grid(comparison)
    helps = {c.title: c.help for c in comparison.columns}
    heads = "".join(
        f'<th title="{escape(helps.get(title, ""))}">{escape(title)}</th>' for title in table.header
    )
    quality = 1 + [c.key for c in written(comparison)].index(QUALITY)
    body: list[str] = []
    before: int | None = None
    for row, cells in zip(comparison.rows, table.rows, strict=True):
        if row.size is not None and row.size != before and len(comparison.sizes) > 1:
            size = escape(comparison.sizes[row.size].words)
            body.append(f'<tr class="size"><td colspan="{len(cells)}">{size}</td></tr>')
        before = row.size
        body.append(_line(row, cells, quality))
    return (
        f'<div class="card wide"><table class="compared"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _line(row: Row, cells: tuple[str, ...], quality: int) -> str:
    notes = f"<sup> {escape(' '.join(row.notes))}</sup>" if row.notes else ""
    first = f"<td>{escape(row.label)}{notes}</td>"
    kind = "dense" if row.size is None else row.mark
    if row.reason:
        why = f'<td class="why" colspan="{len(cells) - 1}">{escape(cells[1])}</td>'
        return f'<tr class="{kind}">{first}{why}</tr>'
    tag = {BEST: "best", TIED: "tied"}.get(row.mark, "")
    shown = [
        escape(cell) + (f'<span class="tag">{tag}</span>' if tag and at == quality else "")
        for at, cell in enumerate(cells)
    ]
    return f'<tr class="{kind}">{first}{"".join(f"<td>{cell}</td>" for cell in shown[1:])}</tr>'


def _notes(comparison: Comparison) -> str:
    items = "".join(
        f"<li><b>{letter}</b>{escape(words)}</li>" for letter, words in comparison.notes
    )
    return f'<ul class="notes">{items}</ul>' if items else ""


def _legend(comparison: Comparison) -> str:
    items = "".join(
        f"<tr><th>{escape(c.title)}</th><td>{escape(c.help)}</td></tr>" for c in written(comparison)
    )
    ties = (
        "<p>Best is the lowest mean perplexity of a size. Tied with it is every method that "
        "Welch's t test cannot tell from it at the 5 % level (two-sided, Welch-Satterthwaite "
        "degrees of freedom; seeds count as independent, perplexities over seeds as normal, and "
        "several methods are not corrected for). Rows whose footnotes touch quality are shown but "
        "not ranked, and neither are single runs, whose spread is unknown.</p>"
    )
    return (
        f"<details><summary>What the columns mean</summary>{ties}"
        f'<div class="card"><table class="rows facts">{items}</table></div></details>'
    )


def _figures(drawn: dict[str, str]) -> str:
    if not drawn:
        return ""
    figures = "".join(
        f'<figure id="{name}"{_whole(name)}>{svg}</figure>' for name, svg in drawn.items()
    )
    return f'<h2>Pictures</h2><div class="grid">{figures}</div>'


def _whole(name: str) -> str:
    return ' class="whole"' if name in WIDE else ""


def _methods(comparison: Comparison) -> str:
    cards = [_method(row) for row in comparison.rows if row.size is not None]
    return f'<div class="two">{"".join(cards)}</div>'


def _method(row: Row) -> str:
    says = next((a.facts.method for a in row.attempts if a.facts and a.facts.method), {})
    rows = [
        f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in says.items()
    ]
    rows += [f"<tr><th>seed {seed}</th><td>{text}</td></tr>" for seed, text in _runs(row)]
    return (
        f'<div class="card"><h3>{escape(row.label)}</h3>'
        f'<table class="rows facts">{"".join(rows)}</table></div>'
    )


def _runs(row: Row) -> Iterator[tuple[int, str]]:
    """Seed, and what became of it: the report of a run that lies beside the page is linked."""
    for attempt in row.attempts:
        name = escape(attempt.folder)
        link = f'<a href="{name}/report.html">{name}</a>' if "/" in attempt.folder else name
        if attempt.reason:
            yield attempt.seed, f"{name}: {escape(attempt.reason)}"
            continue
        took = attempt.facts.seconds if attempt.facts else None
        yield attempt.seed, link + (f", {numbers.duration(took)}" if took else "")
