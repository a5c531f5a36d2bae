"""``effcompress export --for``: the form that a software loads, and why it is not another one."""

from dataclasses import replace
from pathlib import Path

from effcompress.answer import Answer
from effcompress.errors import RunError, SourceError
from effcompress.estimate.serving import FORMS, NAMES, START, TRIED, Software, loading
from effcompress.export.forms import Form, Name, form
from effcompress.network.pruned_model import PrunedModel


def require_one(name: str | None, software: Software | None) -> None:
    """Raises SourceError unless exactly one of ``--as`` and ``--for`` is given."""
    if (name is None) == (software is None):
        said = "say in which form, or for which software"
        what = said if name is None else "a form and a software are two answers to one question"
        raise SourceError(what, where="--as, --for", fix="E.g. --for vllm, or --as uniform.")


def chosen(pruned: PrunedModel, software: Software) -> tuple[Form | None, tuple[str, ...]]:
    """Returns the first form of a model that a software loads (None: gguf), and sentences on why it
    is not another. Raises SourceError where there is none.
    """
    made, why, taken = None, list[str](), ""
    for name in FORMS:
        fits = loading(pruned.config, software, name)
        if not fits.loads:
            why.append(f"not {name}: {fits.why}")
        elif not taken:
            try:
                made = _made(pruned, name)
            except RunError as error:
                why.append(f"not {name}: {error.what}")
                continue
            taken = f"{name}{f' ({fits.why})' if fits.why else ''}"
    if not taken:
        raise SourceError(
            f"{NAMES[software]} loads no form of this model: {'; '.join(why)}",
            where=f"--for {software}",
        )
    return made, (
        f"For {NAMES[software]}: {taken}.",
        *(f"{one[:1].upper()}{one[1:]}." for one in why),
    )


def _made(pruned: PrunedModel, name: str) -> Form | None:
    names: dict[str, Name] = {"uniform": "uniform", "padded": "padded", "exact": "exact"}
    return form(pruned, names[name]) if name in names else None


def told_for(answer: Answer, software: Software, why: tuple[str, ...], target: Path) -> Answer:
    """Returns the answer with the reasons, and how the software is started with the target."""
    start = START[software].format(target)
    said = f"{NAMES[software]}: {start}" + ("" if software in TRIED else " (not tried here)")
    data = {**answer.data, "for": software, "because": list(why), "start": start}
    return replace(answer, data=data, notes=(*why, *answer.notes, said))
