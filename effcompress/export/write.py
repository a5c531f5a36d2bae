"""The model of a run as a Hugging Face folder, and the proof of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from effcompress import checkpoint
from effcompress.checkpoint import Proof
from effcompress.data import Corpus
from effcompress.export.forms import Form, form
from effcompress.model.silence import quietly
from effcompress.network.pruned_model import PrunedModel
from effcompress.record.log import Log
from effcompress.runner.state import RunState

PROOF_TOKENS = 64


def export_and_prove(state: RunState, corpus: Corpus, folder: Path, log: Log) -> None:
    """Write the model in the form that the recipe asks for, and have a fresh process agree to it.

    Raises RunError when the form cannot be had, or the fresh process sees another model.
    """
    log.phase("exporting")
    made = form(state.pruned, state.recipe.export.form)
    size = write(made, state.pruned, state.tokenizer, folder)
    log.event(
        "export",
        form=made.name,
        container=made.model_type,
        why=made.why,
        parameters=made.count,
        bytes=size,
    )
    log.phase("proving the export in a fresh process")
    proof = prove(made, state.pruned, probe(corpus, state.recipe.seed), folder)
    log.event(
        "proof",
        max_logit_difference=proof.max_logit_difference,
        tolerance=proof.tolerance,
        tokens_equal=proof.tokens_equal,
        cache_equal=proof.cache_equal,
        seconds=proof.seconds,
    )


def probe(corpus: Corpus, seed: int) -> Tensor:
    """The text on which an export proves itself."""
    return corpus.calibration(2, seed)[:, :PROOF_TOKENS]


def write(made: Form, pruned: PrunedModel, tokenizer: Any, folder: Path) -> int:
    """Write the folder; returns its bytes."""
    skeleton: Any = made.skeleton
    skeleton.generation_config = pruned.module.generation_config
    with quietly():
        return checkpoint.export(skeleton, made.params, tokenizer.save, folder, made.files)


def prove(made: Form, pruned: PrunedModel, ids_BT: Tensor, folder: Path) -> Proof:
    """Raises RunError unless a fresh process agrees; only `exact` needs the folder's own class."""
    return checkpoint.prove(folder, pruned.module, ids_BT, own_class=made.name == "exact")
