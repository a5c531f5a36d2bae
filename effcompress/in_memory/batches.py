"""Batches of a script as calibration text: single sequences without padding, of any length."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from effcompress.errors import SourceError, short
from effcompress.measure.stats import NOT_PREDICTED
from effcompress.model.suitability import positions_of
from effcompress.types import Config

Row = dict[str, Tensor]
"""One sequence: ``input_ids`` ``[1, T]``, and all else that its batch holds for it."""
Loss = Callable[[nn.Module, Row], Tensor]
"""A script's loss: the model and one sequence (on its device) -> a number with a gradient."""
WHERE = "batches"
TOKENS = ("input_ids", "attention_mask", "labels")
"""What a batch holds for every token."""


@final
@dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths in the place of a tensor ``[N, T]``, for passes that take one
    at a time.
    """

    rows: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences, and the length of the longest."""
        return len(self.rows), max(row.shape[1] for row in self.rows)

    @property
    def flat(self) -> Tensor:
        """All tokens in one row."""
        return torch.cat(self.rows, 1)

    def __getitem__(self, place: slice) -> Tensor:
        """One sequence, ``[1, T]``."""
        (row,) = self.rows[place]
        return row


@final
@dataclass(frozen=True)
class Batches:
    """What a run reads of a corpus, from the sequences of a script, in their order."""

    rows: tuple[Row, ...]

    @property
    def equal(self) -> bool:
        """Whether all sequences have one length."""
        return len({row["input_ids"].shape[1] for row in self.rows}) < 2

    def calibration(self, sequences: int, seed: int | None = None) -> Tensor | Ragged:
        """Returns the first ``sequences``, whatever the ``seed``: there are no others."""
        ids = tuple(row["input_ids"] for row in self.rows[:sequences])
        return torch.cat(ids) if self.equal else Ragged(ids)

    def probe(self, tokens: int) -> Tensor:
        """Returns the first ``tokens`` of the first sequence, ``[1, T]``."""
        return self.rows[0]["input_ids"][:, :tokens].cpu()

    def calibration_positions(self, sequences: int, seed: int | None = None) -> None:
        """Every sequence is a document of its own."""

    def stream(self, seed: int) -> None:
        """The training text is the script's."""


def batches_of(given: Any, vocab: int, config: Config) -> Batches:
    """Returns the sequences of ``given``: a batch, or an iterable of batches, each a tensor of
    token ids ``[B, T]`` or ``[T]``, or a mapping with ``input_ids``, and perhaps ``attention_mask``
    (its padding is taken off) and ``labels`` (-100: not predicted).

    Sequences without a label are left out. Raises SourceError for anything else.
    """
    rows = [row for batch in _listed(given) for row in _rows(batch)]
    if not rows:
        fix = "An iterator gives its batches once: make it anew, or give a list."
        raise SourceError("there is no batch in them", where=WHERE, fix=fix)
    longest = max(row["input_ids"].shape[1] for row in rows)
    largest = max(int(row["input_ids"].max()) for row in rows)
    if largest >= vocab or any(int(row["input_ids"].min()) < 0 for row in rows):
        fix = "Tokenise with the model's own tokenizer; -100 stands in labels only."
        raise SourceError(
            f"a token id is not one of the {vocab:,} of the model", where=WHERE, fix=fix
        )
    limit, fixed = positions_of(config)
    if fixed and limit is not None and longest > limit:
        what = f"a sequence has {longest:,} tokens, the model positions for {limit:,}"
        raise SourceError(what, where=WHERE, fix="Cut the sequences.")
    labelled = [row for row in rows if _is_labelled(row)]
    if not labelled:
        fix = "Leave `labels` out: then every token is predicted."
        raise SourceError("no token is to be predicted: all labels are -100", where=WHERE, fix=fix)
    return Batches(tuple(labelled))


def loss_of(batches: Batches, loss: Loss | None) -> Callable[[nn.Module, int], Tensor]:
    """Returns the loss of a sequence by its number: ``loss``, or the model's own, by the labels.

    Raises SourceError, when it is called, for something else than one number with a gradient.
    """

    def of(module: nn.Module, number: int) -> Tensor:
        device = next(module.parameters()).device
        row = {name: value.to(device) for name, value in batches.rows[number].items()}
        if loss is None:
            ids = row["input_ids"]
            return module(input_ids=ids, labels=row.get("labels", ids), use_cache=False).loss
        found: Any = loss(module, row)
        if not isinstance(found, Tensor) or found.numel() != 1:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            fix = "Return one number, e.g. model(**batch).loss."
            raise SourceError(f"it returned {got}, not one number", where="loss", fix=fix)
        if torch.is_grad_enabled() and not found.requires_grad:
            fix = "Compute it from what the model returns, without no_grad or detach."
            raise SourceError("what it returned has no gradient", where="loss", fix=fix)
        return found.reshape(())

    return of


def _listed(given: Any) -> Iterable[Any]:
    """The batches one by one; a text is refused before its letters are taken for batches."""
    if isinstance(given, str | bytes):
        fix = "Tokenise it: tokenizer(text, return_tensors='pt')."
        raise SourceError(
            f"this is text, not token ids: {short(repr(given), 40)}", where=WHERE, fix=fix
        )
    if isinstance(given, Tensor | Mapping):
        return [given]
    if not isinstance(given, Iterable):
        fix = "Give a tensor, a mapping with input_ids, or an iterable of them."
        raise SourceError(f"this is a {type(given).__name__}", where=WHERE, fix=fix)
    return given


def _rows(batch: Any) -> Iterator[Row]:
    """Yields the sequences of one batch, without padding."""
    fields = {"input_ids": batch} if isinstance(batch, Tensor) else batch
    if not isinstance(fields, Mapping):
        if isinstance(batch, str | bytes):
            _listed(batch)  # says so
        fix = "Give tensors [B, T], or mappings with input_ids."
        raise SourceError(f"a batch is a {type(batch).__name__}", where=WHERE, fix=fix)
    if "input_ids" not in fields:
        fix = "Name the token ids `input_ids`, as tokenizers of transformers do."
        named = ", ".join(map(str, fields)) or "nothing"
        raise SourceError(f"a batch has no `input_ids`, only {named}", where=WHERE, fix=fix)
    tensors = {
        name: _tensor(name, value) if name in TOKENS else value
        for name, value in fields.items()
        if isinstance(value, Tensor) or (name in TOKENS and value is not None)
    }
    alone = tensors["input_ids"].dim() == 1
    beside = {name: t[None] if alone else t for name, t in tensors.items()}
    ids_BT = beside["input_ids"]
    if ids_BT.dim() != 2 or ids_BT.is_floating_point():
        got = f"{tuple(ids_BT.shape)} of {str(ids_BT.dtype).removeprefix('torch.')}"
        fix = "Give whole numbers, [B, T]."
        raise SourceError(f"`input_ids` are {got}, not token ids [B, T]", where=WHERE, fix=fix)
    for name in ("attention_mask", "labels"):
        if name in beside and beside[name].shape != ids_BT.shape:
            what = f"`{name}` has the shape {tuple(beside[name].shape)}, `input_ids` "
            fix = "Give one value for every token."
            raise SourceError(f"{what}{tuple(ids_BT.shape)}", where=WHERE, fix=fix)
    mask_BT = beside.get("attention_mask", torch.ones_like(ids_BT)).bool()
    for b in range(len(ids_BT)):
        yield _row(beside, ids_BT.shape, b, mask_BT[b])


def _row(beside: Mapping[str, Tensor], shape: torch.Size, b: int, mask_T: Tensor) -> Row:
    """One sequence: its own row of all that has a row for each, cut to what is no padding."""
    places = mask_T.nonzero().flatten()
    if not len(places) or len(places) != int(places[-1] - places[0]) + 1:
        what = "the attention mask of a sequence is empty, or has holes"
        raise SourceError(what, where=WHERE, fix="Padding stands at one end, or at both.")
    if len(places) < 2:
        what = "a sequence has one token, so no next one is predicted"
        raise SourceError(what, where=WHERE, fix="Give sequences of two tokens or more.")
    kept = slice(int(places[0]), int(places[-1]) + 1)
    found = {name: t[b : b + 1] for name, t in beside.items() if t.shape[:1] == shape[:1]}
    return {
        name: t[:, kept].contiguous() if t.shape[1:2] == shape[1:] else t
        for name, t in found.items()
    }


def _tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        fix = "Let the tokenizer make tensors: return_tensors='pt', padding=True."
        raise SourceError(
            f"`{name}` of a batch is no tensor: {error}", where=WHERE, fix=fix
        ) from error


def _is_labelled(row: Row) -> bool:
    return "labels" not in row or bool((row["labels"][:, 1:] != NOT_PREDICTED).any())
