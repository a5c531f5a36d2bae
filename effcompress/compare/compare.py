"""``effcompress compare``: runs what has not run yet and writes the comparison."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from effcompress.compare.entries import Job, enter, name_of, place
from effcompress.compare.processes import Progress, run_all
from effcompress.estimate.feasibility import sized_model
from effcompress.report.comparison import facts, rows
from effcompress.report.comparison.facts import Attempt, Method
from effcompress.report.comparison.page import write
from effcompress.report.comparison.rows import Comparison
from effcompress.stopping import Stopping

COMPARISONS = Path("comparisons")
MEASUREMENTS = ".measurements"
"""In a comparison's folder: what its runs measured on their source models."""


def compare(
    targets: Sequence[Path],
    *,
    progress: Progress,
    seeds: Sequence[int] = (),
    overrides: Sequence[str] = (),
    output: Path | None = None,
    at_once: int = 1,
    offline: bool = False,
    stopping: Stopping | None = None,
) -> tuple[Path, Comparison]:
    """Compares recipes (files) and runs (folders); returns the page's path and its content.

    Every recipe runs once for each of ``seeds`` (none: its own), with ``overrides``, into a folder
    of its own below ``output`` (default: ``comparisons/`` and the names of the targets).
    Finished runs are not repeated, and what several need to know of a source model before the first
    cut is measured by one of them. A failed run shows its reason in place of its result.

    Raises RecipeError or SourceError before anything runs, Stopped when ``stopping`` is asked.
    """
    progress.checking(sum(not target.is_dir() for target in targets))
    entries = enter(targets, seeds, overrides, offline=offline)
    name = output.resolve().name if output else name_of(entries)
    folder = output or COMPARISONS / name
    entries = place(entries, folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The first seed of all methods before the second of any: a comparison cut short is still fair.
    rounds = itertools.zip_longest(*(entry.jobs for entry in entries))
    jobs = [job for some in rounds for job in some if job is not None]
    failed: dict[Path, str] = {}
    try:
        failed |= run_all(
            jobs,
            at_once,
            progress,
            offline=offline,
            measurements=folder.resolve() / MEASUREMENTS,
            stopping=stopping,
        )
    finally:
        # In `finally`: an interrupted comparison writes its page, too.
        methods: list[Method] = []
        for entry in entries:
            ran = [_ran(job, folder, failed.get(job.folder, "")) for job in entry.jobs]
            # Only a folder's name is shown: the page may be sent elsewhere.
            given = [facts.read(run, shown=run.resolve().name) for run in entry.folders]
            methods.append(Method(entry.label, (*ran, *given)))
        found = rows.compare(name, methods)
        page = write(folder, found)
    return page, found


def _ran(job: Job, output: Path, reason: str) -> Attempt:
    shown = job.folder.relative_to(output).as_posix()
    attempt = facts.read(job.folder, seed=job.seed, shown=shown, reason=reason)
    if attempt.done or attempt.target:
        return attempt
    known = sized_model(job.loaded)  # it failed before its target was recorded
    return replace(attempt, target=known.target if known else None)
