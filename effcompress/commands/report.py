"""``effcompress report``: makes the page, the pictures and the card of a run again."""

from pathlib import Path

from effcompress import report
from effcompress.answer import Answer, Table
from effcompress.errors import SourceError
from effcompress.record.status import is_run, runs_in, status


def rebuild(folder: Path) -> Answer:
    """Writes ``report.html``, ``pictures/`` and, of a finished run, the model card (``README.md``)
    from the record of the run, or of every run in a folder of several. No model is read.

    Raises SourceError where there is no run, or one that is under way; RunError for a record that
    cannot be read.
    """
    runs = [folder] if is_run(folder) else runs_in(folder)
    for run in runs:
        _require_ended(run)
    pages = [report.write(run) for run in runs]
    cards = [report.write_card(run) for run in runs if (run / "config.json").is_file()]
    written = [str(path) for path in (*pages, *cards)]
    rows = tuple((path.name, str(path.parent)) for path in (*pages, *cards))
    return Answer({"written": written}, (Table("Written", ("file", "folder"), rows),))


def _require_ended(run: Path) -> None:
    state = status(run).state
    if state == "running":
        fix = f"It writes its page when it ends. How far it is: effcompress status {run}"
        raise SourceError("this run is under way", where=str(run), fix=fix)
    if state == "not started" or not (run / "metrics.jsonl").is_file():
        fix = "Continue the run; `effcompress status` says how."
        raise SourceError("this run has recorded nothing yet", where=str(run), fix=fix)
    if (run / "pictures").is_symlink():
        raise SourceError("this is a link", where=str(run / "pictures"), fix="Remove it.")
