"""``effcompress check``: says what it checked, and nothing it did not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from effcompress.cli.arguments import AsJson, Overrides, print_json
from effcompress.errors import CoverageError, EffcompressError


def check(
    recipes: Annotated[
        list[Path],
        typer.Argument(metavar="RECIPE", help="Recipe files (.yaml).", show_default=False),
    ],
    set_: Overrides = None,
    json: AsJson = False,
) -> None:
    """Check recipes without loading weights; list what was checked."""
    reports: list[dict[str, Any]] = []
    for path in recipes:
        reports.append(_report(path, set_ or ()))
        if not json:
            _print(reports[-1])
    failed = sum(not report["ok"] for report in reports)
    if json:
        print_json({"ok": not failed, "recipes": reports})
    elif failed and len(reports) > 1:
        typer.echo(f"{failed} of {len(reports)} recipes failed", err=True)
    if failed:
        raise typer.Exit(2)


def _report(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    from effcompress.recipe import checked, load

    report: dict[str, Any] = {"recipe": str(path), "ok": True, "checked": []}
    try:
        loaded = load(path, overrides)
        report["checked"] += checked(loaded)
        from effcompress.estimate.check import check

        priced = check(loaded)
    except EffcompressError as error:
        said = {"what": error.what, "where": error.where, "fix": error.fix}
        lines = str(error).splitlines()[: None if isinstance(error, CoverageError) else 3]
        return {**report, "ok": False, "error": said, "message": "\n".join(lines)}
    report["checked"] += priced.lines
    return {**report, "price": priced.data}


def _print(report: dict[str, Any]) -> None:
    typer.echo(f"{report['recipe']}: {'ok' if report['ok'] else 'failed'}")
    for line in report["checked"]:
        typer.echo(f"  - {line}")
    if not report["ok"]:
        typer.echo(f"error: {report['message']}", err=True)
