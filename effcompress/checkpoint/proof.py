"""Compares an exported folder, loaded in a fresh process without effcompress, with the model in
memory.
"""

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from effcompress.checkpoint import prove as script
from effcompress.checkpoint.prove import Classes
from effcompress.errors import RunError

PROVING = "effcompress-proof"
TOLERANCE = 1e-5
"""Largest difference of a logit, in fp32; more where rounding alone moves them further."""


@dataclass(frozen=True)
class Proof:
    """What the comparison with the fresh process found."""

    max_logit_difference: float
    tokens_equal: bool
    cache_equal: bool
    seconds: float
    tolerance: float = TOLERANCE
    """Largest difference that was accepted."""


def prove(
    folder: Path,
    module: nn.Module,
    ids_BT: Tensor,
    *,
    classes: Classes = "stock",
    text_settings: Mapping[str, Any] | None = None,
    expect: Callable[[float], None] = lambda _seconds: None,
) -> Proof:
    """Loads ``folder`` in a fresh process and compares its answers with those of ``module``.

    Raises RunError unless the process loads the folder cleanly and gives the same logits for
    ``ids_BT`` [B, T] (1e-5 in fp32, or what rounding does to this model) and the same greedy
    tokens, with and without the cache. With the ``classes`` "own-class" the process may run the
    class in the folder. ``text_settings``: the generation config and tokenizer that it must find,
    too (``prove.text_settings``). ``expect`` is told how many seconds are left, by the time of the
    first forward pass.
    """
    started = time.monotonic()
    ids_BT = ids_BT.cpu()
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))

    def timed(forward: float) -> None:
        expect(forecast(forward, ids_BT, weights))

    logits_BTV, greedy_T = _expected(module, ids_BT, timed)
    found = in_fresh_process(folder, ids_BT, classes)
    difference = float((found["logits_BTV"] - logits_BTV).abs().max())
    tolerance = TOLERANCE
    if difference > TOLERANCE:  # both sides are rounded, each in its own order of sums
        tolerance = max(TOLERANCE, 2 * rounding(module, ids_BT))
    tokens_equal = torch.equal(found["cached_T"], greedy_T)
    cache_equal = torch.equal(found["cached_T"], found["uncached_T"])
    if not difference <= tolerance or not tokens_equal or not cache_equal:
        raise RunError(
            f"the exported model is not the trained one: logits differ by {difference:.3g} "
            f"(rounding: up to {tolerance:.3g}), greedy tokens equal: "
            f"{tokens_equal}, with and without cache equal: {cache_equal}",
            where=str(folder),
        )
    if text_settings is not None:
        _require_text_settings(
            folder, text_settings, json.loads(bytes(found["text_settings"].tolist()))
        )
    seconds = time.monotonic() - started
    return Proof(difference, tokens_equal, cache_equal, seconds, tolerance)


def _require_text_settings(
    folder: Path, wanted: Mapping[str, Any], found: Mapping[str, Any]
) -> None:
    """Raises RunError naming the first value that the folder does not have from the source."""
    for part, values in wanted.items():
        for key in sorted({*values, *found[part]}):
            if values.get(key) != found[part].get(key):
                raise RunError(
                    f"the exported folder has not the source's {part}: {key} was "
                    f"{values.get(key)!r:.60}, is {found[part].get(key)!r:.60}",
                    where=str(folder),
                    fix="The weights are proven, and in the newest checkpoint, too: mend the "
                    "source's files, then `effcompress export`.",
                )


@torch.no_grad()
def rounding(module: Any, ids_BT: Tensor) -> float:
    """Returns how far a logit moves when every output of an embedding or a linear layer is rounded
    up or down by half a unit in the last place (fp32).

    The number depends on the model: a model that pruning has damaged can amplify rounding a
    thousand times more than a good one, and padding a matrix with zeros changes the order of its
    sums.
    """
    training = module.training
    device = next(module.parameters()).device
    ids_BT = ids_BT.to(device)
    generator = torch.Generator().manual_seed(0)
    half = torch.finfo(torch.float32).eps / 2

    def nudge(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        signs = torch.randint(0, 2, out.shape, generator=generator) * 2 - 1
        return out * (1 + half * signs.to(out))

    module.eval()
    before = module(input_ids=ids_BT, use_cache=False).logits
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    hooks = [layer.register_forward_hook(nudge) for layer in layers]
    try:
        after = module(input_ids=ids_BT, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
        module.train(training)
    return float((after - before).abs().max())


START = 8.0
"""Seconds of one core to import torch and transformers and to build a model (measured)."""
READ = 5e8
"""Bytes per second at which weights are read, hashed and put in place."""


def forecast(forward: float, ids_BT: Tensor, weights: int) -> float:
    """Returns the seconds that a proof takes behind its first forward pass, which took ``forward``,
    of ``ids_BT``: greedy tokens without a cache here, and there a start, ``weights`` bytes to read,
    the same passes, and as many steps with a cache. Passes cost as many seconds as they have
    tokens; a step of one token costs about an eighth of that of 128.
    """
    rows, length = ids_BT.shape
    greedy = sum(range(length, length + script.NEW_TOKENS)) / (rows * length)
    cached = 1 / rows + script.NEW_TOKENS / 8
    return START + weights / READ + forward * (greedy + 1 + greedy + cached)


@torch.no_grad()
def _expected(
    module: Any, ids_BT: Tensor, timed: Callable[[float], None] = lambda _seconds: None
) -> tuple[Tensor, Tensor]:
    stop = module.generation_config.eos_token_id
    stops = [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
    training = module.training
    if next(module.parameters()).device.type != "cpu":
        # The fresh process computes on the CPU; another device rounds differently.
        module = copy.deepcopy(module).cpu()
    module.eval()
    started = time.monotonic()
    logits_BTV = module(input_ids=ids_BT, use_cache=False).logits.float()
    timed(time.monotonic() - started)
    row = ids_BT[:1]
    for _ in range(script.NEW_TOKENS):
        step = module(input_ids=row, use_cache=False).logits[:, -1].float()
        step[:, stops] = -torch.inf  # the fresh process may not choose them (``min_new_tokens``)
        row = torch.cat([row, step.argmax(-1, keepdim=True)], dim=1)
    module.train(training)
    return logits_BTV, row[0, ids_BT.shape[1] :]


def in_fresh_process(folder: Path, ids_BT: Tensor, classes: Classes) -> dict[str, Tensor]:
    """Runs `prove.py` in a process of its own and returns its answers (see `prove.answers`).

    The only process boundary of a proof: tests that are not about it put `prove.answers` here.
    Raises RunError with the process's last line when it fails.
    """
    with tempfile.TemporaryDirectory(prefix=f"{PROVING}-{os.getpid()}-") as work:
        source, target = Path(work, "in.safetensors"), Path(work, "out.safetensors")
        save_file({"ids_BT": ids_BT.contiguous()}, source)
        # -I: no environment, no current directory on the path; only what is installed.
        paths = [str(folder), str(source), str(target)]
        command = [sys.executable, "-I", str(script.__file__), classes, *paths]
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            # The folder's class is copied here, so that no earlier version of it is imported.
            "HF_MODULES_CACHE": str(Path(work, "modules")),
        }
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 0 or not target.exists():
            lines = ["?", *(line for line in done.stderr.splitlines() if line.strip())]
            raise did_not_load(folder, lines[-1])
        return {name: t.clone() for name, t in load_file(target).items()}


def did_not_load(folder: Path, why: str) -> RunError:
    """The error of a folder that a fresh process cannot load."""
    what = f"the exported model does not load in a fresh process: {why}"
    return RunError(what, where=str(folder))
