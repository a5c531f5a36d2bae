"""Tokens to sequences of equal length, and the order in which they are visited."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from effcompress.data.folder import Tokens
from effcompress.errors import SourceError
from effcompress.types import TextTokenizer

if TYPE_CHECKING:
    from torch import Tensor


def window_bos(policy: Literal["auto", "always", "never"], tokenizer: TextTokenizer) -> int | None:
    """The id that begins every window, or None. The one BOS policy: training, calibration and
    evaluation all get their sequences from ``Windows``.

    Raises ``SourceError`` for ``always`` with a tokenizer that has no BOS.
    """
    if policy == "always" and tokenizer.bos_id is None:
        raise SourceError(
            "the tokenizer has no BOS token", where="data.bos", fix="use `auto` or `never`"
        )
    wanted = policy == "always" or (policy == "auto" and tokenizer.adds_bos)
    return tokenizer.bos_id if wanted else None


def marked(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens that are read but not trained on: their complements, all below zero."""
    return ~ids


def unmarked(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The tokens, and which of them are trained on."""
    return np.where(ids < 0, ~ids, ids), ids >= 0


def payload(length: int, bos: int | None) -> int:
    """Tokens of text in a window of ``length`` tokens."""
    return length - (bos is not None)


@dataclass(frozen=True)
class Windows:
    """``count`` sequences of ``length`` tokens that tile the first tokens of a file without gap or
    overlap; each begins with ``bos`` if there is one.
    """

    tokens: Tokens
    length: int
    bos: int | None
    count: int

    @property
    def used(self) -> NDArray[np.unsignedinteger]:
        """The tokens that the windows cover."""
        return self.tokens[: self.count * payload(self.length, self.bos)]

    def take(self, number: int) -> NDArray[np.int64]:
        """``ids_T`` of window ``number``; tokens of prompts are ``marked``."""
        assert 0 <= number < self.count, f"window {number} of {self.count}"
        size = payload(self.length, self.bos)
        text = self.tokens[number * size : (number + 1) * size].astype(np.int64)
        return text if self.bos is None else np.concatenate([[np.int64(self.bos)], text])


def windows_of(tokens: Tokens, length: int, bos: int | None, wanted: int) -> Windows:
    """The first ``wanted`` windows of ``tokens``, or as many as there are."""
    return Windows(tokens, length, bos, min(wanted, len(tokens) // payload(length, bos)))


def shuffled(position: int, count: int, key: str) -> int:
    """Where ``position`` goes in the permutation of ``range(count)`` that belongs to ``key``.

    A keyed Feistel network over the next power of four, walked until it lands inside the range.
    It needs no memory and no state, and gives the same order with every version of numpy.
    """
    assert 0 <= position < count
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    secret = hashlib.blake2b(key.encode(), digest_size=32).digest()
    while True:
        left, right = position >> half, position & mask
        for turn in range(6):
            message = bytes([turn]) + right.to_bytes(8, "little")
            digest = hashlib.blake2b(message, key=secret, digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        position = (left << half) | right
        if position < count:
            return position


def digest(ids_NT: Tensor) -> str:
    """16 hexadecimal digits: equal exactly if both the shape and all the tokens are."""
    ids = ids_NT.detach().cpu().long().contiguous()
    said = hashlib.sha256(f"{tuple(ids.shape)} ".encode())
    said.update(ids.numpy().data)
    return said.hexdigest()[:16]
