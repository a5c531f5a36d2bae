"""Packs tokens into sequences of equal length; BOS policy; the order in which they are read."""

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
    a token file; each begins with ``bos`` if there is one.
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
