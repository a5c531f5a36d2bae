"""The proof of an export without its process: loads and compares in the process of the tests.

The product proves every export in a fresh process that has transformers and nothing of effcompress
(`effcompress.checkpoint.proof`). Starting one costs several times what a toy run does, so tests of
other things compute the same answers, held to the same tolerance, here. Tests marked
``fresh_process`` keep the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from effcompress.checkpoint import Classes, proof
from effcompress.model.silence import quietly

FRESH = proof.in_fresh_process
"""The product's own."""


def in_this_process(
    folder: Path, ids_BT: Tensor, classes: Classes, most: int | None = None
) -> dict[str, Tensor]:
    """What `prove.py` answers, by the same function; its errors in the same words."""
    try:
        # A fresh process has a generator of its own; the run's must not be touched.
        with quietly(), torch.random.fork_rng():
            return proof.script.answers(str(folder), ids_BT, classes, most)
    except (Exception, SystemExit) as error:
        raise proof.did_not_load(folder, str(error)) from error


@contextmanager
def fresh_process() -> Iterator[None]:
    """In here exports are proven as the product proves them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "in_fresh_process", FRESH)
        yield
