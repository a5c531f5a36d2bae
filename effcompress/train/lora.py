"""Trains low-rank updates (LoRA, arXiv:2106.09685). The only user of peft."""

import warnings
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from effcompress.distributed.rows import add, whole
from effcompress.errors import RunError
from effcompress.spec import LoraSpec

_NAME = "default"
"""Under which peft keeps the updates."""


@final
class Lora:
    """LoRA updates of the linear layers ``paths``: ``W + alpha / rank B A``. While they are
    attached, only ``A`` and ``B`` are trained; peft freezes all other parameters. Raises RunError
    when peft is missing.
    """

    def __init__(self, module: nn.Module, paths: Sequence[str], spec: LoraSpec) -> None:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise RunError(
                "recover.method: lora needs the package peft", fix="pip install 'effcompress[lora]'"
            ) from error
        self.paths, self._module = list(paths), module
        config = LoraConfig(
            r=spec.rank,
            lora_alpha=spec.alpha,  # type: ignore[arg-type]  a float works
            lora_dropout=spec.dropout,
            target_modules=self.paths,
            bias="none",
        )
        model: Any = module
        with warnings.catch_warnings():
            # peft reads attributes that transformers has renamed.
            warnings.simplefilter("ignore", FutureWarning)
            self._wrapped: Any = get_peft_model(model, config)

    @torch.no_grad()
    def merge(self) -> None:
        """Adds the updates to their matrices and restores the module's own linear layers. Of a
        sharded model one ``B A`` after the other is whole on each rank.
        """
        for path in self.paths:
            layer: Any = self._module.get_submodule(path)
            for factor in (layer.lora_A, layer.lora_B):
                held = factor[_NAME]
                held.weight = nn.Parameter(whole(held.weight), requires_grad=False)
            add(layer.get_base_layer().weight, layer.get_delta_weight(_NAME))
        self._wrapped.unload()


def plain_name(name: str) -> str:
    """Returns a parameter's name as it is without LoRA."""
    return name.replace(".base_layer", "")  # what peft inserts while an update is attached


def is_update(name: str) -> bool:
    """Returns whether a parameter belongs to a LoRA update."""
    return "lora_" in name


def updates(module: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters of all updates by name."""
    return {name: p for name, p in module.named_parameters() if is_update(name)}
