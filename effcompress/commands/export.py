"""``effcompress export``: writes the model of a run in another form: from its newest
checkpoint or, where it kept none, from its model.
"""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import torch

from effcompress import checkpoint, recipe, report
from effcompress.answer import Answer, Table
from effcompress.checkpoint import Proof, Saved
from effcompress.commands.quantise import exported_gguf, quantised, require_numbers
from effcompress.commands.software import chosen, require_one, told_for
from effcompress.distributed.world import ALONE
from effcompress.errors import SourceError
from effcompress.estimate.serving import Software
from effcompress.export import gguf
from effcompress.export.forms import Form, form
from effcompress.export.write import explained, proof_tokens, prove, write
from effcompress.model.load import LoadedModel
from effcompress.model.load import load as load_model
from effcompress.network.pruned_model import PrunedModel
from effcompress.recipe import LoadedRecipe
from effcompress.record.events import Exported, line
from effcompress.record.log import make_view
from effcompress.report.card import is_own_card
from effcompress.report.gather import EXPORTS
from effcompress.runner.evaluation import scores
from effcompress.runner.folder import RESOLVED, finished_for_good
from effcompress.runner.source_model import described, require_same
from effcompress.runner.start import corpus_of, whole_of
from effcompress.runner.state import VALUES
from effcompress.spec import ModelSpec

As = Literal["uniform", "padded", "exact", "gguf"]
DType = Literal["F32", "F16"]


def export(
    run: Path,
    name: As | None = None,
    *,
    software: Software | None = None,
    output: Path | None = None,
    dtype: DType | None = None,
    quantise: str | None = None,
    offline: bool = False,
) -> Answer:
    """Writes the model of a run in the form ``name`` to ``output`` (default: in the run's folder).
    ``software`` in place of ``name`` takes the first form that it loads and the model has.

    ``dtype`` (default F32) or ``quantise`` say how a gguf file stores its matrices; of a quantised
    one, the run's held-out text is scored before and after. What lies in the run's folder is added
    to its ``exports.jsonl``, its report and its card.

    Raises SourceError when ``run`` is no run, the output exists or nothing here makes the type,
    RunError when the form is not possible or the proof in a fresh process fails.
    """
    require_one(name, software)
    name = "gguf" if software == "llama.cpp" else name
    require_numbers(name or "folder", dtype, quantise)
    loaded, saved = _opened(run)
    if output is not None or name is not None:
        _require_free(output or run / _named(loaded.recipe.name, name, quantise))
    with closing(make_view(interactive=False)) as view:
        spec = loaded.recipe.model if saved else ModelSpec(folder=run)
        model = load_model(spec, seed=loaded.recipe.seed, offline=offline, progress=view.note)
        pruned = _restored(loaded, model, saved)
        made, why = chosen(pruned, software) if software else (None, ())
        if made is None and name != "gguf":
            made = form(pruned, name or "auto")
        target = output or run / _named(loaded.recipe.name, made.name if made else "gguf", quantise)
        _require_free(target)
        if made is not None:
            answer, exported = _folder(loaded, pruned, model, made, target, view.note)
        elif quantise is None:
            answer = _gguf(pruned, model, target, dtype or "F32", loaded.recipe.name)
            exported = exported_gguf(pruned.params, target, dtype or "F32")
        else:
            how: Any = {"offline": offline, "say": view.note, "notice": view.note}
            corpus = corpus_of(loaded.recipe, model.tokenizer, training=False, **how)
            answer, exported = quantised(
                pruned,
                target,
                quantise,
                lambda plain: _gguf(pruned, model, plain, "F32", loaded.recipe.name),
                lambda module: scores(module, corpus, loaded.recipe.evaluate, ALONE),
                view.note,
            )
        _record(run, exported, target)
        return told_for(answer, software, why, target) if software else answer


def _require_free(target: Path) -> None:
    if target.is_dir():  # what a killed export left while it wrote
        checkpoint.sweep(target)
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise SourceError("this exists already", where=str(target), fix="Name another --output.")


def _folder(
    loaded: LoadedRecipe,
    pruned: PrunedModel,
    model: LoadedModel,
    made: Form,
    target: Path,
    say: Callable[[str], None],
) -> tuple[Answer, Exported]:
    """Writes a Hugging Face folder and proves it. Raises RunError."""
    target.mkdir(parents=True, exist_ok=True)
    whole = whole_of(loaded.recipe) if made.name != "exact" else None
    size = write(made, pruned, model.tokenizer, target, whole).bytes
    say("proving it in a fresh process")
    draw = torch.Generator().manual_seed(0)
    vocab = pruned.axes.widths["vocab"]
    probe_BT = torch.randint(0, vocab, (2, proof_tokens(pruned.config)), generator=draw)
    proven = prove(made, pruned, model.tokenizer, probe_BT, target, whole)
    why = explained(made, whole)
    exported = Exported(
        form=made.name,
        output=target.name,
        container=made.model_type,
        parameters=made.count,
        bytes=size,
        numbers="float32",
        why=why,
        max_logit_difference=proven.max_logit_difference,
        seconds=proven.seconds,
    )
    return _told(made, why, size, target, proven), exported


def _named(recipe: str, name: str | None, quantise: str | None) -> str:
    if name != "gguf":
        return f"export-{name}"
    return f"{recipe}-{quantise}.gguf" if quantise else f"{recipe}.gguf"


def _restored(loaded: LoadedRecipe, model: LoadedModel, saved: Saved | None) -> PrunedModel:
    """Returns the model of a checkpoint, with no unit masked that is not removed; without one
    ``model`` as it is.
    """
    if saved is None:
        return PrunedModel(model.module, model.config)
    require_same(saved.values.get("provenance", {}), described(model))
    prune = loaded.recipe.prune
    space = prune.space if prune and prune.rotate is None else ()
    pruned = PrunedModel(model.module, model.config, space)
    pruned.restore(saved.values, saved.part("model/"), saved.part("ledger/"))
    if pruned.ledger.pending():
        pruned.commit()
    return pruned


def _opened(run: Path) -> tuple[LoadedRecipe, Saved | None]:
    """Returns the recipe of a run and its newest checkpoint; None where a finished run kept none,
    and its model stands for it.
    """
    resolved, said = run / RESOLVED, ["there is none"]
    if not resolved.is_file():
        raise SourceError("this folder holds no run", where=str(run), fix="E.g. runs/quickstart.")
    saved = checkpoint.newest(run / "checkpoints", said.append, like=VALUES)
    if saved is None and not finished_for_good(run):
        raise SourceError(f"no checkpoint to export from: {said[-1]}", where=str(run))
    return recipe.load(resolved), saved


def _record(run: Path, exported: Exported, target: Path) -> None:
    """Adds a line to the run's ``exports.jsonl``, and what it says to report and card, if what was
    written lies in the run's folder.
    """
    if target.resolve().parent != run.resolve():
        return
    own = is_own_card(run)
    with (run / EXPORTS).open("a", encoding="utf-8") as file:
        file.write(line(exported) + "\n")
    report.write(run)
    if own:
        report.write_card(run)


def _told(made: Form, why: str, size: int, target: Path, proof: Proof) -> Answer:
    data = {
        "form": made.name,
        "model_type": made.model_type,
        "parameters": made.count,
        "bytes": size,
        "why": why,
        "output": str(target),
        "max_logit_difference": proof.max_logit_difference,
    }
    rows = [
        ("class", made.model_type),
        ("parameters", f"{made.count:,}"),
        ("bytes", f"{size:,}"),
        ("largest difference of a logit", f"{proof.max_logit_difference:.1e}"),
    ]
    notes = (why,) if why else ()
    if made.name == "exact":
        notes += ("Load it with trust_remote_code=True: the folder brings its own small class.",)
    return Answer(data, (Table(str(target), ("", ""), tuple(rows)),), notes)


def _gguf(pruned: PrunedModel, model: LoadedModel, target: Path, dtype: DType, name: str) -> Answer:
    made = gguf.write(pruned, model.tokenizer, target, dtype, name)
    data = {"form": "gguf", "bytes": made.bytes, "dtype": dtype, "why": made.why}
    rows = (("bytes", f"{made.bytes:,}"), ("numbers", dtype))
    odd = "To quantise it, widths must be multiples of 32: prune with `round_to: 32`."
    notes = tuple(filter(None, (made.why, "" if made.by_block else odd)))
    return Answer({**data, "output": str(target)}, (Table(str(target), ("", ""), rows),), notes)
