"""The classes that a pruned shape is stored in: that of an ``exact`` folder, whose layers may
differ in width, and the stock class of transformers that accepts the shape.

An exact folder contains its model class (``modeling_pruned.py``), so that transformers alone can
load it with ``trust_remote_code``. This package uses its own copy of that file and executes no code
from a folder.

Some stock classes refuse shapes that they could compute (Llama: a hidden size that is no multiple
of the heads, although ``head_dim`` is explicit). A family lists compatible classes with the same
tensor names; the first that accepts the shape is used, and the reason is reported.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress.errors import RunError, SourceError
from effcompress.model import modeling_pruned
from effcompress.model.classes import ALWAYS, fields_of
from effcompress.model.integrity import folder_flaw, read_object
from effcompress.model.lineage import STREAM, Part, Pruned, is_pruned
from effcompress.model.silence import explained, quietly, read_weights
from effcompress.types import Config, Family, Fields, Shapes

FILE = "modeling_pruned.py"
"""Name of the class's file in a folder."""
PER_LAYER = "pruned_per_layer_config"
"""Widths in the layout of transformers' ``per_layer_config``. That key itself is not written:
fields that it names cannot be read from the configuration, and no class that we export reads it.
"""
_DROPPED = ("transformers_version", PER_LAYER, STREAM)
_PARTS = ("shapes", "absent", "attributes", "epsilons", "buffers")
_LINE = 'PARENT = "llama"\n'
_BIASES = {"attention_bias", "mlp_bias"}
_NOT_CARRIED = {"model_type", "architectures", "transformers_version"}


def exact_config(
    parent_config: Config, pruned: Pruned, per_layer: Mapping[str, list[int]]
) -> Fields:
    """Returns the content of config.json.

    ``parent_config`` has the parent's sizes and the depth that is left; it may be that of an exact
    folder. ``pruned`` states all that differs from the parent's class; missing keys are empty.
    ``per_layer``: widths by configuration field, one per layer, for other readers. Raises
    ValueError if one has another length than the layers.
    """
    inner = parent_config.get("pruned") or {}
    parent = str(inner.get("parent") or parent_config["model_type"])
    fields = {k: v for k, v in parent_config.items() if k not in _DROPPED}
    absent = {str(i): parts for i, parts in (pruned.get("absent") or {}).items()}
    found = {
        **fields,
        "model_type": f"pruned_{parent}",
        "architectures": ["PrunedForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_pruned.PrunedConfig",
            "AutoModelForCausalLM": "modeling_pruned.PrunedForCausalLM",
        },
        "pruned": {
            "parent": parent,
            **{part: pruned.get(part) or {} for part in _PARTS},
            "absent": absent,
            **({"stream": pruned["stream"]} if "stream" in pruned else {}),
        },
        PER_LAYER: _per_layer(fields, absent, per_layer),
    }
    return json.loads(json.dumps(found))  # as read back from the file


def exact_skeleton(config: Config) -> nn.Module:
    """Builds the packaged class on the meta device: every parameter has its stored shape, in fp32.

    Raises:
        SourceError: the parent is unknown, or the stored shapes do not fit it.
    """
    with explained("cannot be opened", where="model"):
        built, model_class = _classes(config)
        with torch.random.fork_rng(devices=[]), torch.device("meta"), quietly():
            return model_class(built)


def new_exact(config: Config) -> nn.Module:
    """The same with random weights in fp32, initialised by the parent's class from the global
    random state; norms have gains of 1.

    Raises:
        SourceError: the parent is unknown, or the stored shapes do not fit it.
    """
    with explained("cannot be opened", where="model"):
        built, model_class = _classes(config)
        return model_class._from_config(built, dtype=torch.float32)


def modelling_source(parent: str) -> str:
    """Returns the text of ``modeling_pruned.py`` for a folder whose parent has this ``model_type``.

    Raises SourceError if transformers has no such causal language model.
    """
    _require_parent(parent)
    text = Path(modeling_pruned.__file__).read_text(encoding="utf-8")
    assert text.count(_LINE) == 1
    return text.replace(_LINE, f'PARENT = "{parent}"\n')


def open_exact(folder: Path) -> nn.Module:
    """Loads an exact folder in fp32 and evaluation mode with the packaged class; no code from the
    folder is executed.

    Raises:
        SourceError: it is not an exact folder, the weights cannot be read, or they do not fit.
    """
    if flaw := folder_flaw(folder):
        raise SourceError(flaw, where=str(folder))
    config = read_object(folder / "config.json") or {}
    if not is_pruned(config):
        raise SourceError("config.json is not that of a pruned model", where=str(folder))
    with explained("cannot be opened", where=str(folder)), quietly():
        built, model_class = _classes(config)
        module, kind, keys = read_weights(model_class, folder, config=built)
    if keys:
        said = f"{kind} {', '.join(keys[:4])}"
        raise SourceError(f"weights and config.json do not fit: {said}", where=str(folder))
    return module


def _classes(config: Config) -> tuple[Any, Any]:
    """The configuration object and the class of the model. Raises SourceError."""
    pruned = config["pruned"]
    parent = str(pruned.get("parent"))
    _require_parent(parent)
    for path, values in (pruned.get("attributes") or {}).items():
        for name, value in values.items():
            fine = _is_size(value) or _is_stretches(value)
            if not re.fullmatch(r"(config\.)?[a-z]\w*", name) or not fine:
                where = f"config.json: pruned.attributes.{path}"
                raise SourceError(f"'{name}' is no size: {value!r}", where=where)
    config_class, model_class = modeling_pruned.make(parent)
    return config_class.from_dict(dict(config)), model_class


def _require_parent(parent: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if parent not in KNOWN:
        raise SourceError(f"transformers has no causal language model '{parent}'", where="model")


def _is_stretches(value: object) -> bool:
    """Whether a value is pairs of a number and a length, those of a buffer."""
    return isinstance(value, list) and all(
        isinstance(one, list)
        and len(one) == 2
        and isinstance(one[0], int | float)
        and _is_size(one[1])
        for one in value
    )


def _is_size(value: object) -> bool:
    if isinstance(value, list):  # normalized_shape of a LayerNorm
        return all(_is_size(v) for v in value)
    return isinstance(value, int) and not isinstance(value, bool)


def _per_layer(
    fields: Config, absent: Mapping[str, list[Part]], per_layer: Mapping[str, list[int]]
) -> dict[str, Fields]:
    """Layer -> fields that differ from the configuration's."""
    lengths = {len(widths) for widths in per_layer.values()}
    if len(lengths) > 1:
        raise ValueError(f"widths for {sorted(lengths)} layers")
    found: dict[int, Fields] = {i: {} for i in range(max(lengths, default=0))}
    for name, widths in per_layer.items():
        for i, width in enumerate(widths):
            if fields.get(name) != width:
                found[i][name] = width
    for layer, parts in absent.items():
        gone = {"attention" if "att" in path else "mlp" for path, outputs in parts if outputs}
        found.setdefault(int(layer), {})["skip"] = sorted(gone)
    digits = len(str(max(found, default=0)))
    return {str(i).zfill(digits): values for i, values in sorted(found.items()) if values}


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
            last = str(error).strip().splitlines()[-1]
            refused[model_type] = last.strip().removeprefix("ValueError: ")
            continue
        why = "; ".join(f"{name} refuses the shape: {text}" for name, text in refused.items())
        return Container(model_type, skeleton, why)
    said = "; ".join(f"{name}: {text}" for name, text in refused.items())
    raise RunError(f"no stock class accepts the pruned shape: {said}")


def _require(skeleton: nn.Module, shapes: Shapes) -> None:
    """Raises ValueError if the class derives other shapes from the configuration."""
    built = {name: tuple(p.shape) for name, p in skeleton.named_parameters()}
    for name in [*shapes, *built]:
        made, wanted = built.get(name, "nothing"), shapes.get(name, "nothing")
        if made != wanted:
            raise ValueError(f"it derives {made} for {name}, not {wanted}")


def _known(model_type: str, own: str, fields: Config) -> Fields:
    """The fields that ``model_type`` and the source's class ``own`` have: one that only a file
    states, and the source's class does not read, must not begin to count. Raises ValueError if a
    needed one is lacking.
    """
    if model_type == own:
        return {k: v for k, v in fields.items() if k != "model_type"}
    known = AutoConfig.for_model(model_type).to_dict().keys()
    lost = [flag for flag in _BIASES if fields.get(flag) and flag not in known]
    if lost:
        raise ValueError(f"has no {lost[0]}")
    read = fields_of(own)
    mine = known if read is None else {*read, *ALWAYS}
    kept = {k: v for k, v in fields.items() if k in known and k in mine and k not in _NOT_CARRIED}
    if "sliding_window" in known and "sliding_window" not in kept:
        kept["sliding_window"] = None  # the class's default is a window
    return kept
