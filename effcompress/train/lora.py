"""Low-rank updates through peft: the only door to it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, final

from torch import Tensor, nn

from effcompress.errors import RunError
from effcompress.spec import LoraSpec

MARK = "lora_"
"""Parameters of an update have it in their names."""
BASE = ".base_layer"
"""What the name of a matrix gains while an update is attached."""


def require_peft() -> None:
    """Raises RunError that says how to get it."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise RunError(
            "recover.method: lora needs the package peft", fix="pip install 'effcompress[lora]'"
        ) from error


@final
class Lora:
    """Updates of ``paths`` (linear layers), the only parameters that are trained while attached."""

    def __init__(self, module: nn.Module, paths: Sequence[str], spec: LoraSpec) -> None:
        require_peft()
        self.paths = list(paths)
        from peft import LoraConfig, get_peft_model

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

    def merge(self) -> None:
        """Add the updates to their matrices and be gone; the module's own layers are back."""
        self._wrapped.merge_and_unload()


def plain_name(name: str) -> str:
    """What a parameter is called without updates."""
    return name.replace(BASE, "")


def is_update(name: str) -> bool:
    """Whether a parameter belongs to an update."""
    return MARK in name


def updates(module: nn.Module) -> dict[str, Tensor]:
    """The updates' parameters by name."""
    return {name: p for name, p in module.named_parameters() if is_update(name)}
