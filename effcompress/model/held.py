"""Models that a script holds: which of them can be pruned where they are."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from effcompress.errors import SourceError, short
from effcompress.model.classes import causal_models
from effcompress.model.lineage import is_pruned
from effcompress.model.load import config_of_module
from effcompress.model.suitability import require_causal
from effcompress.types import Config, Fields

_KNOWN = "_effcompress_config"
"""Attribute of a module that was cut in memory: the configuration of its exact form. A copy of the
module has it, too.
"""
_WRAPPERS = (
    "DataParallel",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "OptimizedModule",
)


def config_of_held(module: Any) -> Fields:
    """Returns the configuration of a causal language model of transformers, as plain values; that
    of the exact form where the module was cut in memory.

    Raises SourceError for anything else, and for a model that is wrapped, quantised, without
    weights, on several devices, or has adapters (PEFT).
    """
    for what, fix in _refusals(module):
        raise SourceError(what, where="model", fix=fix)
    config = config_of_module(module)
    require_causal(config, "model")
    known = getattr(module, _KNOWN, None)
    if known is not None and known["pruned"]["shapes"] == _shapes(module):
        return known
    return config


def remember(module: nn.Module, exact: Config) -> None:
    """Keeps the configuration of the exact form with a module that was cut: its own has no place
    for layers of different widths, missing blocks, or what the source's sizes were.
    """
    setattr(module, _KNOWN, dict(exact))


@torch.no_grad()
def in_fp32(module: nn.Module) -> nn.Module:
    """Returns a copy in fp32, with tables of rotations as its class computes them: casting a model
    to 16 bits rounds these, which no folder stores.
    """
    wide = copy.deepcopy(module).float()
    for part in wide.modules():
        if "inv_freq" not in part._buffers or not hasattr(part, "config"):
            continue
        made: Any = type(part)
        for name, value in made(part.config).named_buffers():
            held = part._buffers[name]
            if held is not None and held.shape == value.shape:
                part._buffers[name] = value.to(held.device)
    return wide


def _shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(p.shape) for name, p in module.named_parameters()}


def _refusals(module: Any) -> Iterator[tuple[str, str]]:
    """Yields what keeps an object from being pruned, and what to type instead."""
    kind = type(module).__name__
    if not isinstance(module, nn.Module):
        load = "model = AutoModelForCausalLM.from_pretrained(...)"
        yield f"{short(repr(module), 60)} is no model but a {kind}", f"Load one: {load}."
    if kind in _WRAPPERS:
        inner = "model._orig_mod" if kind == "OptimizedModule" else "model.module"
        yield (
            f"this is a {kind}, a wrapper around a model",
            f"Give {inner}, and wrap it afterwards.",
        )
    if any(_is_peft(m) for m in module.modules()):
        fix = "Merge them first: model = model.merge_and_unload()."
        yield "the model has adapters (PEFT), whose shapes would not follow a cut", fix
    if not hasattr(getattr(module, "config", None), "to_json_string"):
        fix = "Load it with AutoModelForCausalLM.from_pretrained."
        yield f"{kind} has no configuration of transformers", fix
    causal = kind in causal_models().values() or kind.endswith("ForCausalLM")
    if not (causal or is_pruned(config_of_module(module))):
        fix = "Load it with AutoModelForCausalLM: the head that predicts the next token is needed."
        yield f"{kind} is no causal language model", fix
    params = dict(module.named_parameters())
    whole = next((name for name, p in params.items() if not p.is_floating_point()), None)
    if getattr(module, "is_quantized", False) or whole is not None:
        fix = "Load the model in bf16 or fp32, without a quantization_config."
        yield "its weights are quantised, and pruning needs plain ones", fix
    if any(p.device == torch.device("meta") for p in params.values()):
        yield "its weights are on the meta device: there are none", "Load them first."
    devices = sorted({str(p.device) for p in params.values()})
    if len(devices) > 1:
        fix = "Load it without device_map, or with device_map={'': 0}."
        yield f"its weights are on several devices ({', '.join(devices)})", fix


def _is_peft(module: nn.Module) -> bool:
    return type(module).__module__.split(".")[0] == "peft"
