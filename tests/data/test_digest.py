"""Equal hashes exactly for equal tokens in equal sequences."""

from __future__ import annotations

import torch

from effcompress.data import digest


def test_a_hash_says_which_tokens() -> None:
    ids_NT = torch.arange(12).view(3, 4)
    same = digest(ids_NT)
    assert len(same) == 16 and same == digest(ids_NT.int()) == digest(ids_NT.t().contiguous().t())
    other = ids_NT.clone()
    other[2, 3] += 1
    assert len({same, digest(other), digest(ids_NT.view(4, 3)), digest(ids_NT.flip(0))}) == 4
