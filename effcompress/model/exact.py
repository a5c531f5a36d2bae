"""Folders whose layers have widths of their own: the configuration they need and how to open one.

Such a folder brings its class along (``modeling_pruned.py``) for readers that only have
transformers. This package has the same file and uses its own copy: what lies in a folder is never
executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from effcompress.errors import SourceError
from effcompress.model import modeling_pruned
from effcompress.model.integrity import folder_flaw, read_object
from effcompress.model.lineage import is_pruned
from effcompress.model.silence import quietly

FILE = "modeling_pruned.py"
"""Name of the class's file in a folder."""
PER_LAYER = "pruned_per_layer_config"
"""Widths in the layout of transformers' ``per_layer_config``. That key itself is not written: no
modelling file that we export reads it, and what it names can then no longer be read from the rest.
"""
_DROPPED = ("transformers_version", PER_LAYER)
_PARTS = ("shapes", "absent", "attributes", "epsilons")
_LINE = 'PARENT = "llama"\n'


def exact_config(
    parent_config: Mapping[str, Any],
    pruned: Mapping[str, Any],
    per_layer: Mapping[str, list[int]],
) -> dict[str, Any]:
    """The content of config.json.

    ``parent_config`` has the parent's sizes and the depth of what is left; it may be that of an
    exact folder. ``pruned`` says what differs, absolutely, not from an exact parent:
    ``shapes`` of all parameters by name, ``absent`` layer -> [[path in the layer, outputs]],
    ``attributes`` module path -> attribute -> size, ``epsilons`` module path -> value; missing ones
    are empty. ``per_layer`` are widths by configuration field, one per layer, for other readers.
    Raises ValueError if one has another length than the layers.
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
        },
        PER_LAYER: _per_layer(fields, absent, per_layer),
    }
    return json.loads(json.dumps(found))  # plain values, as a reader of the file will see them


def exact_skeleton(config: Mapping[str, Any]) -> nn.Module:
    """The packaged class for the parent of ``config`` (the content of a config.json), without
    weights: every parameter has its stored shape, in fp32, on the meta device.

    Raises:
        SourceError: the parent is unknown, or what is stored does not fit it.
    """
    try:
        built, model_class = _classes(config)
        with torch.random.fork_rng(devices=[]), torch.device("meta"), quietly():
            return model_class(built)
    except SourceError:
        raise
    except Exception as error:  # every architecture has its own way to refuse
        raise _refused(error, "model") from error


def new_exact(config: Mapping[str, Any]) -> nn.Module:
    """The same in memory, in fp32, drawn from the global random state as the parent's class draws;
    its norms are new as well.

    Raises:
        SourceError: the parent is unknown, or what is stored does not fit it.
    """
    try:
        built, model_class = _classes(config)
        return model_class._from_config(built, dtype=torch.float32)
    except SourceError:
        raise
    except Exception as error:  # every architecture has its own way to refuse
        raise _refused(error, "model") from error


def modelling_source(parent: str) -> str:
    """The text of ``modeling_pruned.py`` for a folder whose parent has this ``model_type``.

    Raises SourceError if transformers has no such causal language model.
    """
    _require_parent(parent)
    text = Path(modeling_pruned.__file__).read_text(encoding="utf-8")
    assert text.count(_LINE) == 1
    return text.replace(_LINE, f'PARENT = "{parent}"\n')


def open_exact(folder: Path) -> nn.Module:
    """The model of such a folder in fp32, in evaluation mode, through the packaged class; neither
    the folder's own file nor any other code of it is executed.

    Raises:
        SourceError: the configuration is not one of ours, the weights cannot be read, or they do
            not fit exactly.
    """
    if flaw := folder_flaw(folder):
        raise SourceError(flaw, where=str(folder))
    config = read_object(folder / "config.json") or {}
    if not is_pruned(config):
        raise SourceError("config.json is not that of a pruned model", where=str(folder))
    try:
        built, model_class = _classes(config)
        with quietly():
            module, info = model_class.from_pretrained(
                str(folder),
                config=built,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with the others
                local_files_only=True,
                use_safetensors=True,
            )
    except SourceError:
        raise
    except Exception as error:  # safetensors and every architecture have their own errors
        raise _refused(error, str(folder)) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(str(k[0] if isinstance(k, tuple) else k) for k in info[kind]):
            said = f"{kind.replace('_', ' ')} {', '.join(keys[:4])}"
            raise SourceError(f"weights and config.json do not fit: {said}", where=str(folder))
    return module


def _classes(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The configuration object and the class of the model. Raises SourceError."""
    pruned = config["pruned"]
    parent = str(pruned.get("parent"))
    _require_parent(parent)
    for path, name, value in _remembered(pruned):
        if not re.fullmatch(r"(config\.)?[a-z]\w*", name) or not _is_size(value):
            raise SourceError(
                f"'{name}' is no size: {value!r}", where=f"config.json: pruned.attributes.{path}"
            )
    config_class, model_class = modeling_pruned.make(parent)
    return config_class.from_dict(dict(config)), model_class


def _require_parent(parent: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if parent not in KNOWN:
        raise SourceError(f"transformers has no causal language model '{parent}'", where="model")


def _remembered(pruned: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for path, values in (pruned.get("attributes") or {}).items():
        for name, value in values.items():
            yield path, name, value


def _is_size(value: Any) -> bool:
    if isinstance(value, list):  # normalized_shape
        return all(_is_size(v) for v in value)
    return isinstance(value, int) and not isinstance(value, bool)


def _per_layer(
    fields: Mapping[str, Any],
    absent: Mapping[str, list[Any]],
    per_layer: Mapping[str, list[int]],
) -> dict[str, dict[str, Any]]:
    """Layer -> what differs from the rest of the configuration there."""
    lengths = {len(widths) for widths in per_layer.values()}
    if len(lengths) > 1:
        raise ValueError(f"widths for {sorted(lengths)} layers")
    found: dict[int, dict[str, Any]] = {i: {} for i in range(max(lengths, default=0))}
    for name, widths in per_layer.items():
        for i, width in enumerate(widths):
            if fields.get(name) != width:
                found[i][name] = width
    for layer, parts in absent.items():
        gone = {{1: "mlp", 2: "attention"}[outputs] for _, outputs in parts if outputs}
        found.setdefault(int(layer), {})["skip"] = sorted(gone)
    digits = len(str(max(found, default=0)))
    return {str(i).zfill(digits): values for i, values in sorted(found.items()) if values}


def _refused(error: Exception, where: str) -> SourceError:
    said = next(iter(str(error).strip().splitlines()), "")
    return SourceError(f"cannot be opened: {type(error).__name__}: {said}", where=where)
