"""``effcompress push``: uploads the proven model of a run to the Hugging Face Hub. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from effcompress.answer import Answer, Table
from effcompress.errors import SourceError
from effcompress.model import hub
from effcompress.model.published import CARD, is_weights, model_files
from effcompress.record import readable
from effcompress.record.events import Exported
from effcompress.report.card import PATH, card, is_own_card
from effcompress.report.gather import Record, gather
from effcompress.runner.folder import RESOLVED, require_free

Form = Literal["uniform", "padded", "exact"]
_WHOLE = "finish it with `effcompress run RECIPE --resume`"


@dataclass(frozen=True)
class Parcel:
    """What goes to the hub: path there -> file or text; and what of the folder stays here."""

    files: Mapping[str, Path | bytes]
    left: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file."""
        return {
            name: len(one) if isinstance(one, bytes) else one.stat().st_size
            for name, one in self.files.items()
        }


def push(
    run: Path,
    repo: str | None,
    *,
    form: Form | None = None,
    gguf: bool = False,
    private: bool | None = None,
    branch: str | None = None,
    list_only: bool = False,
) -> Answer:
    """Uploads the model of a run, and its card, to ``repo`` (``owner/name``) in one commit.

    ``form``: what ``effcompress export`` wrote into the run's folder in place of the run's own
    model; ``gguf``: the gguf files that it wrote there, too. ``list_only`` lists the files and uses
    no network.

    Raises SourceError: no run, one that is not finished or whose model was not proven, a file that
    is missing or damaged, no token, no network.
    """
    if repo is not None:
        hub.require_repo(repo)
    elif not list_only:
        raise SourceError("say where to", where="--to", fix="E.g. --to USER/NAME, or --list.")
    record = proven(run)
    parcel = parcel_of(run, record, repo, form=form, gguf=gguf)
    data: dict[str, Any] = {
        "run": str(run),
        "repo": repo,
        "files": parcel.sizes,
        "left": list(parcel.left),
    }
    if list_only:
        return _told(f"{repo or 'the hub'} would get", parcel, data)
    hub.require_login()
    done = hub.upload(
        str(repo),
        parcel.files,
        stale=is_weights,
        private=private,
        branch=branch,
        message=f"effcompress: {record.name}",
    )
    gone = [f"deleted there: {name}, of an earlier upload" for name in done.removed]
    data |= {"url": done.url, "removed": list(done.removed)}
    return _told(f"{repo} got", parcel, data, [done.url, *gone])


def proven(run: Path) -> Record:
    """Returns the record of a run that ended well. Raises SourceError for all that is not one."""
    if not (run / RESOLVED).is_file() or not (run / "metrics.jsonl").is_file():
        fix = "Name the folder of a run, e.g. runs/quickstart."
        raise SourceError("this folder holds no run", where=str(run), fix=fix)
    require_free(run)
    record = gather(run)
    what, fix = "", f"Look with `effcompress status {run}`; {_WHOLE}."
    if record.status == "unfinished":
        what = "this run is not finished"
    elif record.status != "success":
        first = ((record.end and record.end.reason) or "no reason was recorded").splitlines()[0]
        how = "was stopped" if record.status == "stopped" else "failed"
        what = f"this run {how}: {first.rstrip('.')}"
    elif record.export is None or record.proof is None or not record.proof.holds:
        what = "no fresh process has loaded this model and agreed to it, so it is not proven"
        fix = "Write and prove it again: `effcompress export RUN --as uniform` (padded, exact)."
    if what:
        raise SourceError(what, where=str(run), fix=fix)
    return record


def parcel_of(
    run: Path, record: Record, repo: str | None, *, form: Form | None = None, gguf: bool = False
) -> Parcel:
    """Returns what belongs to the model: its files, the card and, if asked for, gguf files that
    ``exports.jsonl`` names. Raises SourceError where a file is missing or damaged.
    """
    folder, exported = run, None
    if form is not None:
        folder, exported = _of_form(run, record, form)
    try:
        files: dict[str, Path | bytes] = {name: folder / name for name in model_files(folder)}
    except SourceError as error:
        what = f"the model is not whole: {error.what}"
        raise SourceError(what, where=str(folder), fix=error.fix) from error
    notes: tuple[str, ...] = ()
    if form is None and (run / CARD).is_file() and not is_own_card(run):
        files[CARD] = run / CARD
        notes = (
            f"{CARD} goes as it is: it was edited, or written by an earlier version (remove it, "
            "and it is made again)",
        )
    else:
        files[CARD] = card(run, at=repo or PATH, exported=exported).encode()
    if gguf:
        files |= _gguf(run, record)
    said = files.keys() | ({CARD} if form is None else set())
    left = sorted(
        f"{path.name}/" if path.is_dir() else path.name
        for path in folder.iterdir()
        if path.name not in {name.split("/")[0] for name in said} and path.name[0] != "."
    )
    ordered = dict(sorted(files.items(), key=lambda one: (one[0] != CARD, one[0])))
    return Parcel(ordered, tuple(left), notes)


def _of_form(run: Path, record: Record, form: Form) -> tuple[Path, Exported]:
    """Returns the folder of a later export of this form, and what was recorded of it."""
    name = f"export-{form}"
    made = [one for one in record.exports if one.form == form and one.output == name]
    if not made or made[-1].max_logit_difference is None or not (run / name).is_dir():
        raise SourceError(
            f"there is no proven {name} in this run",
            where=str(run),
            fix=f"effcompress export {run} --as {form}",
        )
    return run / name, made[-1]


def _gguf(run: Path, record: Record) -> dict[str, Path | bytes]:
    names = dict.fromkeys(one.output for one in record.exports if one.form == "gguf")
    found: dict[str, Path | bytes] = {name: run / name for name in names if (run / name).is_file()}
    if not found:
        raise SourceError(
            "there is no gguf file of `effcompress export` in this run",
            where=str(run),
            fix=f"effcompress export {run} --as gguf",
        )
    return found


def _told(
    title: str, parcel: Parcel, data: dict[str, Any], notes: list[str] | None = None
) -> Answer:
    sizes = parcel.sizes
    rows = [(name, f"{size:,}") for name, size in sizes.items()]
    rows.append((f"{len(sizes)} files", readable.size(sum(sizes.values()))))
    stays = (f"stays here: {', '.join(parcel.left)}",) if parcel.left else ()
    table = Table(title, ("file", "bytes"), tuple(rows))
    return Answer(data, (table,), (*(notes or ()), *parcel.notes, *stays))
