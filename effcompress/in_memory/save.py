"""Saves a model of a script as a run does: a form that other software loads, proven."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import torch

from effcompress.checkpoint import prove, text_settings
from effcompress.errors import SourceError, did_you_mean
from effcompress.export import forms
from effcompress.export.write import write
from effcompress.in_memory.session import random_tokens
from effcompress.model.held import config_of_held, in_fp32
from effcompress.model.tokenizer import HFTokenizer
from effcompress.network.pruned_model import PrunedModel


@dataclass(frozen=True)
class SavedModel:
    """The folder that was written: its ``form`` (``uniform``, ``padded``, ``exact``) and why it is
    none of those before it, its ``container`` (model type), parameters with padding, bytes, and by
    how much logits of a fresh process differ.
    """

    folder: Path
    form: str
    container: str
    why: str
    params: int
    bytes: int
    max_logit_difference: float


def save(
    model: Any, folder: str | Path, *, form: str = "auto", tokenizer: Any = None
) -> SavedModel:
    """Writes a model, pruned in memory or not, as a Hugging Face folder, and proves it: a fresh
    process without effcompress loads it and gives the same logits and greedy tokens.

    ``form``: ``uniform`` (a stock class; all layers of one shape), ``padded`` (a stock class, zeros
    where layers are narrower), ``exact`` (the shapes as they are, with the class's file in the
    folder), or ``auto``: the first that is possible. ``tokenizer``: that of transformers, saved
    beside the weights. Weights keep their type.

    Raises SourceError for a model that cannot be saved so or a folder that is a file, RunError
    where the form is not possible, or the fresh process computes something else.
    """
    if form not in ("auto", *forms.NAMES):
        fix = did_you_mean(str(form), ("auto", *forms.NAMES))
        raise SourceError(f"there is no form {form!r}", where="save(form=...)", fix=fix)
    path = Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise SourceError("this is a file, not a folder", where=str(path), fix="Name a folder.")
    config = config_of_held(model)
    words = _Words(None if tokenizer is None else HFTokenizer(tokenizer))
    pruned, wanted = PrunedModel(model, config), cast(Any, form)
    made = forms.form(pruned, wanted)
    size = write(made, pruned, words, path).bytes
    # A folder is loaded in fp32 to be compared, whatever type its weights are stored in.
    wide = model if model.dtype == torch.float32 else in_fp32(model)
    proof = prove(
        path,
        wide,
        random_tokens(model, config, 2),
        classes="own-class" if made.name == "exact" else "stock",
        text_settings=text_settings(model.generation_config, tokenizer),
    )
    of = made.name, made.model_type, made.why, made.count, size
    return SavedModel(path, *of, proof.max_logit_difference)


@final
class _Words:
    """A tokenizer, or none: then nothing is written."""

    def __init__(self, own: HFTokenizer | None) -> None:
        self._own = own

    def save(self, folder: Path) -> None:
        if self._own is not None:
            self._own.save(folder)
