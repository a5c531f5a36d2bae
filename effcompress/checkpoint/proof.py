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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from effcompress import processes
from effcompress.checkpoint import prove as script
from effcompress.checkpoint.prove import FEW_TOKENS, NEW_TOKENS, Classes
from effcompress.distributed.world import ALONE, World, needs_all_ranks
from effcompress.errors import RunError, is_disk_full

PROVING = "effcompress-proof"
BY_LAYERS = "EFFCOMPRESS_PROOF_BYTES"
"""Variable with the bytes of weights that the fresh process may hold at a time."""
LEAST = 2**28
"""Of these, however little memory there is."""
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
    by_layers: bool = False
    """The fresh process held some layers at a time and read the others from the files."""
    generated: int = NEW_TOKENS
    """Tokens that were generated with and without the cache and compared."""


def prove(
    folder: Path,
    module: nn.Module,
    ids_BT: Tensor,
    *,
    classes: Classes = "stock",
    text_settings: Mapping[str, Any] | None = None,
    world: World = ALONE,
    expect: Callable[[float], None] = lambda _seconds: None,
) -> Proof:
    """Loads ``folder`` in a fresh process and compares its answers with those of ``module``.

    Where the model in fp32 would take more than half of the memory that this machine can give, the
    fresh process reads it layer by layer (``BY_LAYERS``): the same checks, with two new tokens.
    With several processes in ``world``, ``module`` is sharded, and all ranks enter.

    Raises RunError unless the process loads the folder cleanly and gives the same logits for
    ``ids_BT`` [B, T] (1e-5 in fp32, or what rounding does to this model) and the same greedy
    tokens, with and without the cache. With the ``classes`` "own-class" the process may run the
    class in the folder. ``text_settings``: the generation config and tokenizer that it must find,
    too (``prove.text_settings``). ``expect`` is told how many seconds are left, by the time of the
    first forward pass.
    """
    started = time.monotonic()
    ids_BT = ids_BT.cpu()
    most = world.agree(lambda: room_for(module))
    new_tokens = NEW_TOKENS if most is None else FEW_TOKENS
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    fresh: dict[str, Tensor] = {}

    def asked() -> list[int]:
        fresh.update(in_fresh_process(folder, ids_BT, classes, most))
        return fresh["cached_T"].tolist()

    with _evaluated(module) as (model, device):
        begun = time.monotonic()
        logits_BTV = model(input_ids=ids_BT.to(device), use_cache=False).logits.float().cpu()
        expect(forecast(time.monotonic() - begun, ids_BT, weights))
        said_T = torch.tensor(world.agree(asked))
        stop = model.generation_config.eos_token_id
        row_BT, first_T = ids_BT[:1].to(device), said_T[:new_tokens].to(device)
        greedy_T = script.greedy(model, row_BT, first_T, stop).cpu()

    def compared() -> tuple[float, bool, bool, bytes]:
        difference = float((fresh["logits_BTV"] - logits_BTV).abs().max())
        tokens_equal = torch.equal(said_T, greedy_T) and len(greedy_T) == new_tokens
        cache_equal = torch.equal(said_T, fresh["uncached_T"])
        told = [] if text_settings is None else fresh["text_settings"].tolist()
        return difference, tokens_equal, cache_equal, bytes(told)

    difference, tokens_equal, cache_equal, told = world.agree(compared)
    tolerance = TOLERANCE
    if difference > TOLERANCE:  # both sides are rounded, each in its own order of sums
        tolerance = max(TOLERANCE, 2 * rounding(module, ids_BT))
    if not difference <= tolerance or not tokens_equal or not cache_equal:
        raise RunError(
            f"the exported model is not the trained one: logits differ by {difference:.3g} "
            f"(rounding: up to {tolerance:.3g}), greedy tokens equal: "
            f"{tokens_equal}, with and without cache equal: {cache_equal}",
            where=str(folder),
        )
    if text_settings is not None:
        _require_text_settings(folder, text_settings, json.loads(told))
    seconds = time.monotonic() - started
    how: Any = {"by_layers": most is not None, "generated": new_tokens}
    return Proof(difference, tokens_equal, cache_equal, seconds, tolerance, **how)


def room_for(module: nn.Module) -> int | None:
    """Returns the bytes of weights that the fresh process may hold where the model is too large for
    the memory of this machine; None where it may be loaded whole. The variable ``BY_LAYERS`` names
    them, too.
    """
    if stated := os.environ.get(BY_LAYERS):
        return int(stated)
    size = 4 * sum(p.numel() for p in module.parameters())
    free = processes.memory_available()
    return None if 2 * size <= free else max(LEAST, free // 4)


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


START = 6.0
"""Seconds of one core to import torch and transformers and to build a model (measured)."""
READ = 5e8
"""Bytes per second at which weights are read, hashed and put in place."""


def forecast(forward: float, ids_BT: Tensor, weights: int) -> float:
    """Returns the seconds that a proof takes behind its first forward pass, which took ``forward``,
    of ``ids_BT``: in the fresh process a start, ``weights`` bytes to read, the same pass, tokens
    with and without a cache; and on both sides one pass over a row and its tokens. Passes cost as
    many seconds as they have tokens; a step of one token costs about an eighth of that of 128.
    """
    rows, length = ids_BT.shape
    greedy = (length + script.NEW_TOKENS) / (rows * length)
    cached = 1 / rows + script.NEW_TOKENS / 8
    return START + weights / READ + forward * (1 + script.GENERATED / rows + 2 * greedy + cached)


@contextmanager
def _evaluated(module: Any) -> Iterator[tuple[Any, torch.device]]:
    """Gives the model in evaluation mode, and where it computes: on the CPU as the fresh process,
    since another device rounds differently, unless it is sharded.
    """
    training, device = module.training, next(module.parameters()).device
    model = module
    if device.type != "cpu" and not needs_all_ranks(module):
        model, device = _on_cpu(module), torch.device("cpu")
    model.eval()
    with torch.no_grad():
        yield model, device
    module.train(training)


def _on_cpu(module: nn.Module) -> nn.Module:
    """Returns a copy on the CPU. Nothing is copied on the device, which may have no room for it."""
    held: dict[int, Any] = {id(buffer): buffer.cpu() for buffer in module.buffers()}
    for p in module.parameters():
        held[id(p)] = nn.Parameter(p.detach().cpu(), requires_grad=p.requires_grad)
    return copy.deepcopy(module, held).cpu()


def in_fresh_process(
    folder: Path, ids_BT: Tensor, classes: Classes, most: int | None = None
) -> dict[str, Tensor]:
    """Runs `prove.py` in a process of its own and returns its answers (see `prove.answers`).

    The only process boundary of a proof: tests that are not about it put `prove.answers` here.
    Raises RunError with the process's last line when it fails.
    """
    try:
        return _asked(folder, ids_BT, classes, most)
    except (OSError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        raise RunError(
            f"the proof of {folder} has no space for its files",
            where=tempfile.gettempdir(),
            fix="Free some space there, or name another folder in TMPDIR; a run then continues "
            "with --resume.",
        ) from error


def _asked(folder: Path, ids_BT: Tensor, classes: Classes, most: int | None) -> dict[str, Tensor]:
    with processes.scratch(PROVING) as work:
        source, target = work / "in.safetensors", work / "out.safetensors"
        save_file({"ids_BT": ids_BT.contiguous()}, source)
        # -I: no environment, no current directory on the path; only what is installed.
        paths = [str(folder), str(source), str(target)]
        how = [f"--most={most}"] if most is not None else []
        command = [sys.executable, "-I", str(script.__file__), classes, *how, *paths]
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            # The folder's class is copied here, so that no earlier version of it is imported.
            "HF_MODULES_CACHE": str(work / "modules"),
            "TMPDIR": str(work),  # deleted with all the rest, whatever becomes of the process
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            # Threads of short operations spin while they wait: on a busy machine three quarters of
            # all processor time.
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        }
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 0 or not target.exists():
            lines = ["?", *(line for line in done.stderr.splitlines() if line.strip())]
            if is_disk_full(OSError(lines[-1])):
                raise OSError(lines[-1])
            raise did_not_load(folder, lines[-1])
        return {name: t.clone() for name, t in load_file(target).items()}


def did_not_load(folder: Path, why: str) -> RunError:
    """The error of a folder that a fresh process cannot load."""
    what = f"the exported model does not load in a fresh process: {why}"
    return RunError(what, where=str(folder))
