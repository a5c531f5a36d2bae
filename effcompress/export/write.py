"""Writes a model as a Hugging Face folder and proves it in a fresh process. A sharded model is
written by all ranks, each of which gathers one tensor at a time.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from effcompress import checkpoint
from effcompress.checkpoint import Proof, Written
from effcompress.checkpoint.prove import NEW_TOKENS
from effcompress.distributed.world import ALONE, World
from effcompress.export.forms import Form, Name, form, stock_form
from effcompress.export.older_keys import add_older_keys
from effcompress.export.weights import Weights, piece_of
from effcompress.export.whole import put_back
from effcompress.model.integrity import read_object
from effcompress.model.silence import quietly
from effcompress.model.stored import stored, stored_together
from effcompress.model.suitability import positions_of
from effcompress.network.pruned_model import PrunedModel
from effcompress.record import events
from effcompress.record.log import Log
from effcompress.types import Config

PROOF_TOKENS = 64
"""Largest length of the sequences on which an export is proven."""


def proof_tokens(config: Config) -> int:
    """Returns the length of these sequences: the fresh process generates tokens behind them, and a
    table of positions must have room for all.
    """
    limit, fixed = positions_of(config)
    return max(1, min(PROOF_TOKENS, limit - NEW_TOKENS)) if fixed and limit else PROOF_TOKENS


def export_and_prove(
    pruned: PrunedModel,
    tokenizer: Any,
    wanted: Name | Literal["auto"],
    ids_BT: Tensor,
    folder: Path,
    log: Log,
    whole: Path | None = None,
    to_call: Any = None,
    world: World = ALONE,
) -> None:
    """Writes the model in the form ``wanted`` and proves it in a fresh process on ``ids_BT``.
    ``whole``: the folder of the multimodal model that it is put back into. Of a sharded model a
    collective of all ranks of ``world``, each of which writes files; ``to_call`` gives its logits.

    Raises RunError when the form cannot be had, or the fresh process computes other logits.
    """
    log.phase("exporting")
    made = form(pruned, wanted) if whole is None else stock_form(pruned, wanted)
    written = write(made, pruned, tokenizer, folder, whole, world)
    log.event(
        events.Export(
            form=made.name,
            container=made.model_type,
            why=explained(made, whole),
            parameters=made.count,
            bytes=written.bytes,
            hashes=written.hashes,
        )
    )
    log.phase("proving the export in a fresh process")
    how: Any = {"to_call": to_call, "world": world, "expect": log.expect}
    log.event(events.Proof(**asdict(prove(made, pruned, tokenizer, ids_BT, folder, whole, **how))))


def explained(made: Form, whole: Path | None) -> str:
    """Returns why the form is what it is, and where the text model lies."""
    kind = (read_object(whole / "config.json") or {}).get("model_type") if whole else None
    put = f"it is the text model of a '{kind}', whose other parts are as they were" if kind else ""
    return "; ".join(filter(None, (made.why, put)))


def write(
    made: Form,
    pruned: PrunedModel,
    tokenizer: Any,
    folder: Path,
    whole: Path | None = None,
    world: World = ALONE,
) -> Written:
    """Writes the folder. ``whole``: the folder of the multimodal model that the pruned one is put
    back into. Of a sharded model a collective.

    Raises RunError where that cannot be.
    """
    skeleton: Any = made.skeleton
    if whole is not None:
        checkpoint.require_fit(skeleton, made.tensors.shapes)
        pieces, others = put_back(made, pruned.config, whole)

        def all_beside(work: Path) -> None:
            tokenizer.save(work)
            others(work)

        return checkpoint.export(pieces, all_beside, folder, world)
    skeleton.generation_config = pruned.module.generation_config

    def beside(work: Path) -> None:
        tokenizer.save(work)
        if made.name != "exact":  # the class that such a folder carries needs version 5
            add_older_keys(work, type(skeleton.config))

    return save(skeleton, made.tensors, beside, folder, made.files, world)


def save(
    skeleton: Any,
    tensors: Weights,
    beside: Callable[[Path], None],
    folder: Path,
    files: Mapping[str, str] | None = None,
    world: World = ALONE,
) -> Written:
    """Writes the model of the class of ``skeleton`` (on the meta device) with these parameters, and
    buffers that it stores: safetensors, configuration, generation config, what ``beside`` writes
    (the tokenizer), and further text ``files`` by name.

    Raises RunError when names or shapes disagree, or the disk is full.
    """
    checkpoint.require_fit(skeleton, tensors.shapes)
    # The configuration states their type. Not strict: a tied output matrix has no entry.
    empty = {name: tensors.empty(name) for name in tensors}
    skeleton.load_state_dict(empty, strict=False, assign=True)
    skeleton.tie_weights()
    together = stored_together(skeleton, tensors.shapes)
    pieces = [piece_of(tensors, names, partial(stored, skeleton)) for names in together]

    def fill(work: Path) -> None:
        skeleton.save_pretrained(work, state_dict={})  # all but the weights
        beside(work)
        for name, text in (files or {}).items():
            (work / name).write_text(text, encoding="utf-8")

    with quietly():
        return checkpoint.export(pieces, fill, folder, world)


def prove(
    made: Form,
    pruned: PrunedModel,
    tokenizer: Any,
    ids_BT: Tensor,
    folder: Path,
    whole: Path | None = None,
    *,
    to_call: Any = None,
    world: World = ALONE,
    expect: Callable[[float], None] = lambda _seconds: None,
) -> Proof:
    """Compares the folder in a fresh process; only `exact` may run the folder's own class, and a
    text model that was put back is that of the ``whole``. ``expect``: see ``checkpoint.prove``.
    """
    module: Any = pruned.module
    backend = getattr(tokenizer, "backend", None)  # that of bytes is made when it is written
    wanted = checkpoint.text_settings(module.generation_config, backend)
    classes: checkpoint.Classes = "own-class" if made.name == "exact" else "stock"
    classes = classes if whole is None else "multimodal"
    how: Any = {"classes": classes, "text_settings": wanted, "world": world, "expect": expect}
    return checkpoint.prove(folder, to_call or module, ids_BT, **how)
