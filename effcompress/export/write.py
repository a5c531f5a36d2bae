"""Writes a model as a Hugging Face folder and proves it in a fresh process."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from effcompress import checkpoint
from effcompress.checkpoint import Proof
from effcompress.checkpoint.prove import NEW_TOKENS
from effcompress.export.forms import Form, Name, form
from effcompress.export.older_keys import add_older_keys
from effcompress.model.silence import quietly
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
) -> None:
    """Writes the model in the form ``wanted`` and proves it in a fresh process on ``ids_BT``.

    Raises RunError when the form cannot be had, or the fresh process computes other logits.
    """
    log.phase("exporting")
    made = form(pruned, wanted)
    size = write(made, pruned, tokenizer, folder)
    kind, count = made.model_type, made.count
    log.event(
        events.Export(form=made.name, container=kind, why=made.why, parameters=count, bytes=size)
    )
    log.phase("proving the export in a fresh process")
    log.event(events.Proof(**asdict(prove(made, pruned, tokenizer, ids_BT, folder))))


def write(made: Form, pruned: PrunedModel, tokenizer: Any, folder: Path) -> int:
    """Writes the folder; returns its bytes."""
    skeleton: Any = made.skeleton
    skeleton.generation_config = pruned.module.generation_config

    def beside(work: Path) -> None:
        tokenizer.save(work)
        if made.name != "exact":  # the class that such a folder carries needs version 5
            add_older_keys(work, type(skeleton.config))

    with quietly():
        return checkpoint.export(skeleton, made.tensors, beside, folder, made.files)


def prove(made: Form, pruned: PrunedModel, tokenizer: Any, ids_BT: Tensor, folder: Path) -> Proof:
    """Compares the folder in a fresh process; only `exact` may run the folder's own class."""
    module: Any = pruned.module
    backend = getattr(tokenizer, "backend", None)  # that of bytes is made when it is written
    wanted = checkpoint.text_settings(module.generation_config, backend)
    own_class = made.name == "exact"
    return checkpoint.prove(folder, module, ids_BT, own_class=own_class, text_settings=wanted)
