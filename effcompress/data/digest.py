"""Which tokens were read: a hash that two runs can compare."""

from __future__ import annotations

import hashlib

from torch import Tensor


def digest(ids_NT: Tensor) -> str:
    """16 hexadecimal digits: equal exactly if both the shape and all the tokens are."""
    ids = ids_NT.detach().cpu().long().contiguous()
    said = hashlib.sha256(f"{tuple(ids.shape)} ".encode())
    said.update(ids.numpy().data)
    return said.hexdigest()[:16]
