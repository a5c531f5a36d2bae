"""Times prefill and decode of several models side by side.

``B`` sequences, ``T`` tokens of the prompt, ``N`` new tokens.
"""

import inspect
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

PHASES = ("prefill", "decode")
Clock = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """Seconds for the prompt up to the first new token, and for the tokens after that one."""

    prefill: float
    decode: float


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and their lowest and highest."""

    median: float
    low: float
    high: float


@torch.no_grad()
def write_on(module: nn.Module, prompt_BT: Tensor, new: int, clock: Clock) -> tuple[Tensor, Timing]:
    """Generates ``new`` greedy tokens [B, N] with the KV cache and without early stopping; returns
    them with their timing. ``generate`` is not used, because it spends time outside the model.
    """
    run: Any = module
    keep = {}
    if "logits_to_keep" in inspect.signature(module.forward).parameters:
        keep = {"logits_to_keep": 1}  # as `generate` does: one row of the vocabulary
    started = _now(prompt_BT.device, clock)
    out = run(input_ids=prompt_BT, use_cache=True, **keep)
    token_B1 = out.logits[:, -1].argmax(-1, keepdim=True)
    read = _now(prompt_BT.device, clock)
    tokens = [token_B1]
    for _ in range(new - 1):
        cache = out.past_key_values
        out = run(input_ids=tokens[-1], past_key_values=cache, use_cache=True, **keep)
        tokens.append(out.logits[:, -1].argmax(-1, keepdim=True))
    written = _now(prompt_BT.device, clock)
    return torch.cat(tokens, 1), Timing(read - started, written - read)


@contextmanager
def timing(
    modules: Mapping[str, nn.Module], device: torch.device, clock: Clock
) -> Iterator[dict[str, list[float]]]:
    """Yields name -> the seconds of every call of a module, in the passes of the model inside."""
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    begun: dict[str, float] = {}

    def before(name: str, *_: Any) -> None:
        begun[name] = _now(device, clock)

    def after(name: str, *_: Any) -> None:
        seconds[name].append(_now(device, clock) - begun[name])

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_pre_hook(partial(before, name)))
            hooks.enter_context(module.register_forward_hook(partial(after, name)))
        yield seconds


def _now(device: torch.device, clock: Clock) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # kernels run asynchronously; the clock must not
    return clock()


def race(
    sides: Mapping[str, nn.Module],
    prompt_BT: Tensor,
    new: int,
    rounds: int,
    clock: Clock = time.perf_counter,
) -> dict[str, list[Timing]]:
    """Times every model once per round, in turn, so that a machine that slows down slows all of
    them. One warm-up round before the first is not counted. The prompt is the same for all.
    """
    found: dict[str, list[Timing]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, module in sides.items():
            timing = write_on(module.eval(), prompt_BT, new, clock)[1]
            if turn:
                found[name].append(timing)
    return found


def rate(timings: Sequence[Timing], phase: str, tokens: int) -> Spread:
    """Returns the tokens per second of one phase, in which each round processed ``tokens``."""
    return spread([tokens / getattr(one, phase) for one in timings])


def speed_up(these: Sequence[Timing], against: Sequence[Timing], phase: str) -> Spread:
    """Returns the ratio of times within each round: what slowed a whole round cancels."""
    pairs = zip(these, against, strict=True)
    return spread([getattr(b, phase) / getattr(a, phase) for a, b in pairs])


def spread(values: Sequence[float]) -> Spread:
    """Returns the median, the lowest and the highest of some values."""
    return Spread(statistics.median(values), min(values), max(values))
