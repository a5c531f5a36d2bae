"""``effcompress export``: writes the model of a run in another form, from its newest checkpoint."""

from contextlib import closing
from pathlib import Path
from typing import Literal

import torch

from effcompress import checkpoint, recipe
from effcompress.answer import Answer, Table
from effcompress.checkpoint import Proof, Saved
from effcompress.errors import SourceError
from effcompress.export import gguf
from effcompress.export.forms import Form, form
from effcompress.export.write import explained, proof_tokens, prove, write
from effcompress.model.load import LoadedModel
from effcompress.model.load import load as load_model
from effcompress.network.pruned_model import PrunedModel
from effcompress.recipe import LoadedRecipe
from effcompress.record.log import make_view
from effcompress.runner.folder import RESOLVED
from effcompress.runner.provenance import described, require_same
from effcompress.runner.start import whole_of
from effcompress.runner.state import VALUES

As = Literal["uniform", "padded", "exact", "gguf"]
DType = Literal["F32", "F16"]


def export(
    run: Path, name: As, *, output: Path | None = None, dtype: DType = "F32", offline: bool = False
) -> Answer:
    """Writes the model of a run in the form ``name`` to ``output`` (default: in the run's folder).

    Raises SourceError when ``run`` is no run or the output exists, RunError when the form is not
    possible or the proof in a fresh process fails.
    """
    loaded, saved = _opened(run)
    target = output or run / (f"{loaded.recipe.name}.gguf" if name == "gguf" else f"export-{name}")
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise SourceError("this exists already", where=str(target), fix="Name another --output.")
    with closing(make_view(interactive=False)) as view:
        spec, prune = loaded.recipe.model, loaded.recipe.prune
        model = load_model(spec, seed=loaded.recipe.seed, offline=offline, progress=view.note)
        require_same(saved.values.get("provenance", {}), described(model))
        space = prune.space if prune and prune.rotate is None else ()
        pruned = PrunedModel(model.module, model.config, space)
        pruned.restore(saved.values, saved.part("model/"), saved.part("ledger/"))
        if pruned.ledger.pending():  # masked units that no commit has removed yet
            pruned.commit()
        if name == "gguf":
            return _gguf(pruned, model, target, dtype, loaded.recipe.name)
        made = form(pruned, name)
        target.mkdir(parents=True, exist_ok=True)
        whole = whole_of(loaded.recipe) if name != "exact" else None
        size = write(made, pruned, model.tokenizer, target, whole)
        view.note("proving it in a fresh process")
        draw = torch.Generator().manual_seed(0)
        vocab = pruned.axes.widths["vocab"]
        probe_BT = torch.randint(0, vocab, (2, proof_tokens(pruned.config)), generator=draw)
        proven = prove(made, pruned, model.tokenizer, probe_BT, target, whole)
        return _told(made, explained(made, whole), size, target, proven)


def _opened(run: Path) -> tuple[LoadedRecipe, Saved]:
    resolved, said = run / RESOLVED, ["there is none"]
    if not resolved.is_file():
        raise SourceError("this folder holds no run", where=str(run), fix="E.g. runs/quickstart.")
    saved = checkpoint.newest(run / "checkpoints", said.append, like=VALUES)
    if saved is None:
        raise SourceError(f"no checkpoint to export from: {said[-1]}", where=str(run))
    return recipe.load(resolved), saved


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
