"""Packs tokens into sequences of equal length (BOS policy), and mixes them into training batches by
weight, shuffled in each epoch; can be resumed.

Sample ``n`` is a pure function of the seed and one counter per domain, so a checkpoint stores a few
integers, and a resumed run reads bit for bit what the uninterrupted one would have read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from effcompress.data.folder import Tokens
from effcompress.errors import RunError, SourceError
from effcompress.types import Batch, TextTokenizer

if TYPE_CHECKING:
    from torch import Tensor

NO_FRACTION = 1e-300
"""Stands for a fraction of 0 in a quotient."""


def window_bos(policy: Literal["auto", "always", "never"], tokenizer: TextTokenizer) -> int | None:
    """The BOS id in front of every window, or None. The same for training, calibration and
    evaluation, which all read ``Windows``.

    Raises ``SourceError`` for ``always`` with a tokenizer that has no BOS.
    """
    if policy == "always" and tokenizer.bos_id is None:
        raise SourceError(
            "the tokenizer has no BOS token", where="data.bos", fix="use `auto` or `never`"
        )
    wanted = policy == "always" or (policy == "auto" and tokenizer.adds_bos)
    return tokenizer.bos_id if wanted else None


def marked(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Marks tokens as not trained on: their bitwise complements, all negative."""
    return ~ids


def unmarked(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns the tokens without marks, and a mask of those that are trained on."""
    return np.where(ids < 0, ~ids, ids), ids >= 0


def payload(length: int, bos: int | None) -> int:
    """Tokens of text in a window of ``length`` tokens."""
    return length - (bos is not None)


@dataclass(frozen=True)
class Windows:
    """``count`` sequences of ``length`` tokens, adjacent and without overlap, from the beginning of
    a token file; each begins with ``bos`` if there is one. ``ends``: where each document of the
    file ends, if documents are isolated.
    """

    tokens: Tokens
    length: int
    bos: int | None
    count: int
    ends: NDArray[np.uint64] | None = None

    @property
    def used(self) -> NDArray[np.unsignedinteger]:
        """The tokens that the windows cover."""
        return self.tokens[: self.count * payload(self.length, self.bos)]

    def untrained(self) -> int:
        """Number of windows without a token to learn or to score: behind their first token, which
        nothing predicts, all are of prompts.
        """
        if self.tokens.dtype.kind == "u":  # a domain without prompts
            return 0
        rows, first = self.used.reshape(self.count, -1), int(self.bos is None)
        parts = (rows[at : at + 4096, first:] for at in range(0, self.count, 4096))
        return sum(int((part < 0).all(1).sum()) for part in parts)

    def take(self, number: int) -> NDArray[np.int64]:
        """``ids_T`` of window ``number``; tokens of prompts are ``marked``."""
        assert 0 <= number < self.count, f"window {number} of {self.count}"
        size = payload(self.length, self.bos)
        text = self.tokens[number * size : (number + 1) * size].astype(np.int64)
        return text if self.bos is None else np.concatenate([[np.int64(self.bos)], text])

    def positions(self, number: int) -> NDArray[np.int64] | None:
        """The position of each token of a window in its document, or in the stretch of it that the
        window begins with (behind BOS); None if documents are not isolated.
        """
        if self.ends is None:
            return None
        size = payload(self.length, self.bos)
        start, stop = np.uint64(number * size), np.uint64((number + 1) * size)
        first, last = np.searchsorted(self.ends, [start, stop], side="right")
        inside = self.ends[first:last].astype(np.int64) - number * size
        begins = np.concatenate([[0], inside + (self.length - size)])
        each_T = np.arange(self.length)
        return each_T - begins[np.searchsorted(begins, each_T, side="right") - 1]


@dataclass(frozen=True)
class Rows:
    """One document per sequence: the documents ``numbers`` of a token file, each cut at ``length``
    tokens or padded on the right; each begins with ``bos`` if there is one. Padding is marked as
    not trained on, so it may be any token.
    """

    tokens: Tokens
    length: int
    bos: int | None
    ends: NDArray[np.uint64]
    numbers: NDArray[np.int64]
    pad: int

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.numbers)

    @property
    def used(self) -> Tokens:
        """The tokens up to the last document."""
        return self.tokens[: int(self.ends[self.numbers[-1]]) if self.count else 0]

    def untrained(self) -> int:
        """Number of sequences without a token to learn."""
        return 0

    def take(self, number: int) -> NDArray[np.int64]:
        """``ids_T`` of a sequence; tokens of prompts and padding are ``marked``."""
        text = document(self.tokens, self.ends, int(self.numbers[number]))
        text = text[: payload(self.length, self.bos)].astype(np.int64)
        ids_T = np.full(self.length, ~self.pad, dtype=np.int64)
        first = self.length - payload(self.length, self.bos)
        ids_T[first : first + len(text)] = text
        if self.bos is not None:
            ids_T[0] = self.bos
        return ids_T

    def positions(self, _number: int) -> None:
        """Those of the sequence itself."""
        return None


Sequenced = Windows | Rows
"""The sequences of a part of a domain."""


def document(tokens: Tokens, ends: NDArray[np.uint64], number: int) -> Tokens:
    """The tokens of a document."""
    return tokens[int(ends[number - 1]) if number else 0 : int(ends[number])]


def rows_of(
    tokens: Tokens, ends: NDArray[np.uint64], length: int, bos: int | None, pad: int
) -> Rows:
    """All documents that have a token to learn within ``length``: one that something predicts and
    that is no part of a prompt.
    """
    size, first = payload(length, bos), int(bos is None)
    every = ((n, document(tokens, ends, n)[first:size]) for n in range(len(ends)))
    signed = tokens.dtype.kind == "i"
    numbers = [n for n, ids in every if len(ids) and (not signed or (ids >= 0).any())]
    return Rows(tokens, length, bos, ends, np.array(numbers, dtype=np.int64), pad)


def windows_of(
    tokens: Tokens,
    length: int,
    bos: int | None,
    wanted: int,
    ends: NDArray[np.uint64] | None = None,
) -> Windows:
    """The first ``wanted`` windows of ``tokens``, or as many as there are."""
    return Windows(tokens, length, bos, min(wanted, len(tokens) // payload(length, bos)), ends)


def stacked(rows: Sequence[tuple[Sequenced, int]], length: int) -> tuple[Tensor, Tensor, Any]:
    """Sequences by their numbers: tokens ``[N, T]``, a mask of those that are trained on, and their
    positions (None if documents are not isolated). Of documents with padding, ``T`` ends with the
    last token that is trained on in any row.
    """
    import torch

    if not rows:
        return torch.zeros(0, length, dtype=torch.int64), torch.zeros(0, length).bool(), None
    ids_NT, trained_NT = unmarked(np.stack([windows.take(number) for windows, number in rows]))
    if isinstance(rows[0][0], Rows):
        width = 1 + int(np.flatnonzero(trained_NT.any(0))[-1])
        ids_NT, trained_NT = ids_NT[:, :width], trained_NT[:, :width]
    given = [windows.positions(number) for windows, number in rows]
    positions_NT = None
    if isolated := [found for found in given if found is not None]:
        positions_NT = np.stack(isolated)
        # Nothing of its own document predicts a document's first token.
        trained_NT[:, 1:] &= positions_NT[:, 1:] > 0
        positions_NT = torch.from_numpy(positions_NT)
    return torch.from_numpy(ids_NT), torch.from_numpy(trained_NT), positions_NT


def shuffled(position: int, count: int, key: str) -> int:
    """Image of ``position`` under a pseudorandom permutation of ``range(count)`` given by ``key``.

    A keyed Feistel network on the next power of four, with cycle walking. It needs neither memory
    nor state, and gives the same order with every version of numpy.
    """
    assert 0 <= position < count
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    secret = hashlib.blake2b(key.encode(), digest_size=32).digest()
    while True:
        left, right = position >> half, position & mask
        # Each round swaps the halves and adds a keyed hash of one to the other: a bijection.
        for turn in range(6):
            message = bytes([turn]) + right.to_bytes(8, "little")
            digest = hashlib.blake2b(message, key=secret, digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        position = (left << half) | right
        # Cycle walking: outside of the range, apply the permutation again.
        if position < count:
            return position


def digest(ids_NT: Tensor) -> str:
    """Hashes token ids to 16 hexadecimal digits, equal exactly for equal shapes and tokens."""
    ids = ids_NT.detach().cpu().long().contiguous()
    said = hashlib.sha256(f"{tuple(ids.shape)} ".encode())
    said.update(ids.numpy().data)
    return said.hexdigest()[:16]


def next_domain(
    fractions: Sequence[float], counts: Sequence[int], owed: Sequence[float] = ()
) -> int:
    """Returns the index of the domain that gives the next sample, after ``counts`` samples of each.

    Tijdeman's algorithm (The chairman assignment problem, 1980): after any number n of samples, a
    domain with fraction w has given w * n of them, with an error below one sample.

    ``fractions`` are not negative and sum to 1. Where they change, ``counts`` are those since the
    last change, and ``owed`` is what each domain had given too little by then (they sum to 0). A
    domain is then never a whole sample ahead of the sum of its fractions, nor, of D, D - 1 behind.
    """
    if len(fractions) == 1:
        return 0
    slack = 1 / (2 * len(fractions) - 2)
    n = sum(counts) + 1
    due = [w * n - count for w, count in zip(fractions, counts, strict=True)]
    due = [mine + more for mine, more in zip(due, owed, strict=True)] if owed else due
    # `due` sums to 1, so some exceed the slack; the tolerance is for rounding only. Among those,
    # the domain whose deadline (due = 1 - slack) comes first.
    ready = [d for d, value in enumerate(due) if value >= slack - 1e-9]
    return min(ready, key=lambda d: ((1 - slack - due[d]) / max(fractions[d], NO_FRACTION), d))


class MixtureState(TypedDict):
    """Fractions of the domains, and what came before they changed last. Floats survive JSON."""

    fractions: dict[str, float]
    since: dict[str, int]
    """Samples read per domain when they changed."""
    owed: dict[str, float]
    """Samples that each domain had given too little by then."""


class StreamState(TypedDict):
    """A position in the stream, as plain JSON."""

    seed: int
    samples: int
    """Samples read from all domains."""
    read: dict[str, int]
    """Samples read per domain."""
    windows: dict[str, int]
    """Windows per domain: with others, the same position stands for other text."""
    mixture: NotRequired[MixtureState]
    """Not in checkpoints of earlier versions."""


class Stream:
    """Yields batches of packed sequences. Made by ``Corpus.stream``.

    The windows of a domain are read in a permutation given by seed, domain and epoch. Domains take
    turns so that each has given the sum of its fractions over all samples so far; while these do
    not change, that is their product with the number of samples, bit for bit.
    """

    def __init__(
        self,
        windows: Mapping[str, Sequenced],
        fractions: Mapping[str, float],
        *,
        seed: int,
        when_dry: Literal["repeat", "stop"],
        notice: Callable[[str], None],
    ) -> None:
        self._windows, self.fractions = dict(windows), dict(fractions)
        """Of the samples from here on, by domain; they sum to 1."""
        self._names = list(self._windows)
        self._seed, self._when_dry, self._notice = seed, when_dry, notice
        self._counts = dict.fromkeys(self._names, 0)
        self._since, self._owed = dict(self._counts), dict.fromkeys(self._names, 0.0)

    def next(self, batch_size: int) -> Batch:
        """Returns the next batch: ``ids_BT`` (int64, B = ``batch_size``) and where its rows are
        from.

        Raises ``RunError`` naming a domain that is exhausted, if ``when_dry`` is stop; the position
        is then the one before the call.
        """
        before = dict(self._counts)
        try:
            drawn = [self._draw() for _ in range(batch_size)]
        except RunError:
            self._counts = before
            raise
        rows = [(self._windows[name], at) for name, _, at in drawn]
        ids_BT, trained_BT, positions_BT = stacked(rows, rows[0][0].length)
        samples = tuple((name, number) for name, number, _ in drawn)
        return Batch(
            ids_BT,
            tuple(name for name, _ in samples),
            samples,
            None if trained_BT.all() else trained_BT,
            positions_BT,
        )

    def reweigh(self, fractions: Mapping[str, float]) -> None:
        """Gives the domains other fractions from the next sample on; they sum to 1."""
        given = {name: self._counts[name] - self._since[name] for name in self._names}
        n = sum(given.values())
        for name, count in given.items():
            self._owed[name] += self.fractions[name] * n - count
        self._since = dict(self._counts)
        self.fractions = {name: fractions[name] for name in self._names}

    def _draw(self) -> tuple[str, int, int]:
        names = self._names
        given = [self._counts[name] - self._since[name] for name in names]
        fractions, owed = [self.fractions[n] for n in names], [self._owed[n] for n in names]
        name = names[next_domain(fractions, given, owed)]
        number, windows = self._counts[name], self._windows[name]
        epoch, position = divmod(number, windows.count)
        if epoch and not position:
            self._dry(name, epoch)
        self._counts[name] += 1
        key = f"train {self._seed} {name} {epoch}"
        return name, number, shuffled(position, windows.count, key)

    def _dry(self, name: str, epoch: int) -> None:
        tokens = self._windows[name].count * self._windows[name].length
        if self._when_dry == "repeat":
            times = "once" if epoch == 1 else f"{epoch} times"
            self._notice(
                f"domain '{name}': all {tokens:,} tokens of this run were read {times}; "
                "reading them again in another order"
            )
            return
        raise RunError(
            f"domain '{name}' has run out of text after {tokens:,} tokens",
            where=f"data.domains.{name}",
            fix="add text, lower its weight or train.tokens, or set data.when_dry to repeat",
        )

    def state_dict(self) -> StreamState:
        """Returns the position for a checkpoint."""
        return {
            "seed": self._seed,
            "samples": sum(self._counts.values()),
            "read": dict(self._counts),
            "windows": {name: windows.count for name, windows in self._windows.items()},
            "mixture": {
                "fractions": dict(self.fractions),
                "since": dict(self._since),
                "owed": dict(self._owed),
            },
        }

    def load_state_dict(self, state: StreamState) -> None:
        """Restores a position. Raises ``RunError`` if it was saved with other data or another seed,
        where it stands for other text.
        """
        here = self.state_dict()
        for key in ("seed", "windows"):
            if state[key] != here[key]:
                raise RunError(
                    f"the saved position in the data does not fit this run: {key} was "
                    f"{state[key]}, is {here[key]}",
                    fix="resume with the recipe and the text of the saved run, or start anew",
                )
        self._counts = {name: int(state["read"][name]) for name in self._names}
        if (held := state.get("mixture")) is not None:
            self.fractions = {name: float(held["fractions"][name]) for name in self._names}
            self._since = {name: int(held["since"][name]) for name in self._names}
            self._owed = {name: float(held["owed"][name]) for name in self._names}
