"""Finds the stock class of transformers that accepts a pruned shape.

Some classes refuse shapes that they could compute (Llama: a hidden size that is no multiple of the
heads, although ``head_dim`` is explicit). A family lists compatible classes with the same tensor
names; the first that accepts the shape is used, and the reason is reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress.errors import RunError
from effcompress.types import Config, Family, Fields, Shapes

_BIASES = {"attention_bias", "mlp_bias"}


@dataclass(frozen=True)
class Container:
    """A stock model on the meta device, and why it is not the source's class (empty if it is)."""

    model_type: str
    skeleton: nn.Module
    why: str


def container(family: Family, fields: Config, shapes: Shapes) -> Container:
    """Builds the stock model with these configuration fields (``model_type`` among them); its
    parameters must have these shapes.

    Raises RunError with each class's own message when none accepts the shape.
    """
    own = fields["model_type"]
    refused: dict[str, str] = {}
    for model_type in dict.fromkeys((own, *family.containers)):
        try:
            built = AutoConfig.for_model(model_type, **_known(model_type, own, fields))
            with torch.device("meta"):
                skeleton = AutoModelForCausalLM.from_config(built, dtype=torch.float32)
            _require(skeleton, shapes)
        except (ValueError, StrictDataclassError) as error:  # their own validation
            refused[model_type] = (
                str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
            )
            continue
        why = "; ".join(f"{name} refuses the shape: {text}" for name, text in refused.items())
        return Container(model_type, skeleton, why)
    raise RunError(
        "no stock class accepts the pruned shape: "
        + "; ".join(f"{name}: {text}" for name, text in refused.items())
    )


def _require(skeleton: nn.Module, shapes: Shapes) -> None:
    """Raises ValueError if the class derives other shapes from the configuration."""
    built = {name: tuple(p.shape) for name, p in skeleton.named_parameters()}
    for name in [*shapes, *built]:
        if built.get(name) != shapes.get(name):
            raise ValueError(
                f"it derives {built.get(name, 'nothing')} for {name}, "
                f"not {shapes.get(name, 'nothing')}"
            )


def _known(model_type: str, own: str, fields: Config) -> Fields:
    """The fields that ``model_type`` has. Raises ValueError if it lacks a needed one."""
    if model_type == own:
        return {k: v for k, v in fields.items() if k != "model_type"}
    known = AutoConfig.for_model(model_type).to_dict().keys()
    lost = [flag for flag in _BIASES if fields.get(flag) and flag not in known]
    if lost:
        raise ValueError(f"has no {lost[0]}")
    kept = {k: v for k, v in fields.items() if k in known and k not in _NOT_CARRIED}
    if "sliding_window" in known and "sliding_window" not in fields:
        kept["sliding_window"] = None  # the class's default is a window
    return kept


_NOT_CARRIED = {"model_type", "architectures", "transformers_version"}
