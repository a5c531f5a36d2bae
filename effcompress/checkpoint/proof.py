"""The exported folder against the model in memory, through a process that knows nothing of us."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from effcompress.checkpoint import prove as script
from effcompress.errors import RunError

TOLERANCE = 1e-5
"""Largest difference of a logit, in fp32."""


@dataclass(frozen=True)
class Proof:
    """What the fresh process agreed to."""

    max_logit_difference: float
    tokens_equal: bool
    cache_equal: bool
    seconds: float


def prove(folder: Path, module: nn.Module, ids_BT: Tensor, *, own_class: bool = False) -> Proof:
    """Raises RunError unless a fresh process loads ``folder`` cleanly and gives the same logits
    (1e-5 in fp32) and the same greedy tokens, with and without cache, as ``module`` in memory.
    With ``own_class`` the process may run the class that the folder brings.
    """
    started = time.monotonic()
    ids_BT = ids_BT.cpu()
    logits_BTV, greedy_T = _expected(module, ids_BT)
    with tempfile.TemporaryDirectory(prefix="effcompress-proof-") as work:
        source, target = Path(work, "in.safetensors"), Path(work, "out.safetensors")
        save_file({"ids_BT": ids_BT.contiguous()}, source)
        _fresh_process(folder, source, target, own_class)
        found = {name: t.clone() for name, t in load_file(target).items()}
    difference = float((found["logits_BTV"] - logits_BTV).abs().max())
    tokens_equal = torch.equal(found["cached_T"], greedy_T)
    cache_equal = torch.equal(found["cached_T"], found["uncached_T"])
    if not difference <= TOLERANCE or not tokens_equal or not cache_equal:
        raise RunError(
            f"the exported model is not the trained one: logits differ by {difference:.3g}, greedy "
            f"tokens equal: {tokens_equal}, with and without cache equal: {cache_equal}",
            where=str(folder),
        )
    return Proof(difference, tokens_equal, cache_equal, time.monotonic() - started)


@torch.no_grad()
def _expected(module: nn.Module, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    training = module.training
    if next(module.parameters()).device.type != "cpu":
        # The fresh process computes on the CPU; another device rounds differently.
        module = copy.deepcopy(module).cpu()
    module.eval()
    logits_BTV = module(input_ids=ids_BT, use_cache=False).logits.float()
    row = ids_BT[:1]
    for _ in range(script.NEW_TOKENS):
        step = module(input_ids=row, use_cache=False).logits[:, -1].float()
        for banned in _stops(module):
            step[:, banned] = -torch.inf
        row = torch.cat([row, step.argmax(-1, keepdim=True)], dim=1)
    module.train(training)
    return logits_BTV, row[0, ids_BT.shape[1] :]


def _stops(module: Any) -> list[int]:
    """End tokens, which the fresh process may not choose either (``min_new_tokens``)."""
    stop = module.generation_config.eos_token_id
    return [] if stop is None else [stop] if isinstance(stop, int) else list(stop)


def _fresh_process(folder: Path, source: Path, target: Path, own_class: bool) -> None:
    # -I: no environment, no current directory on the path; only what is installed.
    classes = "own-class" if own_class else "stock"
    paths = [str(folder), str(source), str(target)]
    command = [sys.executable, "-I", str(script.__file__), classes, *paths]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        # A copy of the folder's class of its own, never one that an earlier run has left.
        "HF_MODULES_CACHE": str(target.parent / "modules"),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0 or not target.exists():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RunError(
            f"the exported model does not load in a fresh process: {lines[-1] if lines else '?'}",
            where=str(folder),
        )
